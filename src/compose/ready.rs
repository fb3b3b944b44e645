//! When a cluster is ready (contract.md §2): the API, every node as reported by this run, and what a pod in `default` needs.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};

/// No start takes longer unless something is wrong.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until a pod can be created in `default`.
///
/// # Errors
/// It took too long.
pub(super) async fn default_namespace(client: &Client) -> anyhow::Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let both = async {
        await_condition(accounts, "default", |found: Option<&ServiceAccount>| found.is_some()).await?;
        await_condition(maps, "kube-root-ca.crt", |found: Option<&ConfigMap>| found.is_some()).await
    };
    tokio::time::timeout(READY_TIMEOUT, both).await.context(
        "namespace default did not get its ServiceAccount and root CA ConfigMap: see the log with --log-level info",
    )??;
    Ok(())
}
