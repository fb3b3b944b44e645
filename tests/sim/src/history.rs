//! All commits in the order of the store's writer: the truth that checkers compare components' views with.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use apiserver_storage::store::{Change, Revision};
use bytes::Bytes;
use serde_json::Value;

/// One version of one object.
#[derive(Debug)]
pub(crate) struct Version {
    /// The revision of its write.
    pub(crate) revision: Revision,
    body: Bytes,
    value: OnceLock<Value>,
}

impl Version {
    /// The object, as stored (without its resourceVersion).
    pub(crate) fn value(&self) -> &Value {
        self.value.get_or_init(|| serde_json::from_slice(&self.body).unwrap_or_default())
    }
}

/// One key's state from a revision on; `None`: deleted.
type States = Vec<(Revision, Option<Arc<Version>>)>;

#[derive(Default)]
struct HistoryState {
    keys: BTreeMap<Arc<str>, States>,
    /// All changes in order.
    steps: Vec<KeyChange>,
    revision: Revision,
}

/// The history of one run.
#[derive(Default)]
pub(crate) struct History(Mutex<HistoryState>);

/// One key's change, with its previous version.
#[derive(Clone)]
pub(crate) struct KeyChange {
    pub(crate) key: Arc<str>,
    pub(crate) revision: Revision,
    pub(crate) old: Option<Arc<Version>>,
    pub(crate) new: Option<Arc<Version>>,
}

impl History {
    fn inner(&self) -> MutexGuard<'_, HistoryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records commits and skips known ones (a sink receives the past again). Returns the new changes.
    pub(crate) fn commit(&self, changes: &[Change]) -> Vec<KeyChange> {
        let mut inner = self.inner();
        let known = inner.revision;
        let mut steps = Vec::new();
        for change in changes.iter().filter(|change| change.revision > known) {
            inner.revision = inner.revision.max(change.revision);
            let new = change.entry.as_ref().map(|entry| {
                let body = Bytes::copy_from_slice(&entry.record.body());
                Arc::new(Version { revision: entry.modified, body, value: OnceLock::new() })
            });
            let states = inner.keys.entry(change.key.clone()).or_default();
            let old = states.last().and_then(|(_, state)| state.clone());
            states.push((change.revision, new.clone()));
            steps.push(KeyChange { key: change.key.clone(), revision: change.revision, old, new });
        }
        inner.steps.extend(steps.iter().cloned());
        steps
    }

    /// Clears the history at the end of a run, so that later holders keep no memory.
    pub(crate) fn forget(&self) {
        *self.inner() = HistoryState::default();
    }

    /// The newest revision.
    pub(crate) fn revision(&self) -> Revision {
        self.inner().revision
    }

    /// One key's state at a revision.
    pub(crate) fn at(&self, key: &str, revision: Revision) -> Option<Arc<Version>> {
        self.inner().keys.get(key).and_then(|states| at(states, revision))
    }

    /// Whether the key was written at the revision.
    pub(crate) fn wrote(&self, key: &str, revision: Revision) -> bool {
        self.inner().keys.get(key).is_some_and(|states| states.iter().any(|(when, _)| *when == revision))
    }

    /// All states of a key between two revisions: its version, or `None` where it was absent.
    pub(crate) fn between(&self, key: &str, from: Revision, to: Revision) -> Vec<Option<Revision>> {
        let inner = self.inner();
        let states = inner.keys.get(key).map(Vec::as_slice).unwrap_or_default();
        let version = |state: &Option<Arc<Version>>| state.as_ref().map(|version| version.revision);
        let mut all = vec![at(states, from).map(|version| version.revision)];
        all.extend(states.iter().filter(|(when, _)| *when > from && *when <= to).map(|(_, state)| version(state)));
        all
    }

    /// The objects below a prefix at a revision, in key order.
    pub(crate) fn below(&self, prefix: &str, revision: Revision) -> Vec<(Arc<str>, Arc<Version>)> {
        let inner = self.inner();
        let from = inner
            .keys
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix));
        from.filter_map(|(key, states)| Some((key.clone(), at(states, revision)?))).collect()
    }

    /// The current objects below a prefix.
    pub(crate) fn now(&self, prefix: &str) -> Vec<(Arc<str>, Arc<Version>)> {
        self.below(prefix, Revision::MAX)
    }

    /// The changes below a prefix after one revision and up to another, in order.
    pub(crate) fn changes(&self, prefix: &str, after: Revision, to: Revision) -> Vec<KeyChange> {
        let inner = self.inner();
        let begin = inner.steps.partition_point(|step| step.revision <= after);
        let steps = inner.steps[begin..].iter().take_while(|step| step.revision <= to);
        steps.filter(|step| step.key.starts_with(prefix)).cloned().collect()
    }
}

fn at(states: &[(Revision, Option<Arc<Version>>)], revision: Revision) -> Option<Arc<Version>> {
    let after = states.partition_point(|(when, _)| *when <= revision);
    states.get(after.checked_sub(1)?)?.1.clone()
}
