//! The addresses that an image name, a redirect or a token realm must not lead to. Pure.
//!
//! A pod's author chooses the registry, and a registry chooses the hosts of its blobs and tokens. Neither may make the
//! node call services that trust the node's own address: services on this machine, and clouds' metadata services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Metadata and host services of clouds outside the link-local block: Alibaba, Oracle, Azure.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
/// The metadata service of AWS.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Returns whether only hosts that the node's own configuration names may have this address.
pub(crate) fn is_reserved(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_reserved_v4(v4),
        IpAddr::V6(v6) => {
            let link_local = v6.segments()[0] & 0xffc0 == 0xfe80;
            let alone = v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || link_local || v6 == METADATA_V6;
            alone || embedded(v6).is_some_and(is_reserved_v4)
        }
    }
}

fn is_reserved_v4(v4: Ipv4Addr) -> bool {
    v4.is_loopback()
        || v4.octets()[0] == 0
        || v4.is_link_local()
        || v4.is_multicast()
        || v4.is_broadcast()
        || METADATA_V4.contains(&v4)
}

/// Returns the IPv4 address embedded in an IPv6 address: mapped and compatible ones, NAT64 (RFC 6052), 6to4 (RFC 3056).
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = v6.segments();
    let pair = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => pair(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => pair(high, low),
        [0x2002, high, low, ..] => pair(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine_alone_are_reserved() {
        for address in [
            "127.0.0.1",
            "127.64.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "100.100.100.200",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
        ] {
            assert!(is_reserved(address.parse().unwrap()), "{address}");
        }
        for address in ["10.0.0.1", "192.168.1.1", "1.1.1.1", "172.16.0.1", "2606:4700::1", "fd12::1", "::ffff:1.1.1.1"]
        {
            assert!(!is_reserved(address.parse().unwrap()), "{address}");
        }
    }
}
