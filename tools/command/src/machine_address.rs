//! The addresses of this machine: the one that others reach, and the one from which it reaches a server.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};

use http::Uri;

use crate::host;

/// The address by which others reach a server that listens on `bind`: for a wildcard that towards the default route, else the
/// one of the first network that the machine is connected to. A server on `::` is reached by IPv4, too. `None` if there is none.
#[must_use]
pub fn machine_address(bind: IpAddr) -> Option<IpAddr> {
    if !bind.is_unspecified() {
        return Some(bind);
    }
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();
    // Addresses for documentation: only the route matters.
    let ipv4 = || {
        let connected = || connected_networks(&read(ROUTES)).into_iter().find_map(|to| source_address(to.into()));
        source_address(Ipv4Addr::new(192, 0, 2, 1).into()).or_else(connected)
    };
    if bind.is_ipv4() {
        return ipv4();
    }
    let ipv6 = source_address(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    ipv6.or_else(ipv4).or_else(|| first_address(&read(ADDRESSES)).map(IpAddr::V6))
}

/// The address from which the system would connect, unless that is a loopback address. Connecting a UDP socket sends nothing.
fn source_address(to: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(to, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

/// The routes of IPv4 on Linux; other systems have no such file.
const ROUTES: &str = "/proc/net/route";
/// The IPv6 addresses of a machine with Linux.
const ADDRESSES: &str = "/proc/net/if_inet6";
/// The flags of an address that is temporary, deprecated or in use by another machine, or not yet checked for that.
const UNSTABLE: u8 = 0x01 | 0x20 | 0x08 | 0x40;

/// The first stable address of more than a link: address, interface, prefix length, scope and flags are columns.
fn first_address(addresses: &str) -> Option<Ipv6Addr> {
    let global = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let address = u128::from_str_radix(fields.next()?, 16).ok()?;
        let mut number = |skipped| u8::from_str_radix(fields.nth(skipped)?, 16).ok();
        let (scope, flags) = (number(2)?, number(0)?);
        (scope == 0 && flags & UNSTABLE == 0).then(|| Ipv6Addr::from(address))
    };
    addresses.lines().find_map(global)
}

/// The first host of each network without a gateway, in the order of the table.
fn connected_networks(routes: &str) -> Vec<Ipv4Addr> {
    let field = |hex: &str| u32::from_str_radix(hex, 16).ok().map(u32::swap_bytes);
    let first_host = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (network, gateway) = (field(fields.next()?)?, field(fields.next()?)?);
        (network != 0 && gateway == 0).then(|| Ipv4Addr::from(network.saturating_add(1)))
    };
    routes.lines().skip(1).filter_map(first_host).collect()
}

/// The address of this machine from which the system would connect to a server. Connecting a UDP socket sends nothing.
///
/// # Errors
/// If the server's name has no address, or no route leads there.
pub fn address_towards(server: &Uri) -> io::Result<IpAddr> {
    let port = server.port_u16().unwrap_or(443);
    let mut found = (host::of_url(server), port).to_socket_addrs()?;
    let server = found.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "its name has no address"))?;
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_default_route_has_the_address_of_its_first_network() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
            eth0\t00000000\t0100580A\t0003\t0\t0\t0\t00000000\n\
            eth0\t0000580A\t00000000\t0001\t0\t0\t0\t00FFFFFF\n\
            eth1\t0002000A\t0100580A\t0003\t0\t0\t0\t00FFFFFF\n\
            eth1\tnonsense\n\nwg0\tFFFFFFFF\t00000000\t0001\n";
        assert_eq!(connected_networks(table), [Ipv4Addr::new(10, 88, 0, 1), Ipv4Addr::BROADCAST]);
        assert!(connected_networks("").is_empty());
        let given: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!(machine_address(given), Some(given));
        let found = machine_address(Ipv4Addr::UNSPECIFIED.into());
        assert!(found.is_none_or(|ip| !ip.is_loopback() && !ip.is_unspecified()), "{found:?}");
        let both = machine_address(Ipv6Addr::UNSPECIFIED.into());
        assert!(found.is_none() || both.is_some(), "a server on :: is reached by {found:?}");
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
            fe800000000000000042acfffe110002 02 40 20 80     eth0\nnonsense\n\
            fd000000000000000000000000000007 02 40 00 01     eth0\n\
            fd000000000000000000000000000008 02 40 00 80     eth0\n";
        assert_eq!(first_address(table), Some("fd00::8".parse().unwrap()));
        assert_eq!(first_address(""), None);
    }

    #[test]
    fn a_server_of_this_machine_is_reached_from_its_loopback_address() {
        let address = address_towards(&"https://127.0.0.1:6443".parse().unwrap()).unwrap();
        assert_eq!(address, IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
}
