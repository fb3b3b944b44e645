//! Fields of a Service that the data plane doesn't act on, for Warning events on the Service (docs/contract.md, "Nothing is
//! silently ignored"): what it does not support, and what this cluster's flags leave without an address. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use machinery_rules::address_pool::AddressPool;

/// The paths of unsupported fields with their values.
#[must_use]
pub fn fields(service: &Service) -> Vec<String> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let ports = spec.ports.iter().flatten().enumerate();
    let other = ports.filter_map(|(index, port)| {
        let protocol = port.protocol.as_deref().filter(|protocol| !matches!(*protocol, "TCP" | "UDP"))?;
        Some(format!("spec.ports[{index}].protocol: {protocol}"))
    });
    other.collect()
}

/// The fields that need addresses which `--load-balancer-pool` doesn't have.
#[must_use]
pub fn without_address(service: &Service, pool: &AddressPool) -> Vec<String> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let mut found = Vec::new();
    // Another class belongs to another provider.
    if spec.type_.as_deref() == Some("LoadBalancer") && pool.is_empty() && spec.load_balancer_class.is_none() {
        found.push("spec.type: LoadBalancer (there is no --load-balancer-pool)".to_owned());
    }
    for (index, ip) in spec.external_ips.iter().flatten().enumerate() {
        if !ip.parse::<IpAddr>().is_ok_and(|ip| pool.contains(ip)) {
            found.push(format!("spec.externalIPs[{index}]: {ip} (no address of --load-balancer-pool)"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({ "metadata": {}, "spec": spec })).unwrap()
    }

    #[test]
    fn each_is_named_with_its_path() {
        let of = |spec| fields(&service(spec));
        assert_eq!(of(json!({"ports": [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]})), [""; 0]);
        assert_eq!(of(json!({"type": "ExternalName", "externalName": "a.test"})), [""; 0]);
        assert_eq!(
            of(json!({"ports": [{"port": 80}, {"port": 9, "protocol": "SCTP"}]})),
            ["spec.ports[1].protocol: SCTP"]
        );
    }

    #[test]
    fn addresses_outside_of_the_pool_are_named() {
        let pool: AddressPool = "127.59.0.0/24".parse().unwrap();
        let spec = json!({"type": "LoadBalancer", "externalIPs": ["127.59.0.1", "192.0.2.1"]});
        let outside = "spec.externalIPs[1]: 192.0.2.1 (no address of --load-balancer-pool)";
        assert_eq!(without_address(&service(spec.clone()), &pool), [outside]);
        let none = without_address(&service(spec), &AddressPool::default());
        assert_eq!(none[0], "spec.type: LoadBalancer (there is no --load-balancer-pool)");
        assert_eq!(none.len(), 3);
        let other = json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/cloud"});
        assert_eq!(without_address(&service(other), &AddressPool::default()), [""; 0]);
    }
}
