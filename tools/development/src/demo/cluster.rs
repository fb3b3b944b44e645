//! The demo's operations on a cluster, through the same API as kubectl: apply, wait, scale, roll, delete.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Client;
use machinery_api::ObjectKey;
use machinery_client::request::{ApiClient, PatchType};
use machinery_client::{Api, Kind, ListOptions};
use machinery_env::Env;
use serde_json::{Value, json};

use crate::rollout::is_rolled_out;

/// Timeout of each step: seconds on a quiet machine, minutes while a disk writes gigabytes for others.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(240);

/// Creates every object of a YAML stream.
pub(super) async fn create_all(client: &Client, yaml: &str) -> anyhow::Result<()> {
    for document in yaml.split("\n---") {
        if document.lines().all(|line| line.trim().is_empty() || line.starts_with('#')) {
            continue;
        }
        let value: Value = machinery_api::yaml::read(document).map_err(anyhow::Error::msg)?;
        let (kind, namespace) = kind_of(&value).context("a manifest names no kind")?;
        let created: Result<Value, _> = ApiClient::from(client.clone()).create(&kind, &namespace, &value).await;
        created.with_context(|| format!("creating {} {}", kind.kind, value["metadata"]["name"]))?;
    }
    Ok(())
}

/// The kind of a manifest, and its namespace: `default` if it has none, empty for a Namespace.
fn kind_of(manifest: &Value) -> Option<(Kind, String)> {
    let (api_version, kind) = (manifest["apiVersion"].as_str()?, manifest["kind"].as_str()?);
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let namespaced = kind != "Namespace";
    let namespace = if namespaced { manifest["metadata"]["namespace"].as_str().unwrap_or("default") } else { "" };
    // The plurals of the shop's kinds are regular.
    let plural =
        if kind.ends_with('s') { format!("{}es", kind.to_lowercase()) } else { format!("{}s", kind.to_lowercase()) };
    let [group, plural, version, kind] = [group, &plural, version, kind].map(|text| text.to_owned().into());
    Some((Kind { group, plural, version, kind, namespaced }, namespace.to_owned()))
}

/// Waits until a Deployment has rolled out (as `kubectl rollout status`), and its old pods are gone.
pub(super) async fn rolled_out(client: &Client, env: &Env, namespace: &str, name: &str) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let done = |deployment: Option<&Deployment>| deployment.is_some_and(is_rolled_out);
    env.timeout(STEP_TIMEOUT, deployments.wait_until(env, name, done)).await.with_context(|| {
        format!("deployment {namespace}/{name} was not rolled out within {} s", STEP_TIMEOUT.as_secs())
    })?;
    Ok(())
}

/// The NodePort of a Service's first port.
pub(super) async fn node_port(client: &Client, namespace: &str, name: &str) -> anyhow::Result<u16> {
    let service = Api::<Service>::namespaced(client.clone(), namespace).get(name).await?;
    let port = service.spec.and_then(|spec| spec.ports?.first()?.node_port).context("the Service has no NodePort")?;
    Ok(u16::try_from(port)?)
}

/// The ClusterIP of a Service.
pub(super) async fn cluster_ip(client: &Client, namespace: &str, name: &str) -> anyhow::Result<String> {
    let service = Api::<Service>::namespaced(client.clone(), namespace).get(name).await?;
    service.spec.and_then(|spec| spec.cluster_ip).context("the Service has no ClusterIP")
}

/// The numbers of nodes and of pods of a namespace.
pub(super) async fn spread(client: &Client, namespace: &str) -> anyhow::Result<(usize, usize)> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace).list(&ListOptions::default()).await?;
    let nodes: std::collections::BTreeSet<_> =
        pods.items.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
    Ok((nodes.len(), pods.items.len()))
}

/// Deletes one pod of an app, as a simulated accident; returns its name.
pub(super) async fn delete_one_pod(client: &Client, env: &Env, namespace: &str, app: &str) -> anyhow::Result<String> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let found = pods.list(&ListOptions { labels: format!("app={app}"), limit: 1, ..ListOptions::default() }).await?;
    let name = found.items.first().and_then(|pod| pod.metadata.name.clone()).context("no pod to delete")?;
    pods.delete(&name).await?;
    // The Deployment becomes incomplete only later: wait for the pod itself to be gone.
    let gone = pods.wait_until(env, &name, |pod| pod.is_none());
    env.timeout(STEP_TIMEOUT, gone).await.context("the deleted pod did not go")?;
    Ok(name)
}

/// Patches a Deployment.
pub(super) async fn patch(client: &Client, namespace: &str, name: &str, patch: &Value) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    deployments.patch(name, PatchType::Merge, patch).await?;
    Ok(())
}

/// Patches a Deployment by strategic merge, as `kubectl set image` does.
pub(super) async fn patch_strategic(client: &Client, namespace: &str, name: &str, patch: &Value) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    deployments.patch(name, PatchType::Strategic, patch).await?;
    Ok(())
}

/// Scales a Deployment through its scale subresource.
pub(super) async fn scale(client: &Client, namespace: &str, name: &str, replicas: u32) -> anyhow::Result<()> {
    let (kind, key) = (Kind::of::<Deployment>(), ObjectKey::new(namespace, name));
    let scale = json!({"spec": {"replicas": replicas}});
    let _: Value = ApiClient::from(client.clone()).patch(&kind, &key, Some("scale"), PatchType::Merge, &scale).await?;
    Ok(())
}
