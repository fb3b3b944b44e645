//! The names of cluster DNS (the Kubernetes DNS specification 1.1.0): one reading for look-ups of guests and for
//! queries on the wire. Pure.

use std::net::IpAddr;

use machinery_api::ObjectKey;
use machinery_api::names::CLUSTER_DOMAIN;

use crate::names::published::undashed;

/// A name below the cluster's domain, by its form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClusterName<'a> {
    /// `svc` or `pod`: a node of the tree without records.
    Branch,
    /// `dns-version`: the version of the specification.
    Version,
    /// `ns.dns`: the name server.
    NameServer,
    /// `NAMESPACE.svc`.
    Namespace(&'a str),
    /// `NAMESPACE.pod`.
    PodNamespace,
    /// `SERVICE.NAMESPACE.svc`.
    Service(ObjectKey),
    /// `HOST.SERVICE.NAMESPACE.svc`.
    Endpoint(ObjectKey, &'a str),
    /// `_PORT._PROTOCOL.SERVICE.NAMESPACE.svc`.
    Port(ObjectKey, PortName<'a>),
    /// `A-B-C-D.NAMESPACE.pod`.
    Pod(IpAddr),
    /// No name of the specification.
    Unknown,
}

/// A named port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortName<'a> {
    pub(crate) port: &'a str,
    pub(crate) protocol: &'a str,
}

impl<'a> ClusterName<'a> {
    /// Parses a name in lower case, without the cluster's domain and without dots at its ends.
    pub(crate) fn parse(inside: &'a str) -> Self {
        // The longest form has five labels.
        let mut labels = [""; 6];
        let mut count = 0;
        for label in inside.split('.') {
            if label.is_empty() || count == labels.len() {
                return Self::Unknown;
            }
            labels[count] = label;
            count += 1;
        }
        let key = |namespace: &str, service: &str| ObjectKey::new(namespace, service);
        match &labels[..count] {
            ["svc" | "pod"] => Self::Branch,
            ["dns-version"] => Self::Version,
            ["ns", "dns"] => Self::NameServer,
            ["dns"] => Self::Branch,
            [namespace, "svc"] => Self::Namespace(namespace),
            [_, "pod"] => Self::PodNamespace,
            [service, namespace, "svc"] => Self::Service(key(namespace, service)),
            [protocol, service, namespace, "svc"] if protocol.starts_with('_') => {
                // The node above a named port: it exists if the port's protocol does.
                Self::Port(key(namespace, service), PortName { port: "", protocol: &protocol[1..] })
            }
            [host, service, namespace, "svc"] => Self::Endpoint(key(namespace, service), host),
            [port, protocol, service, namespace, "svc"] => match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
                (Some(port), Some(protocol)) if !port.is_empty() => {
                    Self::Port(key(namespace, service), PortName { port, protocol })
                }
                _ => Self::Unknown,
            },
            [dashed, _, "pod"] => undashed(dashed).map_or(Self::Unknown, Self::Pod),
            _ => Self::Unknown,
        }
    }
}

/// The cluster DNS name of a Service, or of an endpoint of it.
pub(crate) fn in_cluster(host: Option<&str>, key: &ObjectKey) -> String {
    let host = host.map_or_else(String::new, |host| format!("{host}."));
    format!("{host}{}.{}.svc.{CLUSTER_DOMAIN}", key.name, key.namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_recognized() {
        let web = || ObjectKey::new("shop", "web");
        for (name, parsed) in [
            ("svc", ClusterName::Branch),
            ("dns-version", ClusterName::Version),
            ("ns.dns", ClusterName::NameServer),
            ("shop.svc", ClusterName::Namespace("shop")),
            ("shop.pod", ClusterName::PodNamespace),
            ("web.shop.svc", ClusterName::Service(web())),
            ("web-0.web.shop.svc", ClusterName::Endpoint(web(), "web-0")),
            ("_http._tcp.web.shop.svc", ClusterName::Port(web(), PortName { port: "http", protocol: "tcp" })),
            ("_tcp.web.shop.svc", ClusterName::Port(web(), PortName { port: "", protocol: "tcp" })),
            ("127-66-0-2.shop.pod", ClusterName::Pod("127.66.0.2".parse().unwrap())),
            ("2001-db8--1.shop.pod", ClusterName::Pod("2001:db8::1".parse().unwrap())),
        ] {
            assert_eq!(ClusterName::parse(name), parsed, "{name}");
        }
        for name in
            ["", ".", "web", "web.shop", "a.b.web.shop.svc", "_._tcp.web.shop.svc", "a.b.c.d.e.f.svc", "x.pod.pod"]
        {
            assert_eq!(ClusterName::parse(name), ClusterName::Unknown, "{name}");
        }
    }
}
