//! Keeps the mirrors of static pods in the API: creates missing ones, and deletes stale ones. [`plan`] is pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use machinery_api::ObjectKey;
use machinery_client::Kind;
use machinery_client::request::ApiClient;
use machinery_env::Env;
use serde::de::IgnoredAny;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{HASH, MIRROR, mirrored};

const POD: Kind = Kind::of::<Pod>();
const NODE: Kind = Kind::of::<Node>();
/// The delay of a retry after a failed request, and of the check after a successful one.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// A mirror in the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    pub(crate) uid: String,
    pub(crate) hash: String,
    /// The mirror is being deleted.
    pub(crate) deleting: bool,
}

impl Mirror {
    /// The mirror, if the pod is one.
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        Some(Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            hash: mirrored(pod)?.to_owned(),
            deleting: pod.metadata.deletion_timestamp.is_some(),
        })
    }
}

/// The mirrors by namespace and name.
pub(crate) type Mirrors = BTreeMap<ObjectKey, Mirror>;

/// An action on a mirror.
#[derive(Debug, Clone, PartialEq)]
enum MirrorAction {
    Create(Arc<Pod>),
    Delete(ObjectKey, String),
}

/// Compares the wanted with the existing mirrors. Returns the necessary actions.
fn plan(pods: &BTreeMap<String, Arc<Pod>>, mirrors: &Mirrors) -> Vec<MirrorAction> {
    let key = |pod: &Pod| {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        ObjectKey::new(text(&pod.metadata.namespace), text(&pod.metadata.name))
    };
    let wanted: BTreeMap<ObjectKey, (&String, &Arc<Pod>)> =
        pods.iter().map(|(uid, pod)| (key(pod), (uid, pod))).collect();
    let stale = |key: &ObjectKey, mirror: &Mirror| {
        mirror.deleting || wanted.get(key).is_none_or(|(uid, _)| **uid != mirror.hash)
    };
    let removed = mirrors.iter().filter(|(key, mirror)| stale(key, mirror));
    let removed = removed.map(|(key, mirror)| MirrorAction::Delete(key.clone(), mirror.uid.clone()));
    let created = wanted
        .iter()
        .filter(|(key, _)| !mirrors.contains_key(*key))
        .map(|(_, (_, pod))| MirrorAction::Create((*pod).clone()));
    removed.chain(created).collect()
}

/// The mirror object of a static pod.
fn mirror_of(pod: &Pod, node: &str, node_uid: &str) -> Pod {
    let mut mirror = pod.clone();
    let annotations = mirror.metadata.annotations.get_or_insert_default();
    let hash = annotations.get(HASH).cloned().unwrap_or_default();
    annotations.insert(MIRROR.into(), hash);
    mirror.metadata.uid = None;
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.into(),
        uid: node_uid.into(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    mirror
}

/// Keeps the mirrors until `stop`.
pub(crate) async fn keep(
    requests: ApiClient,
    env: Env,
    node: String,
    mut pods: watch::Receiver<BTreeMap<String, Arc<Pod>>>,
    mut mirrors: watch::Receiver<Option<Mirrors>>,
    stop: CancellationToken,
) {
    let mut wait = RETRY_FIRST;
    loop {
        let (wanted, existing) = (pods.borrow_and_update().clone(), mirrors.borrow_and_update().clone());
        // Nothing is done before the first list of mirrors.
        let actions = existing.map(|existing| plan(&wanted, &existing)).unwrap_or_default();
        let mut failed = false;
        for action in &actions {
            if let Err(error) = perform(&requests, &node, action).await {
                tracing::warn!(node, %error, "the mirror of a static pod cannot be written");
                failed = true;
            }
        }
        wait = if failed { (wait * 2).min(RETRY_MAX) } else { RETRY_FIRST };
        // The effect of an action shows up in the watch later.
        let again = (!actions.is_empty()).then_some(wait);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = pods.changed() => if changed.is_err() {
                return;
            },
            changed = mirrors.changed(), if !failed => if changed.is_err() {
                return;
            },
            () = async { env.sleep(again.unwrap_or_default()).await }, if again.is_some() => {}
        }
    }
}

async fn perform(requests: &ApiClient, node: &str, action: &MirrorAction) -> Result<(), kube::Error> {
    let answer = match action {
        MirrorAction::Create(pod) => {
            let own: Node = requests.get(&NODE, &ObjectKey::new("", node)).await?;
            let mirror = mirror_of(pod, node, own.metadata.uid.as_deref().unwrap_or_default());
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            requests.create(&POD, namespace, &mirror).await.map(|_: IgnoredAny| ())
        }
        MirrorAction::Delete(key, uid) => {
            let options = serde_json::json!({
                "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": uid},
            });
            requests.delete(&POD, key, &options).await.map(|_: IgnoredAny| ())
        }
    };
    match answer {
        // The mirror already exists, or is gone: a watch event follows.
        Err(kube::Error::Api(answer))
            if matches!(
                (action, answer.code),
                (MirrorAction::Create(_), 409) | (MirrorAction::Delete(..), 404 | 409)
            ) =>
        {
            Ok(())
        }
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str) -> Arc<Pod> {
        let metadata = json!({"name": name, "namespace": "default", "annotations": {HASH: "h"}});
        Arc::new(serde_json::from_value(json!({"metadata": metadata})).unwrap())
    }

    #[test]
    fn mirrors_follow_their_pods_and_come_back() {
        let pods: BTreeMap<String, Arc<Pod>> = [("h".to_owned(), pod("a"))].into();
        let mirror = |hash: &str, deleting| Mirror { uid: "m".into(), hash: hash.into(), deleting };
        let key = |name: &str| ObjectKey::new("default", name);
        let with = |name: &str, mirror: Mirror| plan(&pods, &[(key(name), mirror)].into());
        assert_eq!(plan(&pods, &Mirrors::new()), [MirrorAction::Create(pod("a"))]);
        assert_eq!(with("a", mirror("h", false)), []);
        for stale in [mirror("h", true), mirror("other", false)] {
            assert_eq!(with("a", stale), [MirrorAction::Delete(key("a"), "m".into())], "made anew once it is gone");
        }
        assert_eq!(
            with("b", mirror("h", false)),
            [MirrorAction::Delete(key("b"), "m".into()), MirrorAction::Create(pod("a"))]
        );
    }

    #[test]
    fn a_mirror_is_its_nodes() {
        let mirror = mirror_of(&pod("a"), "n", "uid");
        assert_eq!(mirrored(&mirror), Some("h"));
        let owner = &mirror.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.controller), ("Node", "uid", Some(true)));
    }
}
