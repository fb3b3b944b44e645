//! Writes that the cache must show before their key is requeued, and the tasks that wait for them. Waiters are indexed
//! by kind and version or by object, so that a change wakes only the waiters it concerns.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::oneshot;

use crate::cache::{Change, ObjectCache};
use crate::object::Kind;
use machinery_api::ObjectKey;

/// A write that the cache doesn't show yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum PendingWrite {
    /// The cache must reach this version of a kind.
    Version(Kind, u64),
    /// The object must be gone or terminating.
    Gone(Kind, ObjectKey, Option<String>),
}

impl PendingWrite {
    /// Whether the cache shows the write.
    pub(super) fn is_visible(&self, view: &ObjectCache) -> bool {
        match self {
            Self::Version(kind, version) => view.seen(kind).is_none_or(|seen| seen >= *version),
            Self::Gone(kind, key, uid) => view
                .metadata(kind, key)
                .is_none_or(|known| known.deletion_timestamp.is_some() || uid.is_some() && known.uid != *uid),
        }
    }
}

/// Tasks that wait for writes.
#[derive(Debug, Default)]
pub(super) struct WriteWaiters {
    by_version: HashMap<Kind, BTreeMap<u64, Vec<oneshot::Sender<()>>>>,
    by_object: HashMap<(Kind, ObjectKey), Vec<oneshot::Sender<()>>>,
}

impl WriteWaiters {
    /// Returns a receiver that fires when the cache may show a write. Register first, then check the cache.
    pub(super) fn register(&mut self, write: &PendingWrite) -> oneshot::Receiver<()> {
        let (waker, woken) = oneshot::channel();
        let wakers = match write {
            PendingWrite::Version(kind, version) => {
                self.by_version.entry(kind.clone()).or_default().entry(*version).or_default()
            }
            PendingWrite::Gone(kind, key, _) => self.by_object.entry((kind.clone(), key.clone())).or_default(),
        };
        // Drop waiters that gave up.
        wakers.retain(|waker| !waker.is_closed());
        wakers.push(waker);
        woken
    }

    /// Wakes the waiters of a changed kind. A woken task checks the cache again; a closed receiver is ignored.
    pub(super) fn wake(&mut self, view: &ObjectCache, kind: &Kind, changes: &[Change]) {
        if let Some(waiting) = self.by_version.get_mut(kind) {
            let later = match view.seen(kind) {
                Some(seen) => waiting.split_off(&seen.saturating_add(1)),
                None => BTreeMap::new(),
            };
            let due = std::mem::replace(waiting, later);
            if waiting.is_empty() {
                self.by_version.remove(kind);
            }
            due.into_values().flatten().for_each(wake);
        }
        if self.by_object.is_empty() {
            return;
        }
        for change in changes {
            let woken = self.by_object.remove(&(kind.clone(), (*change.key).clone()));
            woken.into_iter().flatten().for_each(wake);
        }
    }
}

/// Wakes one waiter; a waiter that gave up is ignored.
fn wake(waker: oneshot::Sender<()>) {
    let _ = waker.send(());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pod;
    use crate::object::decode;

    fn pod(name: &str, version: u64) -> std::sync::Arc<dyn crate::object::Object> {
        let text = serde_json::json!({"metadata": {"name": name, "namespace": "a", "uid": name, "resourceVersion": version.to_string()}});
        decode::<Pod>(&text.to_string()).unwrap()
    }

    #[test]
    fn a_change_wakes_its_waiters_only() {
        let kind = Kind::of::<Pod>();
        let (mut view, mut waiters) = (ObjectCache::default(), WriteWaiters::default());
        let mut changed = |waiters: &mut WriteWaiters, name: &str, version: u64| {
            let changes: Vec<Change> = view.put(&kind, pod(name, version)).into_iter().collect();
            waiters.wake(&view, &kind, &changes);
        };
        let version = |version| PendingWrite::Version(Kind::of::<Pod>(), version);
        let gone = |name: &str| PendingWrite::Gone(Kind::of::<Pod>(), ObjectKey::new("a", name), None);
        let [mut five, mut seven, mut p, mut q] =
            [version(5), version(7), gone("p"), gone("q")].map(|write| waiters.register(&write));
        changed(&mut waiters, "p", 4);
        assert!(p.try_recv().is_ok() && [&mut five, &mut seven, &mut q].iter_mut().all(|w| w.try_recv().is_err()));
        changed(&mut waiters, "x", 6);
        assert!(five.try_recv().is_ok() && seven.try_recv().is_err() && q.try_recv().is_err());
        changed(&mut waiters, "q", 7);
        assert!(seven.try_recv().is_ok() && q.try_recv().is_ok());
        assert!(waiters.by_version.is_empty() && waiters.by_object.is_empty());
    }

    #[test]
    fn dropping_a_kind_wakes_its_waiters() {
        let kind = Kind::of::<Pod>();
        let (mut view, mut waiters) = (ObjectCache::default(), WriteWaiters::default());
        view.open(&kind);
        let mut waiting = waiters.register(&PendingWrite::Version(kind.clone(), 9));
        view.close(&kind);
        waiters.wake(&view, &kind, &[]);
        assert!(waiting.try_recv().is_ok());
    }
}
