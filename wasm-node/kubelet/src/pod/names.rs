//! A pod's host name and its name resolution, from `hostname`, `subdomain`, `hostAliases`, `dnsPolicy` and `dnsConfig`.
//! Pure.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig, PodSpec};
use machinery_api::names::CLUSTER_DOMAIN;
use machinery_serve::net::{NamePolicy, PodNames};

/// The maximum length of a host name and of an FQDN (Linux).
const HOST_NAME_CHARS_MAX: usize = 63;
const FQDN_CHARS_MAX: usize = 64;
/// A C library's bounds of these options.
const NDOTS_MAX: usize = 15;
const TIMEOUT_S_MAX: u64 = 30;
const ATTEMPTS_MAX: usize = 5;

/// The pod's host name and its domain.
pub(super) fn host(pod: &Pod) -> (String, Option<String>) {
    let short = |name: &str| {
        let label: String = name.chars().take(HOST_NAME_CHARS_MAX).collect();
        if label.len() < name.len() { label.trim_end_matches(['-', '.']).to_owned() } else { label }
    };
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    if let Some(name) = &spec.hostname_override {
        return (short(name), None);
    }
    let name = text(&spec.hostname).or_else(|| text(&pod.metadata.name)).unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let domain = text(&spec.subdomain).map(|subdomain| format!("{subdomain}.{namespace}.svc.{CLUSTER_DOMAIN}"));
    (short(&name), domain)
}

/// The value of the pod's `HOSTNAME`.
///
/// # Errors
/// The FQDN is requested and too long; the error is upstream's text.
pub(crate) fn host_name(pod: &Pod) -> Result<String, String> {
    let (name, domain) = host(pod);
    let as_fqdn = pod.spec.as_ref().and_then(|spec| spec.set_hostname_as_fqdn) == Some(true);
    let Some(domain) = domain.filter(|_| as_fqdn) else { return Ok(name) };
    let fqdn = format!("{name}.{domain}");
    let chars = fqdn.len();
    if chars > FQDN_CHARS_MAX {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long ({FQDN_CHARS_MAX} \
             characters is the max, {chars} characters requested)"
        ));
    }
    Ok(fqdn)
}

/// The pod's name resolution in the data plane.
pub(crate) fn of(pod: &Pod, ip: IpAddr) -> PodNames {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let (name, domain) = host(pod);
    // In the order of upstream's hosts file: the pod itself, then its aliases.
    let own = domain.map(|domain| format!("{name}.{domain}")).into_iter().chain([name]);
    let mut hosts: Vec<(Box<str>, IpAddr)> = own.map(|name| (name.to_ascii_lowercase().into(), ip)).collect();
    for alias in spec.host_aliases.iter().flatten() {
        let Ok(ip) = alias.ip.parse() else { continue };
        for name in alias.hostnames.iter().flatten() {
            hosts.push((plain(name).into(), ip));
        }
    }
    let policy = match spec.dns_policy.as_deref() {
        Some("Default") => NamePolicy::Host,
        Some("None") => NamePolicy::Own,
        // As upstream: only `ClusterFirstWithHostNet` selects the cluster's DNS there.
        Some("ClusterFirst") | None if spec.host_network == Some(true) => NamePolicy::Host,
        _ => NamePolicy::Cluster,
    };
    configured(PodNames { hosts: hosts.into(), policy, ..PodNames::default() }, spec.dns_config.as_ref())
}

fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn configured(mut names: PodNames, config: Option<&PodDNSConfig>) -> PodNames {
    let Some(config) = config else { return names };
    names.servers = config.nameservers.iter().flatten().filter_map(|server| server.parse().ok()).collect();
    let searches = config.searches.iter().flatten().map(|search| plain(search));
    names.searches = searches.filter(|search| !search.is_empty()).collect();
    for option in config.options.iter().flatten() {
        let number = option.value.as_deref().and_then(|value| value.parse::<u64>().ok());
        let Some(number) = number else { continue };
        let count = |max: usize| Some(usize::try_from(number).unwrap_or(max).min(max));
        match option.name.as_deref() {
            Some("ndots") => names.ndots = count(NDOTS_MAX),
            Some("timeout") => names.timeout = Some(Duration::from_secs(number.clamp(1, TIMEOUT_S_MAX))),
            Some("attempts") => names.attempts = count(ATTEMPTS_MAX).map(|attempts| attempts.max(1)),
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_host_is_called_as_upstream_calls_it() {
        let name = |spec: Value| host_name(&pod(spec));
        assert_eq!(name(json!({"containers": []})).unwrap(), "web-0");
        assert_eq!(name(json!({"containers": [], "hostname": "h", "subdomain": "s"})).unwrap(), "h");
        let whole = json!({"containers": [], "hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true});
        assert_eq!(name(whole).unwrap(), "h.s.shop.svc.cluster.local");
        assert_eq!(name(json!({"containers": [], "setHostnameAsFQDN": true})).unwrap(), "web-0");
        assert_eq!(name(json!({"containers": [], "hostname": "h", "hostnameOverride": "a.b"})).unwrap(), "a.b");
        let long = json!({"containers": [], "subdomain": "s".repeat(60), "setHostnameAsFQDN": true});
        let why = name(long).unwrap_err();
        assert!(why.ends_with("is too long (64 characters is the max, 89 characters requested)"), "{why}");
        let long = pod(json!({"containers": [], "hostnameOverride": format!("{}.b", "a".repeat(62))}));
        assert_eq!(host_name(&long).unwrap(), "a".repeat(62));
    }

    #[test]
    fn names_are_resolved_by_the_spec() {
        let ip: IpAddr = "127.66.0.9".parse().unwrap();
        let names = of(
            &pod(json!({"containers": [], "subdomain": "s", "dnsPolicy": "None",
                "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["DB", "db.test."]}, {"ip": "no", "hostnames": ["x"]}],
                "dnsConfig": {"nameservers": ["192.0.2.53", "no"], "searches": ["Corp.test.", "."],
                    "options": [{"name": "ndots", "value": "99"}, {"name": "timeout", "value": "0"},
                        {"name": "attempts", "value": "3"}, {"name": "edns0"}, {"name": "ndots", "value": "x"}]}})),
            ip,
        );
        let host = |name: &str, ip: &str| (name.into(), ip.parse::<IpAddr>().unwrap());
        let hosts = [
            host("web-0.s.shop.svc.cluster.local", "127.66.0.9"),
            host("web-0", "127.66.0.9"),
            host("db", "192.0.2.1"),
            host("db.test", "192.0.2.1"),
        ];
        assert_eq!(*names.hosts, hosts);
        assert_eq!((names.policy, &names.servers), (NamePolicy::Own, &vec!["192.0.2.53".parse().unwrap()]));
        assert_eq!((names.searches, names.ndots, names.attempts), (vec!["corp.test".into()], Some(15), Some(3)));
        assert_eq!(names.timeout, Some(Duration::from_secs(1)));
        let policy = |policy: &str| of(&pod(json!({"containers": [], "dnsPolicy": policy})), ip).policy;
        assert_eq!(policy("Default"), NamePolicy::Host);
        assert_eq!(policy("ClusterFirst"), policy("ClusterFirstWithHostNet"));
    }
}
