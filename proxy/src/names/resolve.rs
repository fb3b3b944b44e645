//! Resolves a host name or address as a pod sees it: cluster DNS as data (kubernetes/dns specification 1.1.0) with the
//! pod's search path. Pure.

use std::net::IpAddr;

use machinery_api::ObjectKey;
use machinery_api::names::CLUSTER_DOMAIN;
use machinery_serve::net::{NamePolicy, PodNames, is_pod_loopback};

use crate::names::cluster_name::ClusterName;

/// Destination of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The caller's own pod (its loopback).
    Own,
    /// A Service, by name.
    Service(ObjectKey),
    /// One endpoint of a Service, by its host name.
    Endpoint(ObjectKey, String),
    /// An address.
    Ip(IpAddr),
    /// A name outside the cluster's domain.
    Outside(String),
    /// A name in the cluster's domain that doesn't exist.
    Unknown,
}

/// Default `ndots` of `dnsPolicy: ClusterFirst` and of a host's resolv.conf.
const NDOTS_CLUSTER: usize = 5;
const NDOTS_HOST: usize = 1;

/// The caller's DNS settings: the same name may resolve differently for different pods.
#[derive(Debug, Clone, Copy)]
pub struct NameQuery<'a> {
    /// The caller's namespace.
    pub namespace: &'a str,
    /// DNS settings of the pod's spec.
    pub names: &'a PodNames,
    /// Whether the first of the pod's own name servers is the cluster's.
    pub own_is_cluster: bool,
}

impl NameQuery<'_> {
    fn uses_cluster_dns(&self) -> bool {
        match self.names.policy {
            NamePolicy::Cluster => true,
            NamePolicy::Host => false,
            NamePolicy::Own => self.own_is_cluster,
        }
    }

    /// The candidates for `name` in search order (resolv.conf(5)). Candidates from the search path end with a dot, so that no
    /// further search path applies to them.
    fn candidates(&self, name: &str, absolute: bool) -> impl Iterator<Item = String> {
        let cluster = self.names.policy == NamePolicy::Cluster;
        let default = if cluster { NDOTS_CLUSTER } else { NDOTS_HOST };
        let plain_last = name.matches('.').count() < self.names.ndots.unwrap_or(default);
        let plain = move || match absolute || self.names.policy == NamePolicy::Own {
            true => format!("{name}."),
            false => name.to_owned(),
        };
        let parts = [Some(self.namespace), None].into_iter().filter(move |_| cluster && !absolute);
        let searched = parts.map(move |namespace| match namespace {
            Some(namespace) => format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}."),
            None => format!("{name}.svc.{CLUSTER_DOMAIN}."),
        });
        let domain = (cluster && !absolute).then(|| format!("{name}.{CLUSTER_DOMAIN}."));
        let own = self.names.searches.iter().filter(move |_| !absolute).map(move |search| format!("{name}.{search}."));
        let first = (absolute || !plain_last).then(plain);
        let last = (!absolute && plain_last).then(plain);
        first.into_iter().chain(searched).chain(domain).chain(own).chain(last)
    }
}

/// The candidate destinations of `host`, most likely first: external names, of which the first that exists is meant, then at
/// most one cluster destination or address. `exists` returns whether a Service, or a named endpoint of it, exists. Never empty.
#[must_use]
pub fn targets(host: &str, query: NameQuery<'_>, exists: impl Fn(&ObjectKey, Option<&str>) -> bool) -> Vec<Target> {
    let address = |ip: IpAddr| if is_pod_loopback(ip) { Target::Own } else { Target::Ip(ip) };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return vec![address(ip)];
    }
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    if let Some(ip) = query.names.hosts(&name).next() {
        return vec![address(ip)];
    }
    if name == "localhost" && !query.names.dns_only {
        return vec![Target::Own];
    }
    let mut found = Vec::new();
    for candidate in query.candidates(&name, host.ends_with('.')) {
        let target = match query.uses_cluster_dns() {
            true => in_cluster(&candidate, &exists),
            false => Target::Outside(candidate),
        };
        match target {
            Target::Unknown => {}
            Target::Outside(_) => found.push(target),
            definite => {
                found.push(definite);
                break;
            }
        }
    }
    if found.is_empty() { vec![Target::Unknown] } else { found }
}

/// The destination of an absolute name, such as a Service's `externalName`: in the cluster or outside.
#[must_use]
pub fn absolute(name: &str, exists: impl Fn(&ObjectKey, Option<&str>) -> bool) -> Target {
    in_cluster(&format!("{}.", name.trim_end_matches('.').to_ascii_lowercase()), &exists)
}

