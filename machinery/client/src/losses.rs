//! Counts pods that were lost early (ended, were deleted or terminated soon after they appeared) by the uid of their
//! controller. A controller sees from the count that its pods don't last, even if none of them is left.

use std::collections::HashMap;
use std::time::Duration;

use crate::object::{Object, controller_of, typed};
use crate::pod::Pod;

/// A pod that was active for less than this was lost early.
pub const EARLY: Duration = Duration::from_secs(10);
/// How long a count is kept after an owner's last early loss: longer than any delay computed from it.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Early losses by owner. Bounded by the owners that lost a pod early in the last ten minutes.
#[derive(Debug, Default, Clone)]
pub(crate) struct Losses(HashMap<Box<str>, (u64, Duration)>);

impl Losses {
    /// The number of an owner's early losses.
    pub(crate) fn of(&self, owner_uid: &str) -> u64 {
        self.0.get(owner_uid).map_or(0, |(count, _)| *count)
    }

    /// Counts a young pod that is no longer active (`new` is `None` if it is gone).
    pub(crate) fn changed(&mut self, old: &dyn Object, new: Option<&dyn Object>, appeared_at: Duration, now: Duration) {
        let young = now.saturating_sub(appeared_at) < EARLY;
        if !young || !typed::<Pod>(old).is_some_and(is_active) || new.and_then(typed::<Pod>).is_some_and(is_active) {
            return;
        }
        let Some(owner) = controller_of(old.metadata()) else { return };
        self.0.retain(|_, (_, last)| now.saturating_sub(*last) < REMEMBERED);
        let known = self.0.entry(owner.uid.as_str().into()).or_insert((0, now));
        *known = (known.0 + 1, now);
    }
}

fn is_active(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use machinery_api::ObjectKey;
    use serde_json::json;

    use super::*;
    use crate::cache::ObjectCache;
    use crate::object::{Kind, decode};

    fn pod(version: u64, owner: &str, going: bool) -> Arc<dyn Object> {
        let owners = json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": owner, "controller": true}]);
        let mut pod = json!({"metadata": {"name": "p", "namespace": "a", "uid": format!("u{owner}"),
            "resourceVersion": version.to_string(), "ownerReferences": owners}});
        if going {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        decode::<Pod>(&pod.to_string()).unwrap()
    }

    #[test]
    fn early_losses_are_counted_once() {
        let (kind, key, seconds) = (Kind::of::<Pod>(), ObjectKey::new("a", "p"), Duration::from_secs);
        let mut view = ObjectCache::default();
        view.put(&kind, pod(1, "o", false));
        view.set_elapsed(seconds(9));
        view.put(&kind, pod(2, "o", true));
        assert_eq!(view.early_losses("o"), 1);
        view.remove(&kind, &key, 3);
        assert_eq!(view.early_losses("o"), 1, "it went, as was known");
        view.put(&kind, pod(4, "o", false));
        view.set_elapsed(seconds(19));
        view.remove(&kind, &key, 5);
        assert_eq!(view.early_losses("o"), 1, "it was old enough");
        view.put(&kind, pod(6, "o", false));
        view.put(&kind, pod(7, "q", false));
        assert_eq!(view.early_losses("o"), 2, "another one of its name took its place");
        view.set_elapsed(seconds(700));
        view.remove(&kind, &key, 8);
        view.put(&kind, pod(9, "q", false));
        view.remove(&kind, &key, 10);
        assert_eq!((view.early_losses("o"), view.early_losses("q")), (0, 1), "the other one's are forgotten");
    }
}
