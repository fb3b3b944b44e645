//! Addresses that no guest and none of its name servers may reach. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Metadata and host services of clouds outside the link-local block: Alibaba, Oracle, Azure. They trust the machine's address,
/// and give its credentials to whatever runs there. The same for pulls: `wasm-node/images/src/address.rs`.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
/// The metadata service of AWS.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Whether an address is never external: the host itself, its link, its cloud's metadata service, or no single host.
pub(crate) fn is_special(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_special_v4(ip),
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unicast_link_local()
                || ip == METADATA_V6
                || translated(ip).is_some_and(is_special_v4)
        }
    }
}

fn is_special_v4(ip: Ipv4Addr) -> bool {
    ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_broadcast()
        || ip.octets()[0] == 0
        || METADATA_V4.contains(&ip)
}

/// The IPv4 address to which a gateway translates an IPv6 address: NAT64 (RFC 6052), 6to4 (RFC 3056).
fn translated(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let (high, low) = match ip.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => (high, low),
        _ => return None,
    };
    Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The attacker is a guest, or the author of a name or of an EndpointSlice that it calls.
    #[test]
    fn metadata_services_are_not_the_outside() {
        for ip in [
            "169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "fd00:ec2::254",
            "::ffff:100.100.100.200",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::7f00:1",
            "2002:a9fe:a9fe::1",
        ] {
            assert!(is_special(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["100.100.100.201", "fd00:ec2::255", "fd12::1", "64:ff9b::c000:201", "2002:c000:201::1"] {
            assert!(!is_special(ip.parse().unwrap()), "{ip}");
        }
    }
}