fn in_cluster(candidate: &str, exists: &impl Fn(&ObjectKey, Option<&str>) -> bool) -> Target {
    let name = candidate.trim_end_matches('.');
    let Some(inside) = name.strip_suffix(CLUSTER_DOMAIN).and_then(|rest| rest.strip_suffix('.')) else {
        return if name == CLUSTER_DOMAIN { Target::Unknown } else { Target::Outside(candidate.to_owned()) };
    };
    match ClusterName::parse(inside) {
        ClusterName::Service(key) if exists(&key, None) => Target::Service(key),
        ClusterName::Endpoint(key, host) if exists(&key, Some(host)) => Target::Endpoint(key, host.to_owned()),
        ClusterName::Pod(ip) => Target::Ip(ip),
        _ => Target::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(host: &str) -> Target {
        let known = [ObjectKey::new("shop", "catalog"), ObjectKey::new("default", "kubernetes")];
        plain(host, |key, host| known.contains(key) && host.is_none_or(|host| host == "one"))
    }

    /// The target for a pod without DNS settings in its spec.
    fn plain(host: &str, exists: impl Fn(&ObjectKey, Option<&str>) -> bool) -> Target {
        let query = NameQuery { namespace: "shop", names: &PodNames::default(), own_is_cluster: false };
        let mut all = targets(host, query, exists);
        assert_eq!(all.len(), 1, "{host}: {all:?}");
        all.remove(0)
    }

    fn candidates(host: &str, names: &PodNames) -> Vec<String> {
        let known = ObjectKey::new("shop", "catalog");
        let own_is_cluster = names.servers.first() == Some(&"127.64.0.10".parse().unwrap());
        let query = NameQuery { namespace: "shop", names, own_is_cluster };
        let say = |target| match target {
            Target::Outside(name) => name,
            Target::Service(key) => format!("service {key}"),
            Target::Ip(ip) => ip.to_string(),
            other => format!("{other:?}"),
        };
        targets(host, query, |key, host| *key == known && host.is_none()).into_iter().map(say).collect()
    }

    #[test]
    fn a_pods_hosts_file_comes_first() {
        let hosts = [("db", "192.0.2.7"), ("catalog", "192.0.2.8"), ("here", "127.0.0.1")];
        let hosts = hosts.map(|(name, ip)| (name.into(), ip.parse().unwrap())).into();
        let names = PodNames { hosts, ..PodNames::default() };
        assert_eq!(candidates("DB", &names), ["192.0.2.7"]);
        assert_eq!(candidates("catalog.", &names), ["192.0.2.8"]);
        assert_eq!(candidates("here", &names), ["Own"]);
        assert_eq!(candidates("catalog.shop", &names), ["service shop/catalog"]);
        // A DNS-only query ignores the hosts file.
        let names = PodNames { dns_only: true, ..names };
        assert_eq!(candidates("DB", &names), ["db"]);
        assert_eq!(candidates("catalog.", &names), ["catalog."]);
        assert_eq!(candidates("catalog", &names), ["service shop/catalog"]);
        assert_eq!(candidates("localhost", &names), ["localhost"]);
        assert_eq!(candidates("192.0.2.7", &names), ["192.0.2.7"]);
    }

    #[test]
    fn policies_and_search_paths_are_resolv_confs() {
        let searches = vec!["corp.test".to_owned(), "shop.svc.cluster.local".to_owned()];
        let cluster = PodNames { searches: searches.clone(), ..PodNames::default() };
        assert_eq!(candidates("catalog", &cluster), ["service shop/catalog"]);
        assert_eq!(candidates("db", &cluster), ["db.corp.test.", "db"]);
        assert_eq!(candidates("db.", &cluster), ["db."]);
        let shallow = PodNames { ndots: Some(1), ..cluster.clone() };
        assert_eq!(candidates("a.test", &shallow), ["a.test", "a.test.corp.test."]);
        // Policies `Host` and `Own` don't resolve cluster names.
        let host = PodNames { policy: NamePolicy::Host, ..PodNames::default() };
        assert_eq!(candidates("catalog.shop.svc.cluster.local", &host), ["catalog.shop.svc.cluster.local"]);
        let servers = vec!["192.0.2.53".parse().unwrap()];
        let own = PodNames { policy: NamePolicy::Own, servers, searches, ..PodNames::default() };
        assert_eq!(candidates("catalog", &own), ["catalog.corp.test.", "catalog.shop.svc.cluster.local.", "catalog."]);
        // Unless the pod's own name server is the cluster's.
        let servers = vec!["127.64.0.10".parse().unwrap()];
        assert_eq!(candidates("catalog", &PodNames { servers, ..own }), ["catalog.corp.test.", "service shop/catalog"]);
        assert_eq!(candidates("nope.shop.svc.cluster.local", &PodNames::default()), ["Unknown"]);
    }

    #[test]
    fn names_resolve_as_cluster_dns() {
        let catalog = Target::Service(ObjectKey::new("shop", "catalog"));
        for name in [
            "catalog",
            "Catalog",
            "catalog.shop",
            "catalog.shop.svc",
            "catalog.shop.svc.cluster.local",
            "catalog.shop.svc.cluster.local.",
        ] {
            assert_eq!(of(name), catalog, "{name}");
        }
        assert_eq!(of("one.catalog"), Target::Endpoint(ObjectKey::new("shop", "catalog"), "one".into()));
        assert_eq!(of("kubernetes.default"), Target::Service(ObjectKey::new("default", "kubernetes")));
        assert_eq!(of("kubernetes"), Target::Outside("kubernetes".into()));
        assert_eq!(of("nope.shop.svc.cluster.local"), Target::Unknown);
        assert_eq!(of("127-66-0-2.shop.pod"), Target::Ip("127.66.0.2".parse().unwrap()));
        assert_eq!(of("example.com"), Target::Outside("example.com".into()));
    }

    #[test]
    fn a_service_shadows_only_the_endpoints_that_it_has() {
        let known = [ObjectKey::new("shop", "dev"), ObjectKey::new("shop", "com")];
        let of = |host: &str| plain(host, |key, host| known.contains(key) && host.is_none_or(|host| host == "one"));
        assert_eq!(of("api.dev"), Target::Outside("api.dev".into()));
        assert_eq!(of("example.com"), Target::Outside("example.com".into()));
        assert_eq!(of("one.dev"), Target::Endpoint(ObjectKey::new("shop", "dev"), "one".into()));
        assert_eq!(of("api.dev.shop.svc.cluster.local"), Target::Unknown);
    }

    #[test]
    fn loopback_is_the_pods_own() {
        for host in ["localhost", "127.0.0.1", "127.0.3.4", "[::1]"] {
            assert_eq!(of(host), Target::Own, "{host}");
        }
        assert_eq!(of("127.64.0.1"), Target::Ip("127.64.0.1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn no_name_panics(host in ".{0,80}") {
            let _ = of(&host);
        }
    }
}
