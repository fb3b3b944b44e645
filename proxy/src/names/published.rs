//! What cluster DNS publishes of a Service: its addresses, its ports, and its endpoints by host name (the Kubernetes DNS
//! specification 1.1.0, §2.3 and §2.4). Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ServiceSpec;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// A port, as SRV records publish it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPort {
    /// Its name; empty where it has none.
    pub name: Box<str>,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// Its number.
    pub number: u16,
}

/// An address of an endpoint under one host name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedEndpoint {
    /// The label below the Service's name, in lower case.
    pub host: Box<str>,
    /// The address.
    pub ip: IpAddr,
    /// Whether the endpoint has a host name of its own: not one made from its address.
    pub named: bool,
    /// The endpoint's ports, shared by all endpoints of its slice.
    pub ports: Arc<[PublishedPort]>,
}

/// The records of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// The target of a Service of type `ExternalName`, without a trailing dot.
    pub external_name: Option<Box<str>>,
    /// The ClusterIPs, of either family; none for headless Services.
    pub cluster_ips: Vec<IpAddr>,
    /// The Service's ports.
    pub ports: Vec<PublishedPort>,
    /// The endpoints, ordered by host name: ready ones, else serving ones of terminating pods (as requests are routed).
    pub endpoints: Vec<PublishedEndpoint>,
}

impl Published {
    /// The records of a Service with its slices.
    pub(crate) fn of(spec: &ServiceSpec, slices: Option<&BTreeMap<String, EndpointSlice>>) -> Self {
        if spec.type_.as_deref() == Some("ExternalName") {
            let name = spec.external_name.as_deref().unwrap_or_default().trim_end_matches('.');
            // CoreDNS publishes no address here either: an ExternalName is a name.
            let external_name = (!name.is_empty() && name.parse::<IpAddr>().is_err()).then(|| name.into());
            return Self { external_name, ..Self::default() };
        }
        let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let mut cluster_ips: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
        cluster_ips.sort_unstable();
        cluster_ips.dedup();
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            published_port(port.name.as_deref(), port.protocol.as_deref(), u16::try_from(port.port).ok()?)
        });
        let ports = ports.collect();
        let (mut ready, mut draining) = (Vec::new(), Vec::new());
        for slice in slices.into_iter().flat_map(BTreeMap::values) {
            collect(slice, &mut ready, &mut draining);
        }
        let mut endpoints = if ready.is_empty() { draining } else { ready };
        endpoints.sort_unstable_by(|a, b| (&a.host, a.ip).cmp(&(&b.host, b.ip)));
        // A moving pod may be in two slices; slices of other ports repeat an endpoint, which keeps all of its ports.
        endpoints.dedup_by(|next, kept| next.host == kept.host && next.ip == kept.ip && next.ports == kept.ports);
        Self { external_name: None, cluster_ips, ports, endpoints }
    }

    /// Whether names lead straight to endpoints.
    #[must_use]
    pub fn is_headless(&self) -> bool {
        self.cluster_ips.is_empty() && self.external_name.is_none()
    }

    /// The endpoints of a host name, or all.
    #[must_use]
    pub fn of_host(&self, host: Option<&str>) -> &[PublishedEndpoint] {
        let Some(host) = host else { return &self.endpoints };
        let from = self.endpoints.partition_point(|endpoint| *endpoint.host < *host);
        let count = self.endpoints[from..].partition_point(|endpoint| *endpoint.host == *host);
        &self.endpoints[from..from + count]
    }

    /// The addresses of the Service's name, or of one of its endpoints' names, each once.
    #[must_use]
    pub fn addresses(&self, host: Option<&str>) -> Vec<IpAddr> {
        if host.is_none() && !self.cluster_ips.is_empty() {
            return self.cluster_ips.clone();
        }
        let unique: std::collections::BTreeSet<IpAddr> = self.of_host(host).iter().map(|one| one.ip).collect();
        unique.into_iter().collect()
    }

    /// The endpoints whose addresses lead back to their names: those of headless Services, and those with a host name
    /// of their own.
    pub(crate) fn reverse(&self) -> impl Iterator<Item = &PublishedEndpoint> {
        let headless = self.is_headless();
        self.endpoints.iter().filter(move |endpoint| headless || endpoint.named)
    }
}

fn published_port(name: Option<&str>, protocol: Option<&str>, number: u16) -> Option<PublishedPort> {
    let protocol = match protocol {
        None | Some("TCP") => "tcp",
        Some("UDP") => "udp",
        Some("SCTP") => "sctp",
        Some(_) => return None,
    };
    Some(PublishedPort { name: name.unwrap_or_default().into(), protocol, number })
}

