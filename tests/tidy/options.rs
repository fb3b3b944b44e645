//! An option is one field (docs/decisions/0136-options.md): its variable stands in one attribute, in the crate of its component.

use std::collections::BTreeMap;

use super::{all_rust_files, check};

/// Variables that several definitions share, each with the reason and the number of definitions.
const SHARED: &[(&str, usize, &str)] = &[
    ("BIND", 2, "doctor checks an address before up listens there"),
    ("CA_HASH", 2, "a node and a server join by different tokens"),
    ("CLUSTER_CIDR", 3, "server, controllers and proxy have different defaults"),
    ("FAST_FAILOVER", 2, "of the controllers, and of a node's Lease"),
    ("FILENAME", 2, "verbs of users"),
    ("FORMAT", 3, "verbs of users"),
    ("KEEP", 2, "verbs of users"),
    ("KUBECONFIG", 8, "required, optional or with a default, by verb"),
    ("LOAD_BALANCER_POOL", 2, "proxy has the cluster's own as its default"),
    ("NAMESPACE", 4, "verbs of users"),
    ("NODE_CIDR_MASK_SIZE", 3, "up, server and controllers have different defaults"),
    ("NODE_IP", 2, "of a node, and of a proxy without one"),
    ("NODE_NAME", 2, "of a node, and of a proxy without one"),
    ("PORT", 2, "of the API server, and of a user's service"),
    ("REGISTRIES", 2, "pull has a user's registries"),
    ("SCHEDULER_CONFIG", 2, "explain-scheduling reads another scheduler's file"),
    ("SERVER", 2, "a node and a server join by different tokens"),
    ("SERVICE_CIDR", 2, "server and proxy have different defaults"),
    ("SIGNATURE_POLICY", 2, "pull has a user's policy"),
    ("TOKEN", 2, "a node and a server join by different tokens"),
    ("TOKEN_FILE", 2, "a node and a server join by different tokens"),
];

/// The places of each variable's attribute.
fn places() -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in all_rust_files() {
        if path.starts_with("tests/") {
            continue;
        }
        for name in text.split("env = \"CORACLE_").skip(1).filter_map(|rest| rest.split('"').next()) {
            found.entry(name.to_owned()).or_default().push(path.clone());
        }
    }
    found
}

#[test]
fn an_option_is_declared_in_one_place() {
    let places = places();
    assert!(places.len() > 80, "the attributes are found: {}", places.len());
    let mut problems = Vec::new();
    for (name, places) in &places {
        let allowed = SHARED.iter().find(|(shared, ..)| shared == name).map_or(1, |(_, count, _)| *count);
        if places.len() != allowed {
            problems.push(format!(
                "CORACLE_{name} is declared {} times, wanted {allowed}: {}",
                places.len(),
                places.join(", ")
            ));
        }
    }
    problems.extend(
        SHARED
            .iter()
            .filter(|(name, ..)| !places.contains_key(*name))
            .map(|(name, ..)| format!("SHARED lists {name}, which is gone")),
    );
    check(&problems);
}

/// Drill: a flag of a controller, of the API server, of a node, of the data plane and of the scheduler is written where it is
/// used, and nowhere in `src/`.
#[test]
fn an_option_of_a_component_stands_in_its_crate() {
    let places = places();
    for (name, home) in [
        ("TERMINATED_POD_GC_THRESHOLD", "controllers/src/pod_garbage_collector.rs"),
        ("NODE_MONITOR_PERIOD", "controllers/src/node_lifecycle/mod.rs"),
        ("HORIZONTAL_POD_AUTOSCALER_TOLERANCE", "controllers/src/podautoscaler/mod.rs"),
        ("ALLOCATE_NODE_CIDRS", "controllers/src/node_ipam.rs"),
        ("CLUSTER_SIGNING_DURATION", "controllers/src/certificates/signing.rs"),
        ("SCORING_STRATEGY", "scheduler/src/options.rs"),
        ("TLS_SAN", "apiserver/server/src/options.rs"),
        ("DEFAULT_TOLERATION_SECONDS", "apiserver/server/src/options.rs"),
        ("STORE", "apiserver/storage/src/options.rs"),
        ("TUNNEL_PORT", "proxy/src/options.rs"),
        ("KUBELET_PORT", "wasm-node/kubelet/src/options.rs"),
        ("MAX_PODS", "wasm-node/kubelet/src/options.rs"),
        ("IMAGE_GC_HIGH_THRESHOLD", "wasm-node/images/src/options.rs"),
        ("GUEST_HANDLES", "wasm-node/runtime/src/options/guests.rs"),
        ("KEYVALUE", "wasm-node/keyvalue/src/options.rs"),
    ] {
        assert_eq!(places.get(name).map(Vec::as_slice), Some([home.to_owned()].as_slice()), "CORACLE_{name}");
    }
}
