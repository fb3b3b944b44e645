//! The default StorageClass of a new cluster: folders on its nodes.

use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use machinery_client::Api;
use machinery_client::claims::LOCAL_DRIVER;
use machinery_client::request::PatchType;
use serde_json::json;

/// Marks that the class was created once: a later change or deletion by a user is respected.
const OFFERED: &str = "coracle.dev/offered-storage-class";

/// Creates the default class `local` if this cluster never had it.
///
/// # Errors
/// If the API server rejects it.
pub(super) async fn create_default_class(client: &Client) -> anyhow::Result<()> {
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
    let system = namespaces.get("kube-system").await?;
    if system.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(OFFERED)) {
        return Ok(());
    }
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": LOCAL_DRIVER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    });
    let classes: Api<StorageClass> = Api::all(client.clone());
    match classes.create(&class).await {
        // A user's class of that name is left unchanged.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        made => drop(made?),
    }
    let patch = json!({"metadata": {"annotations": {OFFERED: "local"}}});
    namespaces.patch("kube-system", PatchType::Merge, &patch).await?;
    Ok(())
}
