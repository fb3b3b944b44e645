//! `/etc/hosts` of a pod with `hostAliases`, in the format of upstream's kubelet, for programs that read the file.
//! Outgoing calls of guests resolve names by [`super::names`]. Pure.

use std::fmt::Write as _;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use super::names;

/// The constant head of the file.
const LOCAL: &str = "127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
";

/// The file's text; `None` if the pod has no aliases.
pub(crate) fn text(pod: &Pod, ip: IpAddr) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let aliases = spec.host_aliases.as_ref().filter(|aliases| !aliases.is_empty())?;
    let of = if spec.host_network == Some(true) { " (host network)" } else { "" };
    let mut text = format!("# Kubernetes-managed hosts file{of}.\n{LOCAL}");
    let (name, domain) = names::host(pod);
    // A write to a `String` never fails.
    let _ = match domain {
        Some(domain) => writeln!(text, "{ip}\t{name}.{domain}\t{name}"),
        None => writeln!(text, "{ip}\t{name}"),
    };
    text.push_str("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        let _ = writeln!(text, "{}\t{names}", alias.ip);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(spec: Value) -> Option<String> {
        let pod = json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec});
        text(&serde_json::from_value(pod).unwrap(), "10.0.0.5".parse().unwrap())
    }

    #[test]
    fn aliases_stand_below_the_pods_own_names() {
        assert_eq!(of(json!({"containers": []})), None);
        let aliases = json!([{"ip": "192.0.2.1", "hostnames": ["foo", "bar"]}, {"ip": "::2", "hostnames": ["six"]}]);
        let plain = of(json!({"containers": [], "hostAliases": aliases})).unwrap();
        assert!(plain.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{plain}");
        let end = "10.0.0.5\tweb-0\n\n# Entries added by HostAliases.\n192.0.2.1\tfoo\tbar\n::2\tsix\n";
        assert!(plain.ends_with(end), "{plain}");
        let named = json!({"containers": [], "hostAliases": aliases, "subdomain": "set", "hostNetwork": true});
        let named = of(named).unwrap();
        assert!(named.starts_with("# Kubernetes-managed hosts file (host network).\n"), "{named}");
        assert!(named.contains("\n10.0.0.5\tweb-0.set.shop.svc.cluster.local\tweb-0\n"), "{named}");
    }
}
