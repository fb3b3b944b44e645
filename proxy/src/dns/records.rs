//! Records and names of cluster DNS in hickory's types. Pure.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::LazyLock;

use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;
use machinery_api::names::CLUSTER_DOMAIN;

/// TTL of answers and of their absence, in seconds: CoreDNS' in kubeadm's configuration.
pub(crate) const TTL: u32 = 30;
/// Version of the Kubernetes DNS specification (its §2.2).
const SCHEMA_VERSION: &str = "1.1.0";
/// Intervals of the zone in seconds (CoreDNS' `plugin.SOA`): no secondary server reads them.
const REFRESH: i32 = 7_200;
const RETRY: i32 = 1_800;
const EXPIRE: i32 = 86_400;

/// The cluster's domain.
pub(crate) static ZONE: LazyLock<Name> = LazyLock::new(|| absolute(CLUSTER_DOMAIN).unwrap_or_default());

/// An absolute name from text; `None` if it is no domain name.
pub(crate) fn absolute(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// A name in lower case without its final dot; `None` if a label has other bytes than letters, digits, `-` and `_`, which
/// no name of the cluster has.
pub(crate) fn plain(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    Some(text)
}

/// The address of a name of the reverse trees (RFC 1035 §3.5, RFC 3596 §2.5), given in lower case.
pub(crate) fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
        let mut parsed = [0_u8; 4];
        let mut labels = octets.split('.');
        for octet in parsed.iter_mut().rev() {
            let label = labels.next().filter(|label| label.len() == 1 || !label.starts_with(['0', '+']))?;
            *octet = label.parse().ok()?;
        }
        return labels.next().is_none().then(|| IpAddr::from(parsed));
    }
    let nibbles = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0_u128;
    let mut count = 0;
    for label in nibbles.split('.') {
        let digit = label.chars().next().filter(|_| label.len() == 1)?.to_digit(16)?;
        if count == 32 {
            return None;
        }
        bits |= u128::from(digit) << (4 * count);
        count += 1;
    }
    (count == 32).then(|| Ipv6Addr::from(bits).into())
}

/// The name of the smallest reverse zone that holds `ip` and lies within `cidr`, for the SOA of a negative answer.
pub(crate) fn reverse_zone(ip: IpAddr, cidr: &IpNet) -> Option<Name> {
    match ip {
        IpAddr::V4(ip) => {
            let count = usize::from(cidr.prefix_len().div_ceil(8));
            let labels: Vec<String> = ip.octets()[..count.min(4)].iter().rev().map(u8::to_string).collect();
            absolute(&format!("{}.in-addr.arpa", labels.join(".")))
        }
        IpAddr::V6(ip) => {
            let count = usize::from(cidr.prefix_len().div_ceil(4)).min(32);
            let nibbles = ip.octets().into_iter().flat_map(|octet| [octet >> 4, octet & 15]).take(count);
            let mut labels: Vec<String> = nibbles.map(|nibble| format!("{nibble:x}")).collect();
            labels.reverse();
            absolute(&format!("{}.ip6.arpa", labels.join(".")))
        }
    }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

/// An A or AAAA record.
pub(crate) fn address(name: &Name, ip: IpAddr) -> Record {
    record(
        name,
        match ip {
            IpAddr::V4(ip) => RData::A(A(ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
        },
    )
}

/// Whether an address answers a query of this type.
pub(crate) fn is_of_type(ip: IpAddr, kind: RecordType) -> bool {
    match kind {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        _ => false,
    }
}

pub(crate) fn cname(name: &Name, target: Name) -> Record {
    record(name, RData::CNAME(CNAME(target)))
}

pub(crate) fn ptr(name: &Name, target: Name) -> Record {
    record(name, RData::PTR(PTR(target)))
}

/// Priority 0, as CoreDNS' records of Services have.
pub(crate) fn srv(name: &Name, weight: u16, port: u16, target: Name) -> Record {
    record(name, RData::SRV(SRV::new(0, weight, port, target)))
}

pub(crate) fn version(name: &Name) -> Record {
    record(name, RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()])))
}

/// The name of the server itself, `ns.dns` of the cluster's domain (CoreDNS' name).
pub(crate) fn server_name() -> Name {
    absolute(&format!("ns.dns.{CLUSTER_DOMAIN}")).unwrap_or_default()
}

pub(crate) fn ns(zone: &Name) -> Record {
    record(zone, RData::NS(NS(server_name())))
}

/// The SOA of a zone; its last field is the TTL of negative answers (RFC 2308 §4).
pub(crate) fn soa(zone: &Name, serial: u32) -> Record {
    let contact = absolute(&format!("hostmaster.{CLUSTER_DOMAIN}")).unwrap_or_default();
    record(zone, RData::SOA(SOA::new(server_name(), contact, serial, REFRESH, RETRY, EXPIRE, TTL)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_names_are_parsed_exactly() {
        for (name, ip) in [
            ("10.0.64.127.in-addr.arpa", Some("127.64.0.10")),
            ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", Some("2001:db8::1")),
            ("0.64.127.in-addr.arpa", None),
            ("1.10.0.64.127.in-addr.arpa", None),
            ("010.0.64.127.in-addr.arpa", None),
            ("256.0.64.127.in-addr.arpa", None),
            ("+1.0.64.127.in-addr.arpa", None),
            ("a.b.ip6.arpa", None),
            ("in-addr.arpa", None),
        ] {
            assert_eq!(reverse_address(name), ip.map(|ip| ip.parse().unwrap()), "{name}");
        }
    }

    #[test]
    fn a_reverse_zone_lies_within_its_range() {
        let zone = |ip: &str, cidr: &str| reverse_zone(ip.parse().unwrap(), &cidr.parse().unwrap()).unwrap().to_ascii();
        assert_eq!(zone("127.64.3.10", "127.64.0.0/16"), "64.127.in-addr.arpa.");
        assert_eq!(zone("127.67.3.10", "127.66.0.0/15"), "67.127.in-addr.arpa.");
        assert_eq!(zone("10.97.3.10", "10.96.0.0/12"), "97.10.in-addr.arpa.");
        assert_eq!(zone("2001:db8::1", "2001:db8::/32"), "8.b.d.0.1.0.0.2.ip6.arpa.");
    }

    #[test]
    fn names_with_other_bytes_are_none_of_the_clusters() {
        assert_eq!(plain(&absolute("Web.Shop").unwrap()).as_deref(), Some("web.shop"));
        let dotted = Name::from_labels([b"a.cluster".as_slice(), b"local"]).unwrap();
        assert_eq!(plain(&dotted), None);
    }
}
