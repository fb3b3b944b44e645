//! What a host name or address means to a pod: cluster DNS as data (kubernetes/dns specification 1.1.0), with the search
//! path of `dnsPolicy: ClusterFirst`. Pure.

use std::net::{IpAddr, Ipv4Addr};

use machinery_api::ObjectKey;
use machinery_api::names::CLUSTER_DOMAIN;

/// Where a call goes.
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
    /// A name that cluster DNS is not responsible for.
    Outside(String),
    /// A name in the cluster's domain that doesn't exist.
    Unknown,
}

/// What `host` means to a pod in `namespace`; `exists` knows the Services, and the names of their endpoints.
#[must_use]
pub fn target(host: &str, namespace: &str, exists: impl Fn(&ObjectKey, Option<&str>) -> bool) -> Target {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return if is_own_loopback(ip) { Target::Own } else { Target::Ip(ip) };
    }
    let absolute = host.ends_with('.');
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    if name == "localhost" {
        return Target::Own;
    }
    // With ndots:5 the search path comes first for every shorter name.
    if !absolute && name.split('.').count() <= 5 {
        for suffix in
            [format!("{namespace}.svc.{CLUSTER_DOMAIN}"), format!("svc.{CLUSTER_DOMAIN}"), CLUSTER_DOMAIN.to_owned()]
        {
            if let found @ (Target::Service(_) | Target::Endpoint(..) | Target::Ip(_)) =
                in_cluster(&format!("{name}.{suffix}"), &exists)
            {
                return found;
            }
        }
    }
    in_cluster(&name, &exists)
}

/// A pod's own loopback is 127.0.0.0/16 and ::1 (contract.md §3): the rest of 127.0.0.0/8 has the cluster's addresses.
fn is_own_loopback(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..2] == [127, 0],
        IpAddr::V6(ip) => ip.is_loopback(),
    }
}

fn in_cluster(name: &str, exists: &impl Fn(&ObjectKey, Option<&str>) -> bool) -> Target {
    let Some(inside) = name.strip_suffix(CLUSTER_DOMAIN).and_then(|rest| rest.strip_suffix('.')) else {
        return if name == CLUSTER_DOMAIN { Target::Unknown } else { Target::Outside(name.to_owned()) };
    };
    let labels: Vec<&str> = inside.split('.').collect();
    match labels.as_slice() {
        [service, namespace, "svc"] => {
            let key = ObjectKey::new(*namespace, *service);
            if exists(&key, None) { Target::Service(key) } else { Target::Unknown }
        }
        [host, service, namespace, "svc"] => {
            let key = ObjectKey::new(*namespace, *service);
            if exists(&key, Some(host)) { Target::Endpoint(key, (*host).to_owned()) } else { Target::Unknown }
        }
        [dashed, _namespace, "pod"] => {
            dashed.replace('-', ".").parse::<Ipv4Addr>().map_or(Target::Unknown, |ip| Target::Ip(ip.into()))
        }
        _ => Target::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(host: &str) -> Target {
        let known = [ObjectKey::new("shop", "catalog"), ObjectKey::new("default", "kubernetes")];
        target(host, "shop", |key, host| known.contains(key) && host.is_none_or(|host| host == "one"))
    }

    #[test]
    fn names_mean_what_dns_says() {
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
        let of =
            |host: &str| target(host, "shop", |key, host| known.contains(key) && host.is_none_or(|host| host == "one"));
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
