//! Answers of cluster DNS as a function of the question and the routes (the Kubernetes DNS specification 1.1.0; where
//! it is silent, CoreDNS' `kubernetes` plugin with `pods insecure`). Pure.
//!
//! Names and their endpoints are those by which guests' calls are resolved ([`crate::names::cluster_name`],
//! [`crate::names::published`]).

use std::collections::HashSet;
use std::net::IpAddr;

use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use ipnet::IpNet;
use machinery_api::ObjectKey;
use machinery_api::names::CLUSTER_DOMAIN;

use crate::dns::records::{self, ZONE, absolute, is_of_type};
use crate::names::cluster_name::{ClusterName, PortName, in_cluster};
use crate::names::published::{Published, PublishedPort};
use crate::routing::snapshot::RouteSnapshot;

/// Maximum chained aliases within the cluster (CoreDNS' limit): a longer chain is likely a loop.
const ALIASES_MAX: usize = 8;

/// The data of cluster DNS.
pub(crate) struct Zone<'a> {
    pub(crate) routes: &'a RouteSnapshot,
    /// The Services' and the pods' ranges: their reverse names are answered here and nowhere else.
    pub(crate) cidrs: &'a [IpNet],
    /// The server's own address in the cluster.
    pub(crate) server: Option<IpAddr>,
    /// Serial number of the zone: the time in seconds, as CoreDNS has it.
    pub(crate) serial: u32,
    /// Whether `routes` is complete: before, a missing name proves nothing.
    pub(crate) synced: bool,
    /// Maximum records of an answer: further ones would be truncated.
    pub(crate) records_max: usize,
}

/// What a question gets.
#[derive(Debug, PartialEq)]
pub(crate) enum Decision {
    /// A name of the cluster.
    Answer(ClusterAnswer),
    /// Any other name.
    Forward,
}

/// An authoritative answer.
#[derive(Debug, PartialEq)]
pub(crate) struct ClusterAnswer {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
    /// The external name that the last answer leads to, whose records are to be added.
    pub(crate) alias: Option<Name>,
}

impl ClusterAnswer {
    fn of(answers: Vec<Record>) -> Self {
        Self { code: ResponseCode::NoError, answers, authorities: Vec::new(), additionals: Vec::new(), alias: None }
    }

    /// Without records, with the zone's SOA.
    fn negative(code: ResponseCode, zone: &Name, serial: u32) -> Self {
        Self { code, authorities: vec![records::soa(zone, serial)], ..Self::of(Vec::new()) }
    }
}

/// The records of a name.
enum NameRecords {
    /// No such name.
    Nothing,
    /// A name without records, at least of this type.
    Empty,
    Addresses(Vec<IpAddr>),
    Targets(Vec<SrvTarget>),
    Alias(Name),
    Records(Vec<Record>),
}

/// The target of an SRV record.
struct SrvTarget {
    name: Name,
    ip: IpAddr,
    port: u16,
}

/// Answers a question of class IN.
pub(crate) fn answer(zone: &Zone<'_>, query: &Query) -> Decision {
    let (name, kind) = (query.name(), query.query_type());
    if ZONE.zone_of(name) {
        return Decision::Answer(zone.answer_cluster_name(name, kind, ALIASES_MAX));
    }
    let reverse = records::plain(name).and_then(|name| records::reverse_address(&name));
    reverse.map_or(Decision::Forward, |ip| zone.answer_reverse(name, ip, kind))
}

