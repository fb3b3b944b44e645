//! Fields of a Service that the data plane doesn't act on yet: each is named in a Warning event on the Service
//! (contract.md, "nothing is silently ignored").

use k8s_openapi::api::core::v1::Service;

/// The paths of unsupported fields, some with their value. `balances`: a `--load-balancer-pool` exists.
#[must_use]
pub fn fields(service: &Service, balances: bool) -> Vec<String> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let mut found = Vec::new();
    match spec.type_.as_deref() {
        // Another class belongs to another provider.
        Some("LoadBalancer") if !balances && spec.load_balancer_class.is_none() => {
            found.push("spec.type: LoadBalancer (there is no --load-balancer-pool)".to_owned());
        }
        Some("ExternalName") => found.push("spec.type: ExternalName".to_owned()),
        _ => {}
    }
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        if let Some(protocol) = port.protocol.as_deref().filter(|protocol| *protocol != "TCP") {
            found.push(format!("spec.ports[{index}].protocol: {protocol}"));
        }
        if let Some(protocol @ ("ws" | "kubernetes.io/ws" | "wss" | "kubernetes.io/wss")) = port.app_protocol.as_deref()
        {
            found.push(format!(
                "spec.ports[{index}].appProtocol: {protocol} (upgrades of a connection reach endpoints outside of the cluster only)"
            ));
        }
    }
    if spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()) {
        found.push("spec.externalIPs".to_owned());
    }
    if let Some(distribution) = &spec.traffic_distribution {
        found.push(format!("spec.trafficDistribution: {distribution}"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_is_named_with_its_path() {
        let of = |spec| fields(&serde_json::from_value(json!({ "metadata": {}, "spec": spec })).unwrap(), false);
        assert_eq!(of(json!({"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP"}]})), Vec::<String>::new());
        assert_eq!(
            of(json!({"type": "LoadBalancer", "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]})),
            ["spec.type: LoadBalancer (there is no --load-balancer-pool)", "spec.ports[1].protocol: UDP"]
        );
    }
}
