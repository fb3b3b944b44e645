//! When a cluster is ready (contract.md §2): the API, every node as reported by this run, and what a pod in `default` needs.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};

/// No start takes longer unless something is wrong.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until a pod can be created in `default`, but for what controllers give it that don't run.
///
/// # Errors
/// It took too long.
pub(super) async fn default_namespace(client: &Client, disabled: &[String]) -> anyhow::Result<()> {
    let runs = |name: &str| !disabled.iter().any(|disabled| disabled == name);
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let both = async {
        if runs("serviceaccount-controller") {
            await_condition(accounts, "default", |found: Option<&ServiceAccount>| found.is_some()).await?;
        }
        if runs("root-ca-certificate-publisher-controller") {
            await_condition(maps, "kube-root-ca.crt", |found: Option<&ConfigMap>| found.is_some()).await?;
        }
        Ok::<(), anyhow::Error>(())
    };
    tokio::time::timeout(READY_TIMEOUT, both).await.context(
        "namespace default did not get its ServiceAccount and root CA ConfigMap: see the log with --log-level info",
    )??;
    Ok(())
}
