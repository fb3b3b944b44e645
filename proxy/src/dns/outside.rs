//! Records from outside that may reach a client. A name from outside must not lead to a Service or pod: a page of that name
//! would act on the cluster with the rights of its reader (DNS rebinding). The attacker is the name's own server. Pure.
//!
//! A record passes if its type is known here. Addresses of the cluster and names of the cluster's domain are removed with their
//! record, in each field in which a client looks for a host. Text that an application reads (TXT, the rules of NAPTR) passes.

use std::net::IpAddr;

use hickory_resolver::proto::rr::rdata::SVCB;
use hickory_resolver::proto::rr::rdata::svcb::SvcParamValue;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;

use crate::dns::records::ZONE;

/// Maximum aliases that lead from a name to its records.
const ALIASES_MAX: usize = 16;

/// Types whose data has neither an address nor a name to connect to. Absent, with addresses or hosts: A6, AMTRELAY, APL, DNAME,
/// HIP, IPSECKEY, L32, L64, LP, URI, WKS, and all types that were not checked.
const WITHOUT_HOSTS: [RecordType; 21] = [
    RecordType::CAA,
    RecordType::CDNSKEY,
    RecordType::CDS,
    RecordType::CERT,
    RecordType::CSYNC,
    RecordType::DNSKEY,
    RecordType::DS,
    RecordType::HINFO,
    LOC,
    RecordType::NSEC,
    RecordType::NSEC3,
    RecordType::NSEC3PARAM,
    RecordType::OPENPGPKEY,
    RP,
    RecordType::RRSIG,
    RecordType::SMIMEA,
    RecordType::SOA,
    SPF,
    RecordType::SSHFP,
    RecordType::TLSA,
    RecordType::TXT,
];
/// A position on earth (RFC 1876).
const LOC: RecordType = RecordType::Unknown(29);
/// A responsible person (RFC 1183): a mailbox.
const RP: RecordType = RecordType::Unknown(17);
/// The senders of a domain's mail, as TXT (RFC 4408).
const SPF: RecordType = RecordType::Unknown(99);

/// Removes answers that lead into the cluster, and then those of other names than `name` and its aliases.
pub(super) fn retain_answers(name: &Name, answers: &mut Vec<Record>, cluster: &[IpNet]) {
    retain_outside(answers, cluster);
    retain_chain(name, answers);
}

/// Removes records that lead into the cluster, and those of unknown types.
pub(super) fn retain_outside(records: &mut Vec<Record>, cluster: &[IpNet]) {
    records.retain(|record| is_outside(&record.data, cluster));
}

fn is_outside(data: &RData, cluster: &[IpNet]) -> bool {
    match data {
        RData::A(a) => is_outside_address(a.0.into(), cluster),
        RData::AAAA(aaaa) => is_outside_address(aaaa.0.into(), cluster),
        RData::HTTPS(https) => is_outside_service(&https.0, cluster),
        RData::SVCB(svcb) => is_outside_service(svcb, cluster),
        RData::CNAME(alias) => is_outside_name(&alias.0),
        RData::PTR(pointer) => is_outside_name(&pointer.0),
        RData::NS(server) => is_outside_name(&server.0),
        RData::MX(mail) => is_outside_name(&mail.exchange),
        RData::SRV(service) => is_outside_name(&service.target),
        RData::NAPTR(rule) => is_outside_name(&rule.replacement),
        other => WITHOUT_HOSTS.contains(&other.record_type()),
    }
}

/// A binding of a service (RFC 9460): its target, and the hints by which a client connects before it resolves the target.
fn is_outside_service(service: &SVCB, cluster: &[IpNet]) -> bool {
    is_outside_name(&service.target_name)
        && service.svc_params.iter().all(|(_, value)| match value {
            SvcParamValue::Ipv4Hint(hint) => hint.0.iter().all(|a| is_outside_address(a.0.into(), cluster)),
            SvcParamValue::Ipv6Hint(hint) => hint.0.iter().all(|aaaa| is_outside_address(aaaa.0.into(), cluster)),
            _ => true,
        })
}

fn is_outside_address(ip: IpAddr, cluster: &[IpNet]) -> bool {
    let ip = ip.to_canonical();
    !cluster.iter().any(|cidr| cidr.contains(&ip))
}