/// Adds the endpoints of one slice.
fn collect(slice: &EndpointSlice, ready: &mut Vec<PublishedEndpoint>, draining: &mut Vec<PublishedEndpoint>) {
    let ports = slice.ports.iter().flatten().filter_map(|port| {
        published_port(port.name.as_deref(), port.protocol.as_deref(), u16::try_from(port.port?).ok()?)
    });
    let ports: Arc<[PublishedPort]> = ports.collect();
    for endpoint in slice.endpoints.iter().flatten() {
        let list = match readiness(endpoint) {
            Readiness::Ready => &mut *ready,
            Readiness::Draining => &mut *draining,
            Readiness::Neither => continue,
        };
        // All addresses of an endpoint are equivalent (discovery.k8s.io/v1): the first is used, as for requests.
        let Some(ip) = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok()) else { continue };
        let own = endpoint.hostname.as_deref().filter(|name| !name.is_empty());
        let host = own.map_or_else(|| dashed(ip), str::to_ascii_lowercase).into_boxed_str();
        list.push(PublishedEndpoint { host, ip, named: own.is_some(), ports: ports.clone() });
    }
}

/// Whether an endpoint takes new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    /// Serving while its pod terminates: used where none is ready (KEP-1669).
    Draining,
    Neither,
}

/// The readiness of an endpoint. A missing condition counts as true (discovery.k8s.io/v1 `EndpointConditions`).
pub(crate) fn readiness(endpoint: &k8s_openapi::api::discovery::v1::Endpoint) -> Readiness {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
    match (ready, serving && terminating) {
        (true, _) => Readiness::Ready,
        (false, true) => Readiness::Draining,
        (false, false) => Readiness::Neither,
    }
}

/// An address as a label: dashes in place of dots or colons.
pub(crate) fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

/// The address of a pod's record, `a-b-c-d` or IPv6 with dashes for colons (CoreDNS, `pods insecure`).
pub(crate) fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.matches('-').count() == 3 && !label.contains("--");
    label.replace('-', if v4 { "." } else { ":" }).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(spec: Value, slices: &[Value]) -> Published {
        let slices: BTreeMap<String, EndpointSlice> = slices
            .iter()
            .enumerate()
            .map(|(index, slice)| (index.to_string(), serde_json::from_value(slice.clone()).unwrap()))
            .collect();
        Published::of(&serde_json::from_value(spec).unwrap(), Some(&slices))
    }

    fn slice(endpoints: Value) -> Value {
        json!({"metadata": {}, "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints})
    }

    #[test]
    fn endpoints_are_found_by_host_name() {
        let endpoints = json!([
            {"addresses": ["127.66.0.3"], "hostname": "Web-1"}, {"addresses": ["127.66.0.2"], "hostname": "web-0"},
            {"addresses": ["127.66.0.4"]}, {"addresses": ["127.66.0.5"], "conditions": {"ready": false}},
            {"addresses": ["127.66.0.6"], "conditions": {"ready": false, "serving": true, "terminating": true}}]);
        let published = of(json!({"clusterIP": "None", "ports": [{"port": 80}]}), &[slice(endpoints)]);
        assert!(published.is_headless());
        let hosts: Vec<&str> = published.endpoints.iter().map(|one| &*one.host).collect();
        assert_eq!(hosts, ["127-66-0-4", "web-0", "web-1"]);
        assert_eq!(published.addresses(Some("web-1")), ["127.66.0.3".parse::<IpAddr>().unwrap()]);
        assert!(published.addresses(Some("web")).is_empty());
        assert_eq!(published.addresses(None).len(), 3);
        assert_eq!(published.reverse().count(), 3);
    }

    #[test]
    fn terminating_endpoints_serve_where_none_is_ready() {
        let draining = json!([
            {"addresses": ["127.66.0.6"], "conditions": {"ready": false, "serving": true, "terminating": true}}]);
        assert_eq!(of(json!({"clusterIP": "None"}), &[slice(draining)]).addresses(None).len(), 1);
    }

    #[test]
    fn an_external_name_is_a_name() {
        let of = |name: &str| of(json!({"type": "ExternalName", "externalName": name}), &[]).external_name;
        assert_eq!(of("db.example.com."), Some("db.example.com".into()));
        assert_eq!(of("192.0.2.1"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn labels_of_addresses_go_both_ways() {
        for ip in ["127.66.0.2", "2001:db8::1", "::1"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(undashed(&dashed(ip)), Some(ip));
        }
        assert_eq!(undashed("1-2-3"), None);
        assert_eq!(undashed("1-2-3-x"), None);
    }
}
