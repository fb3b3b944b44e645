//! Parsers of Linux' tables of sockets. Pure.

use std::net::{Ipv4Addr, SocketAddrV4};

/// The state of a listening socket (`TCP_LISTEN`, include/net/tcp_states.h).
const LISTENING: &str = "0A";

/// The sockets of listeners in `/proc/net/tcp` (proc_pid_net(5)): numbers in hexadecimal, addresses in the byte order of the
/// machine.
pub(super) fn listeners(table: &str) -> Vec<SocketAddrV4> {
    let listener = |line: &str| {
        let mut fields = line.split_whitespace();
        let (address, port) = fields.nth(1)?.split_once(':')?;
        let state = fields.nth(1)?;
        let (address, port) = (u32::from_str_radix(address, 16).ok()?, u16::from_str_radix(port, 16).ok()?);
        (state == LISTENING).then(|| SocketAddrV4::new(Ipv4Addr::from(address.to_ne_bytes()), port))
    };
    table.lines().skip(1).filter_map(listener).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_found() {
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
        let socket = |address, port| SocketAddrV4::new(Ipv4Addr::from(address), port);
        assert_eq!(listeners(&table), [socket([127, 67, 255, 255], 6442), socket([127, 75, 255, 255], 80)]);
        assert_eq!(listeners(""), []);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_listener_of_this_process_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(address) = socket.local_addr().unwrap() else {
            unreachable!("it is bound by IPv4")
        };
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        assert!(listeners(&table).contains(&address), "{address}: {table}");
    }
}
