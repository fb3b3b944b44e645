//! The addresses that belong to a machine itself: neither a guest nor the author of a name may make a node call them.
//!
//! Services behind them trust the caller's address: those of this machine, and those of its cloud, which give the machine's
//! credentials to each program on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Metadata and host services of clouds outside the link-local block:
/// - Alibaba: <https://www.alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata>
/// - Oracle, Compute Classic
/// - Azure: <https://learn.microsoft.com/en-us/azure/virtual-network/what-is-ip-address-168-63-129-16>
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
/// Metadata services of clouds by IPv6, in unique local addresses:
/// - AWS, and the agent of its pod identities:
///   <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html>
/// - Google: <https://cloud.google.com/compute/docs/metadata/querying-metadata>
/// - Scaleway
const METADATA_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
];

/// Whether an address is of the machine itself, of its link or of its cloud's metadata service, or of no single host; also
/// where a gateway translates an IPv6 address to such an IPv4 address.
#[must_use]
pub fn is_reserved(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_reserved_v4(v4),
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || METADATA_V6.contains(&v6)
                || embedded(v6).is_some_and(is_reserved_v4)
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

/// The IPv4 address embedded in an IPv6 address: mapped and compatible ones (RFC 4291), NAT64 (RFC 6052), 6to4 (RFC 3056).
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let (high, low) = match v6.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            (high, low)
        }
        _ => return None,
    };
    Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The attacker is a guest, the author of a name or of an EndpointSlice, or a registry that redirects.
    #[test]
    fn addresses_of_the_machine_and_its_cloud_are_reserved() {
        for address in [
            "127.0.0.1",
            "127.64.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "fd00:42::42",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:100.100.100.200",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
        ] {
            assert!(is_reserved(address.parse().unwrap()), "{address}");
        }
        for address in [
            "10.0.0.1",
            "192.168.1.1",
            "1.1.1.1",
            "172.16.0.1",
            "192.0.2.1",
            "100.100.100.201",
            "2606:4700::1",
            "fd12::1",
            "fd00:ec2::255",
            "::ffff:1.1.1.1",
            "64:ff9b::c000:201",
            "2002:c000:201::1",
        ] {
            assert!(!is_reserved(address.parse().unwrap()), "{address}");
        }
    }
}
