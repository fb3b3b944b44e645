//! Whose `wasi:keyvalue` a container has: its namespace's, by the uid; and the end of it, when the namespace is gone.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use machinery_client::Api;
use runtime_api::{Grants, KeyvalueOwner, Runtime};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

/// How often it is asked whether the namespaces of what is kept are still there: one small request for each of them.
const INTERVAL: Duration = Duration::from_secs(20);

/// Whose a container has, where that is granted: its namespace's, which is the same for as long as a pod is in it. `known` is what
/// its pod was told before.
///
/// # Errors
/// The API doesn't say, or knows none.
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
    let asked = Api::<Namespace>::all(client.clone()).get(namespace).await;
    let uid = asked.map_err(|error| format!("the namespace of keyvalue cannot be read: {error}"))?.metadata.uid;
    let uid = uid.ok_or("the namespace of keyvalue has no uid")?;
    Ok(KeyvalueOwner { namespace: namespace.to_owned(), uid })
}

/// What the API says of a name.
enum Answer {
    /// It has this uid.
    Is(Option<String>),
    /// There is none.
    Missing,
    /// Nothing that anything could be removed for.
    Unknown,
}

/// Whether this owner is gone for good: a uid never comes back.
fn is_gone(owner: &KeyvalueOwner, answer: &Answer) -> bool {
    match answer {
        Answer::Is(uid) => uid.as_deref().is_some_and(|uid| uid != owner.uid),
        Answer::Missing => true,
        Answer::Unknown => false,
    }
}

/// Removes what namespaces kept that are gone, until `stop`: one for all node agents of a process, as they share it.
pub async fn collect(runtime: Arc<dyn Runtime>, client: Client, stop: CancellationToken) {
    let namespaces = Api::<Namespace>::all(client);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let of = runtime.clone();
        let owners = match tokio::task::spawn_blocking(move || of.keyvalue_owners()).await {
            Ok(Ok(owners)) => owners,
            Ok(Err(error)) => {
                tracing::warn!(%error, "what guests keep by wasi:keyvalue cannot be listed");
                continue;
            }
            Err(_) => continue,
        };
        for owner in owners {
            let answer = match namespaces.get_opt(&owner.namespace).await {
                Ok(Some(namespace)) => Answer::Is(namespace.metadata.uid),
                Ok(None) => Answer::Missing,
                Err(error) => {
                    tracing::debug!(%error, namespace = owner.namespace, "a namespace cannot be read");
                    Answer::Unknown
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
        Ok(Ok(())) => tracing::info!(namespace = owner.namespace, "what a deleted namespace kept was removed"),
        Ok(Err(error)) => tracing::warn!(%error, namespace = owner.namespace, "what a namespace kept is still there"),
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_uid_or_none_is_gone() {
        let owner = KeyvalueOwner { namespace: "shop".into(), uid: "a".into() };
        let is = |uid: &str| Answer::Is(Some(uid.into()));
        let gone = [is("a"), is("b"), Answer::Is(None), Answer::Missing, Answer::Unknown].map(|a| is_gone(&owner, &a));
        assert_eq!(gone, [false, true, false, true, false]);
    }
}
