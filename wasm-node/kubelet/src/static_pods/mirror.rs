//! Mirrors of static pods in the API: made, removed where nothing is behind them, and made again where somebody removed one.
//! [`plan`] is pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use machinery_api::ObjectKey;
use machinery_client::Kind;
use machinery_client::request::ApiClient;
use serde::de::IgnoredAny;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{HASH, MIRROR, mirrored};

const POD: Kind = Kind::of::<Pod>();
const NODE: Kind = Kind::of::<Node>();
/// Before what the API didn't take is tried again, and before what it did is looked at.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// A mirror that there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    pub(crate) uid: String,
    pub(crate) hash: String,
    /// Somebody has asked for its end.
    pub(crate) deleting: bool,
}

impl Mirror {
    /// A pod that is one.
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        Some(Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            hash: mirrored(pod)?.to_owned(),
            deleting: pod.metadata.deletion_timestamp.is_some(),
        })
    }
}

/// By namespace and name.
pub(crate) type Mirrors = BTreeMap<ObjectKey, Mirror>;

/// What is to be done to one.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Create(Arc<Pod>),
    Delete(ObjectKey, String),
}

/// What mirrors there should be, and there are: what is to be done.
fn plan(pods: &BTreeMap<String, Arc<Pod>>, mirrors: &Mirrors) -> Vec<Step> {
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
    let removed = removed.map(|(key, mirror)| Step::Delete(key.clone(), mirror.uid.clone()));
    let made =
        wanted.iter().filter(|(key, _)| !mirrors.contains_key(*key)).map(|(_, (_, pod))| Step::Create((*pod).clone()));
    removed.chain(made).collect()
}

/// A static pod as the API is to have it.
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
    node: String,
    mut pods: watch::Receiver<BTreeMap<String, Arc<Pod>>>,
    mut mirrors: watch::Receiver<Option<Mirrors>>,
    stop: CancellationToken,
) {
    let mut wait = RETRY_FIRST;
    loop {
        let (wanted, seen) = (pods.borrow_and_update().clone(), mirrors.borrow_and_update().clone());
        // Before the API has told which there are nothing is known.
        let steps = seen.map(|seen| plan(&wanted, &seen)).unwrap_or_default();
        let mut failed = false;
        for step in &steps {
            if let Err(error) = perform(&requests, &node, step).await {
                tracing::warn!(node, %error, "the mirror of a static pod cannot be written");
                failed = true;
            }
        }
        wait = if failed { (wait * 2).min(RETRY_MAX) } else { RETRY_FIRST };
        // What was done is seen a moment later.
        let again = (!steps.is_empty()).then_some(wait);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = pods.changed() => if changed.is_err() {
                return;
            },
            changed = mirrors.changed(), if !failed => if changed.is_err() {
                return;
            },
            () = async { tokio::time::sleep(again.unwrap_or_default()).await }, if again.is_some() => {}
        }
    }
}

async fn perform(requests: &ApiClient, node: &str, step: &Step) -> Result<(), kube::Error> {
    let answer = match step {
        Step::Create(pod) => {
            let own: Node = requests.get(&NODE, &ObjectKey::new("", node)).await?;
            let mirror = mirror_of(pod, node, own.metadata.uid.as_deref().unwrap_or_default());
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            requests.create(&POD, namespace, &mirror).await.map(|_: IgnoredAny| ())
        }
        Step::Delete(key, uid) => {
            let options = serde_json::json!({
                "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": uid},
            });
            requests.delete(&POD, key, &options).await.map(|_: IgnoredAny| ())
        }
    };
    match answer {
        // It is there already, or gone: the watch says so.
        Err(kube::Error::Api(answer))
            if matches!((step, answer.code), (Step::Create(_), 409) | (Step::Delete(..), 404 | 409)) =>
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
        assert_eq!(plan(&pods, &Mirrors::new()), [Step::Create(pod("a"))]);
        assert_eq!(with("a", mirror("h", false)), []);
        for stale in [mirror("h", true), mirror("other", false)] {
            assert_eq!(with("a", stale), [Step::Delete(key("a"), "m".into())], "made anew once it is gone");
        }
        assert_eq!(with("b", mirror("h", false)), [Step::Delete(key("b"), "m".into()), Step::Create(pod("a"))]);
    }

    #[test]
    fn a_mirror_is_its_nodes() {
        let mirror = mirror_of(&pod("a"), "n", "uid");
        assert_eq!(mirrored(&mirror), Some("h"));
        let owner = &mirror.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.controller), ("Node", "uid", Some(true)));
    }
}
