//! The owner of a container's `wasi:keyvalue` store: its namespace, by uid. The store is removed after the namespace is gone.

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

/// The owner of a container's store, if it is granted the interface: its namespace, which doesn't change for a pod.
/// `known` is the pod's cached owner.
///
/// # Errors
/// The API request fails, or the namespace doesn't exist.
pub async fn granted(
    grants: &Grants,
    client: &Client,
    namespace: &str,
    known: &OnceCell<KeyvalueOwner>,
) -> Result<Option<KeyvalueOwner>, String> {
    if !grants.contains("keyvalue") {
        return Ok(None);
    }
    known.get_or_try_init(|| owner(client, namespace)).await.cloned().map(Some)
}

async fn owner(client: &Client, namespace: &str) -> Result<KeyvalueOwner, String> {
    let found = Api::<Namespace>::all(client.clone()).get(namespace).await;
    let uid = found.map_err(|error| format!("the namespace of keyvalue cannot be read: {error}"))?.metadata.uid;
    let uid = uid.ok_or("the namespace of keyvalue has no uid")?;
    Ok(KeyvalueOwner { namespace: namespace.to_owned(), uid })
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

/// Removes the stores of deleted namespaces until `stop`: once per process, as its node agents share the stores.
pub async fn collect(runtime: Arc<dyn Runtime>, client: Client, env: Env, stop: CancellationToken) {
    let namespaces = Api::<Namespace>::all(client);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = env.sleep(INTERVAL) => {}
        }
        let of = runtime.clone();
        let owners = match tokio::task::spawn_blocking(move || of.keyvalue_owners()).await {
            Ok(Ok(owners)) => owners,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the wasi:keyvalue stores cannot be listed");
                continue;
            }
            Err(_) => continue,
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
                remove(&runtime, owner).await;
            }
        }
    }
}

async fn remove(runtime: &Arc<dyn Runtime>, owner: KeyvalueOwner) {
    let (of, named) = (runtime.clone(), owner.clone());
    match tokio::task::spawn_blocking(move || of.remove_keyvalue(&named)).await {
        Ok(Ok(())) => {
            tracing::info!(namespace = owner.namespace, "the wasi:keyvalue store of a deleted namespace was removed")
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, namespace = owner.namespace, "the wasi:keyvalue store of a deleted namespace cannot be removed")
        }
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_uid_or_none_is_gone() {
        let owner = KeyvalueOwner { namespace: "shop".into(), uid: "a".into() };
        let is = |uid: &str| NamespaceLookup::Found(Some(uid.into()));
        let gone = [is("a"), is("b"), NamespaceLookup::Found(None), NamespaceLookup::Missing, NamespaceLookup::Unknown]
            .map(|a| is_gone(&owner, &a));
        assert_eq!(gone, [false, true, false, true, false]);
    }
}
