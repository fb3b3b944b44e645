//! No two pods of one StatefulSet identity run at once, whatever the API shows: this checker sees the processes themselves,
//! also those on disconnected nodes.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use machinery_api::ObjectKey;
use machinery_client::{Pod, controller_of};

/// Location of a running pod.
struct RunningPod {
    uid: String,
    node: String,
}

/// Running pods by identity.
#[derive(Default)]
pub(crate) struct Identities(Mutex<BTreeMap<ObjectKey, RunningPod>>);

/// Whether a pod belongs to a StatefulSet.
pub(crate) fn has_one(pod: &Pod) -> bool {
    controller_of(&pod.metadata).is_some_and(|owner| owner.kind == "StatefulSet")
}

impl Identities {
    fn running(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, RunningPod>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a pod's start. Returns the violation.
    pub(crate) fn started(&self, key: &ObjectKey, uid: &str, node: &str) -> Option<String> {
        let before = self.running().insert(key.clone(), RunningPod { uid: uid.to_owned(), node: node.to_owned() });
        let other = before.filter(|before| before.uid != uid)?;
        Some(format!("{key} runs on {node} as {uid} while it runs on {} as {}", other.node, other.uid))
    }

    /// Records the end of a pod's processes.
    pub(crate) fn ended(&self, key: &ObjectKey, uid: &str) {
        let mut running = self.running();
        if running.get(key).is_some_and(|there| there.uid == uid) {
            running.remove(key);
        }
    }

    /// Records a machine's end with all of its pods.
    pub(crate) fn node_ended(&self, node: &str) {
        self.running().retain(|_, there| there.node != node);
    }
}

#[test]
fn a_second_pod_of_an_identity_is_found_while_the_first_runs() {
    let (all, key) = (Identities::default(), ObjectKey::new("a", "db-0"));
    assert_eq!(all.started(&key, "one", "m1"), None);
    assert_eq!(all.started(&key, "one", "m1"), None, "the same pod after its node's start");
    assert_eq!(all.started(&key, "two", "m2").as_deref(), Some("a/db-0 runs on m2 as two while it runs on m1 as one"));
    all.ended(&key, "one");
    assert!(all.started(&key, "three", "m3").is_some(), "the end of an earlier one is not that of the second");
    all.node_ended("m3");
    assert_eq!(all.started(&key, "four", "m1"), None);
}
