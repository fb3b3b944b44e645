//! What the demo does to a cluster, through the same API as kubectl: apply, wait, scale, roll, delete.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams, TypeMeta,
};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::rollout::is_rolled_out;

/// No step of the demo may take longer.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// Creates every object of a YAML stream.
pub(super) async fn create_all(client: &Client, yaml: &str) -> anyhow::Result<()> {
    for document in yaml.split("\n---") {
        if document.lines().all(|line| line.trim().is_empty() || line.starts_with('#')) {
            continue;
        }
        let value: Value = serde_saphyr::from_str(document).context("a manifest inside the program is no YAML")?;
        let object: DynamicObject = serde_json::from_value(value)?;
        let types: TypeMeta = object.types.clone().context("a manifest names no kind")?;
        let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(&types)?);
        let api: Api<DynamicObject> = match (&object.metadata.namespace, types.kind.as_str()) {
            (_, "Namespace") => Api::all_with(client.clone(), &resource),
            (Some(namespace), _) => Api::namespaced_with(client.clone(), namespace, &resource),
            (None, _) => Api::namespaced_with(client.clone(), "default", &resource),
        };
        api.create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("creating {} {:?}", types.kind, object.metadata.name))?;
    }
    Ok(())
}

/// Waits until a Deployment has rolled out as `kubectl rollout status` means it, and its old pods are gone.
pub(super) async fn rolled_out(client: &Client, namespace: &str, name: &str) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let done = |deployment: Option<&Deployment>| deployment.is_some_and(is_rolled_out);
    tokio::time::timeout(STEP_TIMEOUT, await_condition(deployments, name, done)).await.with_context(|| {
        format!("deployment {namespace}/{name} was not rolled out within {} s", STEP_TIMEOUT.as_secs())
    })??;
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

/// How many nodes the pods of a namespace run on, and how many pods there are.
pub(super) async fn spread(client: &Client, namespace: &str) -> anyhow::Result<(usize, usize)> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace).list(&ListParams::default()).await?;
    let nodes: std::collections::BTreeSet<_> =
        pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
    Ok((nodes.len(), pods.items.len()))
}

/// Deletes one pod of an app, as an accident would; returns its name.
pub(super) async fn delete_one_pod(client: &Client, namespace: &str, app: &str) -> anyhow::Result<String> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let found = pods.list(&ListParams::default().labels(&format!("app={app}")).limit(1)).await?;
    let name = found.items.first().and_then(|pod| pod.metadata.name.clone()).context("no pod to delete")?;
    pods.delete(&name, &DeleteParams::default()).await?;
    // The replacement is seen as a Deployment that is no longer complete first: wait for the pod itself to go.
    let gone = await_condition(pods, &name, |pod: Option<&Pod>| pod.is_none());
    tokio::time::timeout(STEP_TIMEOUT, gone).await.context("the deleted pod did not go")??;
    Ok(name)
}

/// Patches a Deployment.
pub(super) async fn patch(client: &Client, namespace: &str, name: &str, patch: &Value) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    deployments.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// Patches a Deployment by strategic merge, as `kubectl set image` does.
pub(super) async fn patch_strategic(client: &Client, namespace: &str, name: &str, patch: &Value) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    deployments.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    Ok(())
}

/// Scales a Deployment through its scale subresource.
pub(super) async fn scale(client: &Client, namespace: &str, name: &str, replicas: u32) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    deployments
        .patch_scale(name, &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": replicas}})))
        .await?;
    Ok(())
}
