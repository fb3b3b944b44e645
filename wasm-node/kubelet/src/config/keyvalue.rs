//! The owner of a container's `wasi:keyvalue` store: its namespace, by uid. The store is removed after the namespace is
//! gone, in the node's folder and in a shared store.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use machinery_client::Api;
use machinery_env::Env;
use runtime_api::{Grants, KeyvalueOwner, Runtime};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

/// The interval of the checks for deleted namespaces: one small request per stored namespace.
const INTERVAL: Duration = Duration::from_secs(20);

/// The namespace whose uid is the cluster's identity.
const SYSTEM: &str = "kube-system";

/// The owner of a container's store, if it is granted the interface: its namespace, which doesn't change for a pod.
/// `known` is the pod's cached owner. A store that clusters may share needs the cluster's identity as well
/// (`is_shared`).
///
/// # Errors
/// The API request fails, or the namespace doesn't exist.
pub async fn granted(
    grants: &Grants,
    client: &Client,
    namespace: &str,
    known: &OnceCell<KeyvalueOwner>,
    is_shared: bool,
) -> Result<Option<KeyvalueOwner>, String> {
    if !grants.contains("keyvalue") {
        return Ok(None);
    }
    let owner = known.get_or_try_init(|| owner(client, namespace, is_shared)).await?.clone();
    Ok(Some(match (is_shared, &owner.cluster) {
        (false, Some(_)) => KeyvalueOwner { cluster: None, ..owner },
        // A checkpoint of a node without a shared store.
        (true, None) => KeyvalueOwner { cluster: Some(cluster(client).await?), ..owner },
        _ => owner,
    }))
}

async fn owner(client: &Client, namespace: &str, is_shared: bool) -> Result<KeyvalueOwner, String> {
    let uid = uid(client, namespace).await?;
    let cluster = if is_shared { Some(cluster(client).await?) } else { None };
    Ok(KeyvalueOwner { namespace: namespace.to_owned(), uid, cluster })
}

/// The cluster's identity.
async fn cluster(client: &Client) -> Result<String, String> {
    uid(client, SYSTEM).await
}

async fn uid(client: &Client, namespace: &str) -> Result<String, String> {
    let found = Api::<Namespace>::all(client.clone()).get(namespace).await;
    let uid = found.map_err(|error| format!("the namespace {namespace} of keyvalue cannot be read: {error}"))?;
    uid.metadata.uid.ok_or_else(|| format!("the namespace {namespace} of keyvalue has no uid"))
}

/// The API's response for a namespace.
enum NamespaceLookup {
    /// The namespace has this uid.
    Found(Option<String>),
    /// The namespace doesn't exist.
    Missing,
    /// Unknown: nothing may be removed.
    Unknown,
}

/// Whether this owner is deleted: uids are never reused.
fn is_gone(owner: &KeyvalueOwner, answer: &NamespaceLookup) -> bool {
    match answer {
        NamespaceLookup::Found(uid) => uid.as_deref().is_some_and(|uid| uid != owner.uid),
        NamespaceLookup::Missing => true,
        NamespaceLookup::Unknown => false,
    }
}

/// Removes the stores of deleted namespaces until `stop`: once per process, as its node agents share the stores. In a
/// shared store the nodes of a cluster take turns.
pub async fn collect(runtime: Arc<dyn Runtime>, client: Client, env: Env, stop: CancellationToken) {
    let mut own_cluster = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = env.sleep(INTERVAL) => {}
        }
        let pass = async {
            collect_once(&runtime, &client, None).await;
            if !runtime.is_keyvalue_shared() {
                return;
            }
            if own_cluster.is_none() {
                own_cluster = cluster(&client).await.inspect_err(|error| tracing::debug!(%error, "no identity")).ok();
            }
            if let Some(cluster) = &own_cluster {
                collect_once(&runtime, &client, Some(cluster)).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = pass => {}
        }
    }
}

/// One pass over the stores of this node, or over a part of a cluster's in the shared store.
async fn collect_once(runtime: &Arc<dyn Runtime>, client: &Client, cluster: Option<&str>) {
    let namespaces = Api::<Namespace>::all(client.clone());
    let owners = match runtime.keyvalue_owners(cluster).await {
        Ok(owners) => owners,
        Err(error) => {
            tracing::warn!(%error, "the wasi:keyvalue stores cannot be listed");
            return;
        }
    };
    for owner in owners {
        let answer = match namespaces.get_opt(&owner.namespace).await {
            Ok(Some(namespace)) => NamespaceLookup::Found(namespace.metadata.uid),
            Ok(None) => NamespaceLookup::Missing,
            Err(error) => {
                tracing::debug!(%error, namespace = owner.namespace, "a namespace cannot be read");
                NamespaceLookup::Unknown
            }
        };
        if is_gone(&owner, &answer) {
            remove(runtime, owner).await;
        }
    }
}

async fn remove(runtime: &Arc<dyn Runtime>, owner: KeyvalueOwner) {
    match runtime.remove_keyvalue(&owner).await {
        Ok(()) => {
            tracing::info!(namespace = owner.namespace, "the wasi:keyvalue store of a deleted namespace was removed")
        }
        Err(error) => {
            tracing::warn!(%error, namespace = owner.namespace, "the wasi:keyvalue store of a deleted namespace cannot be removed")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_uid_or_none_is_gone() {
        let owner = KeyvalueOwner { namespace: "shop".into(), uid: "a".into(), cluster: None };
        let is = |uid: &str| NamespaceLookup::Found(Some(uid.into()));
        let gone = [is("a"), is("b"), NamespaceLookup::Found(None), NamespaceLookup::Missing, NamespaceLookup::Unknown]
            .map(|a| is_gone(&owner, &a));
        assert_eq!(gone, [false, true, false, true, false]);
    }
}
