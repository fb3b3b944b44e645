//! Parsers of Linux' tables of sockets. Pure.

use std::net::Ipv4Addr;

/// The state of a listening socket (`TCP_LISTEN`, include/net/tcp_states.h).
const LISTENING: &str = "0A";

/// The addresses with a listener on `port` in `/proc/net/tcp` (proc_pid_net(5)): numbers in hexadecimal, addresses in the
/// byte order of the machine.
pub(super) fn listeners(table: &str, port: u16) -> Vec<Ipv4Addr> {
    let listener = |line: &str| {
        let mut fields = line.split_whitespace();
        let (address, found) = fields.nth(1)?.split_once(':')?;
        let state = fields.nth(1)?;
        let (address, found) = (u32::from_str_radix(address, 16).ok()?, u16::from_str_radix(found, 16).ok()?);
        (state == LISTENING && found == port).then(|| Ipv4Addr::from(address.to_ne_bytes()))
    };
    table.lines().skip(1).filter_map(listener).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_of_a_port_are_found() {
        let address = |octets: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(octets));
        let line = |octets, port: u16, state: &str| {
            format!(
                "   0: {}:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 1 1\n",
                address(octets)
            )
        };
        let table = format!(
            "  sl  local_address rem_address   st\n{}{}{}garbage\n",
            line([127, 67, 255, 255], 6442, "0A"),
            line([127, 71, 255, 255], 6442, "01"),
            line([127, 75, 255, 255], 80, "0A"),
        );
        assert_eq!(listeners(&table, 6442), [Ipv4Addr::new(127, 67, 255, 255)]);
        assert_eq!(listeners("", 6442), Vec::<Ipv4Addr>::new());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_listener_of_this_process_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        assert_eq!(listeners(&table, socket.local_addr().unwrap().port()), [Ipv4Addr::LOCALHOST]);
    }
}
