//! The variables of a container: from its spec, ConfigMaps and Secrets, files, and Services.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container as ContainerSpecWire, Pod, Service};
use machinery_api::ObjectKey;

use super::shared::NodeContext;
use super::start::{StartError, config_error};
use crate::config::env_file::{self, FileValues};
use crate::config::environment::{EnvContext, environment};
use crate::config::sources::{SourceKind, SourceState, named_by_environment};
use crate::volume::paths::folder;

/// Variables by name.
pub(super) type Variables = BTreeMap<String, String>;

/// The container's variables, from its spec, its sources, and the Services of its namespace.
pub(super) async fn variables(
    node: &NodeContext,
    pod: &Arc<Pod>,
    wire: &ContainerSpecWire,
    ip: IpAddr,
) -> Result<Variables, StartError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut known = BTreeMap::new();
    for (kind, name) in named_by_environment(wire) {
        match node.sources.get(kind, namespace, &name).read().await {
            SourceState::Present(content) => {
                known.insert((kind, name), content);
            }
            SourceState::Failed(error) => {
                return Err(config_error(format!("failed to sync {} cache: {error}", kind.word())));
            }
            SourceState::Missing | SourceState::Unknown => {}
        }
    }
    let services = services(node, namespace).await;
    let files = file_values(node, pod, wire).await?;
    let lookup = |kind: SourceKind, name: &str| known.get(&(kind, name.to_owned())).cloned();
    let given = EnvContext {
        pod,
        host_ip: node.identity.internal_ip,
        pod_ip: Some(ip),
        allocatable: &node.allocatable,
        services: &services,
        lookup: &lookup,
        files: &files,
    };
    environment(&given, wire).map_err(config_error)
}

/// The Services that the environment of a namespace's pods may show. While the API doesn't answer, they are those of the
/// checkpoint.
async fn services(node: &NodeContext, namespace: &str) -> Vec<Arc<Service>> {
    if let Some(earlier) = node.checkpoint.services(namespace)
        && node.parts.env.timeout_at(node.api_wait, node.services.synced()).await.is_err()
    {
        return earlier;
    }
    node.services.synced().await;
    node.services.read(|view| {
        let own = view.list::<Service>(namespace).filter_map(|service| {
            let key = ObjectKey::new(namespace, service.metadata.name.clone()?);
            view.get_arc(&key)
        });
        own.chain(view.get_arc(&ObjectKey::new("default", "kubernetes"))).collect()
    })
}

/// The values of variables that are read from files.
async fn file_values(node: &NodeContext, pod: &Arc<Pod>, wire: &ContainerSpecWire) -> Result<FileValues, StartError> {
    if !wire.env.iter().flatten().any(|of| of.value_from.as_ref().is_some_and(|from| from.file_key_ref.is_some())) {
        return Ok(FileValues::new());
    }
    let dir = node.pod_dir(pod.metadata.uid.as_deref().unwrap_or_default());
    let (pod, wire) = (pod.clone(), wire.clone());
    let read = tokio::task::spawn_blocking(move || {
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let volumes: Vec<&str> = volumes.map(|volume| volume.name.as_str()).collect();
        env_file::read(&|name| folder(&dir, name), &volumes, &wire)
    });
    read.await.map_err(config_error)?.map_err(config_error)
}
