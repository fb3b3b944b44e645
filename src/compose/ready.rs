//! Readiness of a cluster (docs/contract.md §2): the API, every node as reported by this run and accepted by the
//! controllers, and the prerequisites of a pod in `default`.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{ConfigMap, Node, ServiceAccount};
use kube::Client;
use machinery_client::Api;
use machinery_env::Env;

use super::nodes::node_names;

/// Timeout of the start.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until a pod can be created in `default`; objects of disabled controllers are not awaited.
///
/// # Errors
/// On a timeout.
pub(super) async fn default_namespace(client: &Client, env: &Env, disabled: &[String]) -> anyhow::Result<()> {
    let runs = |name: &str| !disabled.iter().any(|disabled| disabled == name);
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let both = async {
        if runs("serviceaccount-controller") {
            accounts.wait_until(env, "default", |found| found.is_some()).await;
        }
        if runs("root-ca-certificate-publisher-controller") {
            maps.wait_until(env, "kube-root-ca.crt", |found| found.is_some()).await;
        }
    };
    env.timeout(READY_TIMEOUT, both).await.context(
        "namespace default did not get its ServiceAccount and root CA ConfigMap: see the log with --log-level info",
    )
}

/// The taint of nodes that the node lifecycle controller doesn't consider ready.
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// Waits until the first `count` nodes accept pods: an earlier pod would wait for a second scheduling attempt.
///
/// # Errors
/// On a timeout.
pub(super) async fn nodes_take_pods(client: &Client, env: &Env, count: u32, disabled: &[String]) -> anyhow::Result<()> {
    if disabled.iter().any(|disabled| disabled == "node-lifecycle-controller") {
        return Ok(());
    }
    let nodes: Api<Node> = Api::all(client.clone());
    let all = async {
        for name in node_names(count) {
            nodes.wait_until(env, &name, takes_pods).await;
        }
    };
    env.timeout(READY_TIMEOUT, all).await.context("a node kept its not-ready taint: see the log with --log-level info")
}

fn takes_pods(node: Option<&Node>) -> bool {
    let spec = node.and_then(|node| node.spec.as_ref());
    spec.is_some_and(|spec| spec.taints.iter().flatten().all(|taint| taint.key != NOT_READY))
}