/// A client would resolve a name of the cluster's domain here, and get the cluster's addresses.
fn is_outside_name(name: &Name) -> bool {
    !ZONE.zone_of(name)
}

/// Removes records whose owner is neither the name nor an alias that leads on from it: a name server may add others to poison
/// a client's cache (RFC 5452 §6).
fn retain_chain(name: &Name, answers: &mut Vec<Record>) {
    let mut chain = vec![name.clone()];
    for _ in 0..ALIASES_MAX {
        let known = chain.len();
        for record in answers.iter() {
            if let RData::CNAME(alias) = &record.data
                && chain.contains(&record.name)
                && !chain.contains(&alias.0)
                && chain.len() <= ALIASES_MAX
            {
                chain.push(alias.0.clone());
            }
        }
        if chain.len() == known {
            break;
        }
    }
    answers.retain(|record| chain.contains(&record.name));
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::rdata::svcb::{Alpn, IpHint, SvcParamKey};
    use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, HTTPS, MX, NAPTR, NS, PTR, SRV, TXT};
    use hickory_resolver::proto::serialize::binary::{BinDecodable as _, BinDecoder};

    use super::*;
    use crate::dns::records::address;

    const INSIDE: &str = "Web.Shop.svc.Cluster.Local.";
    const OUTSIDE: &str = "web.example.com.";

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn passes(data: &RData) -> bool {
        is_outside(data, &["127.64.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()])
    }

    /// Data of a type as a client's decoder gets it from the wire.
    fn of_wire(kind: u16, data: &[u8]) -> RData {
        let length = u16::try_from(data.len()).unwrap();
        let head = [&[0][..], &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 60], &length.to_be_bytes()].concat();
        let bytes = [&head, data].concat();
        Record::read(&mut BinDecoder::new(&bytes)).unwrap().data
    }

    #[test]
    fn addresses_of_the_cluster_are_removed() {
        for (ip, outside) in [
            ("127.64.0.1", false),
            ("::ffff:127.64.0.1", false),
            ("fd00::1", false),
            ("192.0.2.1", true),
            ("2001:db8::1", true),
        ] {
            assert_eq!(passes(&address(&name(OUTSIDE), ip.parse().unwrap()).data), outside, "{ip}");
        }
    }

    #[test]
    fn address_hints_into_the_cluster_are_removed_with_their_record() {
        let v4 = |ips: &[&str]| {
            let hint = IpHint(ips.iter().map(|ip| A(ip.parse().unwrap())).collect());
            (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(hint))
        };
        let v6 = |ips: &[&str]| {
            let hint = IpHint(ips.iter().map(|ip| AAAA(ip.parse().unwrap())).collect());
            (SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(hint))
        };
        let alpn = (SvcParamKey::Alpn, SvcParamValue::Alpn(Alpn(vec!["h2".into()])));
        for (target, hints, outside) in [
            (".", vec![], true),
            (OUTSIDE, vec![v4(&["192.0.2.1"]), v6(&["2001:db8::1"])], true),
            (INSIDE, vec![], false),
            (".", vec![v4(&["127.64.0.1"])], false),
            (".", vec![v4(&["192.0.2.1", "127.64.0.1"])], false),
            (".", vec![v4(&["192.0.2.1"]), v6(&["fd00::1"])], false),
            (".", vec![v6(&["2001:db8::1", "::ffff:127.64.0.1"])], false),
        ] {
            let parameters = [&[alpn.clone()][..], &hints].concat();
            let service = SVCB::new(1, name(target), parameters);
            assert_eq!(passes(&RData::SVCB(service.clone())), outside, "{service}");
            assert_eq!(passes(&RData::HTTPS(HTTPS(service.clone()))), outside, "{service}");
        }
        // SvcPriority 1, target `.`, key 4 with one address.
        let wire = |ip: [u8; 4]| [&[0, 1, 0, 0, 4, 0, 4][..], &ip].concat();
        for kind in [64, 65] {
            assert!(!passes(&of_wire(kind, &wire([127, 64, 0, 1]))), "{kind}");
            assert!(passes(&of_wire(kind, &wire([192, 0, 2, 1]))), "{kind}");
        }
    }

    #[test]
    fn names_of_the_cluster_are_removed() {
        let of = |target: &str| {
            let (target, none) = (name(target), || Vec::new().into_boxed_slice());
            [
                RData::CNAME(CNAME(target.clone())),
                RData::PTR(PTR(target.clone())),
                RData::NS(NS(target.clone())),
                RData::MX(MX::new(10, target.clone())),
                RData::SRV(SRV::new(0, 1, 80, target.clone())),
                RData::NAPTR(NAPTR::new(1, 1, none(), none(), none(), target)),
            ]
        };
        for (inside, outside) in of(INSIDE).iter().zip(&of(OUTSIDE)) {
            assert!(!passes(inside) && passes(outside), "{inside:?}");
        }
        assert!(passes(&RData::CNAME(CNAME(name("notcluster.local.")))));
    }

    #[test]
    fn other_types_with_addresses_are_removed() {
        let ip = [127, 64, 0, 1];
        for (kind, code, data) in [
            ("A6", 38, [&[96][..], &ip, &[0]].concat()),
            ("APL", 42, [&[0, 1, 32, 4][..], &ip].concat()),
            ("IPSECKEY", 45, [&[10, 1, 2][..], &ip, &[1, 3, 81]].concat()),
            ("AMTRELAY", 260, [&[10, 1][..], &ip].concat()),
            ("WKS", 11, [&ip[..], &[6, 0, 0, 64]].concat()),
            ("L32", 105, [&[0, 10][..], &ip].concat()),
            ("L64", 106, vec![0, 10, 0xfd, 0, 0, 0, 0, 0, 0, 0]),
            ("HIP", 55, vec![0, 5, 0, 0]),
            ("DNAME", 39, vec![7, b'c', b'l', b'u', b's', b't', b'e', b'r', 5, b'l', b'o', b'c', b'a', b'l', 0]),
            ("URI", 256, [&[0, 10, 0, 1][..], b"http://127.64.0.1/"].concat()),
            ("NULL", 10, ip.to_vec()),
            ("of private use", 65_280, ip.to_vec()),
        ] {
            assert!(!passes(&of_wire(code, &data)), "{kind}");
        }
    }

    #[test]
    fn types_without_hosts_pass() {
        assert!(passes(&RData::TXT(TXT::new(vec!["v=spf1 -all".into()]))));
        for (kind, code, data) in [
            ("CAA", 257, b"\x00\x05issueca.example".to_vec()),
            ("SSHFP", 44, [&[1, 2][..], &[7; 32]].concat()),
            ("TLSA", 52, [&[3, 1, 1][..], &[7; 32]].concat()),
            ("LOC", 29, vec![0; 16]),
            ("DS", 43, [&[0, 1, 8, 2][..], &[7; 32]].concat()),
        ] {
            assert!(passes(&of_wire(code, &data)), "{kind}");
        }
    }

    #[test]
    fn an_alias_into_the_cluster_ends_the_chain() {
        let alias = |from: &str, to: &str| Record::from_rdata(name(from), 60, RData::CNAME(CNAME(name(to))));
        let kept = alias("evil.test.", OUTSIDE);
        let planted = address(&name(INSIDE), "192.0.2.1".parse().unwrap());
        let mut answers = vec![kept.clone(), alias(OUTSIDE, INSIDE), planted];
        retain_answers(&name("evil.test."), &mut answers, &[]);
        assert_eq!(answers, [kept]);
    }

    #[test]
    fn records_of_other_names_are_removed() {
        let alias = |from: &str, to: &str| Record::from_rdata(name(from), 60, RData::CNAME(CNAME(name(to))));
        let address = |of: &str| crate::dns::records::address(&name(of), "192.0.2.1".parse().unwrap());
        // In any order, in any case, and with a loop.
        let chain =
            [address("c.test."), alias("b.test.", "c.test."), alias("A.test.", "b.test."), alias("b.test.", "a.test.")];
        let mut answers = [&chain[..], &[address("victim.test."), alias("victim.test.", "a.test.")]].concat();
        retain_chain(&name("a.TEST."), &mut answers);
        assert_eq!(answers, chain);
        let mut long: Vec<_> = (0..100).map(|n| alias(&format!("{n}.test."), &format!("{}.test.", n + 1))).collect();
        retain_chain(&name("0.test."), &mut long);
        assert_eq!(long.len(), ALIASES_MAX + 1);
    }
}