impl Zone<'_> {
    fn answer_cluster_name(&self, name: &Name, kind: RecordType, aliases: usize) -> ClusterAnswer {
        match self.find(name, kind) {
            NameRecords::Nothing => self.negative(ResponseCode::NXDomain, &ZONE),
            NameRecords::Empty => self.negative(ResponseCode::NoError, &ZONE),
            NameRecords::Records(records) => ClusterAnswer::of(records),
            NameRecords::Addresses(ips) => {
                let answers: Vec<Record> = ips.iter().map(|ip| records::address(name, *ip)).collect();
                if answers.is_empty() {
                    self.negative(ResponseCode::NoError, &ZONE)
                } else {
                    ClusterAnswer::of(answers)
                }
            }
            NameRecords::Targets(targets) => self.srv_answer(name, targets),
            NameRecords::Alias(target) => self.alias_answer(name, target, kind, aliases),
        }
    }

    /// Before the table is complete, the absence of a name is not known (CoreDNS answers SERVFAIL then, too).
    fn negative(&self, code: ResponseCode, zone: &Name) -> ClusterAnswer {
        match code {
            ResponseCode::NXDomain if !self.synced => {
                ClusterAnswer { code: ResponseCode::ServFail, ..ClusterAnswer::of(Vec::new()) }
            }
            code => ClusterAnswer::negative(code, zone, self.serial),
        }
    }

    fn find(&self, name: &Name, kind: RecordType) -> NameRecords {
        let Some(text) = records::plain(name) else { return NameRecords::Nothing };
        let Some(inside) = text.strip_suffix(CLUSTER_DOMAIN) else { return NameRecords::Nothing };
        if inside.is_empty() {
            return match kind {
                RecordType::SOA => NameRecords::Records(vec![records::soa(name, self.serial)]),
                RecordType::NS => NameRecords::Records(vec![records::ns(name)]),
                _ => NameRecords::Empty,
            };
        }
        match ClusterName::parse(inside.trim_end_matches('.')) {
            ClusterName::Branch | ClusterName::PodNamespace => NameRecords::Empty,
            ClusterName::Version if kind == RecordType::TXT => NameRecords::Records(vec![records::version(name)]),
            ClusterName::Version => NameRecords::Empty,
            ClusterName::NameServer => addresses(self.server.into_iter(), kind),
            ClusterName::Namespace(namespace) if self.routes.has_namespace(namespace) => NameRecords::Empty,
            ClusterName::Pod(ip) => addresses(std::iter::once(ip), kind),
            ClusterName::Service(key) => self.of_service(&key, None, None, kind),
            ClusterName::Endpoint(key, host) => self.of_service(&key, Some(host), None, kind),
            ClusterName::Port(key, port) => self.of_service(&key, None, Some(port), kind),
            ClusterName::Namespace(_) | ClusterName::Unknown => NameRecords::Nothing,
        }
    }

    /// The records of a Service, of one of its endpoints, or of one of its ports.
    fn of_service(
        &self,
        key: &ObjectKey,
        host: Option<&str>,
        port: Option<PortName<'_>>,
        kind: RecordType,
    ) -> NameRecords {
        let Some(routes) = self.routes.of(key) else { return NameRecords::Nothing };
        let published = &routes.published;
        if let Some(target) = &published.external_name {
            let target = absolute(target).filter(|_| host.is_none() && port.is_none());
            return target.map_or(NameRecords::Nothing, NameRecords::Alias);
        }
        if !exists(published, host, port) {
            return NameRecords::Nothing;
        }
        // The node above named ports: a name without records.
        if port.is_some_and(|port| port.port.is_empty()) {
            return NameRecords::Empty;
        }
        let direct = host.is_some() || published.is_headless();
        match kind {
            RecordType::A | RecordType::AAAA if !direct => addresses(published.cluster_ips.iter().copied(), kind),
            RecordType::A | RecordType::AAAA => {
                let mut seen = HashSet::new();
                let all = published.of_host(host).iter().filter(|one| any(&one.ports, port));
                let unique = all.map(|one| one.ip).filter(|ip| is_of_type(*ip, kind) && seen.insert(*ip));
                NameRecords::Addresses(unique.take(self.records_max).collect())
            }
            RecordType::SRV if !direct => {
                let Some(target) = service_name(None, key) else { return NameRecords::Empty };
                let ports = published.ports.iter().filter(|one| matches(one, port));
                let of_port = |one: &PublishedPort| {
                    let number = one.number;
                    let target = target.clone();
                    published.cluster_ips.iter().map(move |ip| SrvTarget {
                        name: target.clone(),
                        ip: *ip,
                        port: number,
                    })
                };
                NameRecords::Targets(ports.flat_map(of_port).take(self.records_max).collect())
            }
            RecordType::SRV => {
                let mut targets = Vec::new();
                for endpoint in published.of_host(host) {
                    let Some(name) = service_name(Some(&endpoint.host), key) else { continue };
                    let ports = endpoint.ports.iter().filter(|one| matches(one, port));
                    targets.extend(ports.map(|one| SrvTarget {
                        name: name.clone(),
                        ip: endpoint.ip,
                        port: one.number,
                    }));
                    if targets.len() >= self.records_max {
                        break;
                    }
                }
                NameRecords::Targets(targets)
            }
            _ => NameRecords::Empty,
        }
    }

    /// SRV records of equal weights, each target once, with the targets' addresses.
    fn srv_answer(&self, name: &Name, targets: Vec<SrvTarget>) -> ClusterAnswer {
        if targets.is_empty() {
            return self.negative(ResponseCode::NoError, &ZONE);
        }
        let mut seen = HashSet::new();
        let unique = targets.iter().filter(|one| seen.insert((one.name.clone(), one.port)));
        let unique: Vec<&SrvTarget> = unique.collect();
        // CoreDNS: 100 shared by all, at least 1 each.
        let weight = u16::try_from(100 / unique.len()).unwrap_or(1).max(1);
        let answers = unique.iter().map(|one| records::srv(name, weight, one.port, one.name.clone())).collect();
        let mut seen = HashSet::new();
        let with_address = targets.iter().filter(|one| seen.insert((one.name.clone(), one.ip)));
        let additionals = with_address.map(|one| records::address(&one.name, one.ip)).collect();
        ClusterAnswer { additionals, ..ClusterAnswer::of(answers) }
    }

    /// An alias, followed within the cluster; a name outside is left to the caller.
    fn alias_answer(&self, name: &Name, target: Name, kind: RecordType, aliases: usize) -> ClusterAnswer {
        let mut answer = ClusterAnswer::of(vec![records::cname(name, target.clone())]);
        if kind == RecordType::CNAME {
            return answer;
        }
        if !ZONE.zone_of(&target) {
            answer.alias = Some(target);
            return answer;
        }
        if aliases == 0 || target == *name {
            return ClusterAnswer { code: ResponseCode::ServFail, ..ClusterAnswer::of(Vec::new()) };
        }
        let next = self.answer_cluster_name(&target, kind, aliases - 1);
        answer.answers.extend(next.answers);
        ClusterAnswer { answers: answer.answers, ..next }
    }

    /// The names of an address. One outside the cluster's ranges is left to others, unless an endpoint has it.
    fn answer_reverse(&self, name: &Name, ip: IpAddr, kind: RecordType) -> Decision {
        let names = self.routes.names_of(ip);
        let range = self.cidrs.iter().find(|cidr| cidr.contains(&ip));
        let zone = range.and_then(|cidr| records::reverse_zone(ip, cidr));
        match (names.is_empty(), zone) {
            (true, None) => Decision::Forward,
            (true, Some(zone)) => Decision::Answer(self.negative(ResponseCode::NXDomain, &zone)),
            (false, zone) if kind != RecordType::PTR => {
                let zone = zone.unwrap_or_else(|| name.clone());
                Decision::Answer(self.negative(ResponseCode::NoError, &zone))
            }
            (false, _) => {
                let targets = names.iter().take(self.records_max).filter_map(|target| absolute(target));
                Decision::Answer(ClusterAnswer::of(targets.map(|target| records::ptr(name, target)).collect()))
            }
        }
    }
}

fn addresses(all: impl Iterator<Item = IpAddr>, kind: RecordType) -> NameRecords {
    let found: Vec<IpAddr> = all.filter(|ip| is_of_type(*ip, kind)).collect();
    if found.is_empty() { NameRecords::Empty } else { NameRecords::Addresses(found) }
}

/// Whether a name below a Service's, or the Service's own, exists. A headless Service without endpoints has none, as
/// with CoreDNS.
fn exists(published: &Published, host: Option<&str>, port: Option<PortName<'_>>) -> bool {
    if host.is_some() || published.is_headless() {
        let all = published.of_host(host);
        return match port {
            None => !all.is_empty(),
            Some(_) => all.iter().any(|endpoint| any(&endpoint.ports, port)),
        };
    }
    port.is_none() || any(&published.ports, port)
}

fn any(ports: &[PublishedPort], wanted: Option<PortName<'_>>) -> bool {
    wanted.is_none() || ports.iter().any(|port| matches(port, wanted))
}

/// Whether a port is the wanted one; an empty name stands for all ports of the protocol.
fn matches(port: &PublishedPort, wanted: Option<PortName<'_>>) -> bool {
    wanted
        .is_none_or(|wanted| port.protocol == wanted.protocol && (wanted.port.is_empty() || *port.name == *wanted.port))
}

/// The name of a Service, or of an endpoint of it.
fn service_name(host: Option<&str>, key: &ObjectKey) -> Option<Name> {
    absolute(&in_cluster(host, key))
}
