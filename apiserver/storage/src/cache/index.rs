//! Indexes of a resource's current objects by label and by indexed field: a list by `spec.nodeName` or `app=web` costs
//! only its result. A field's values also keep the newest changes of their objects, for readers that follow one value
//! ([`ObjectReader::field_changes`](apiserver_resources::objects::ObjectReader::field_changes)).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use machinery_api::selector::{Operator, Requirement};

use super::object::{Cached, Resource};
use super::select::Selectors;
use crate::store::Revision;

/// The maximum number of changes that a value keeps. The number of its objects is a limit, too, as iterating over those
/// costs the same.
const CHANGES_MAX: usize = 256;
/// The minimum limit for a value with few objects.
const CHANGES_MIN: usize = 8;

/// The objects with one value of an indexed field.
#[derive(Debug)]
pub(super) struct FieldValue {
    keys: BTreeSet<Arc<str>>,
    /// The newest changes, oldest first: objects that were written with this value, gained it or lost it.
    changes: VecDeque<(Revision, Arc<str>)>,
    /// `changes` is complete after this revision.
    floor: Revision,
}

impl FieldValue {
    fn new(floor: Revision) -> Self {
        Self { keys: BTreeSet::new(), changes: VecDeque::new(), floor }
    }

    fn record(&mut self, revision: Revision, key: &Arc<str>) {
        let most = self.keys.len().clamp(CHANGES_MIN, CHANGES_MAX);
        while self.changes.len() >= most {
            let Some((oldest, _)) = self.changes.pop_front() else { break };
            self.floor = oldest;
        }
        self.changes.push_back((revision, key.clone()));
    }

    /// Whether an object currently has the value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// The keys of the objects that changed after a revision, in order, possibly repeated. `None` if the changes don't
    /// reach back that far.
    pub(super) fn since(&self, revision: Revision) -> Option<impl Iterator<Item = &Arc<str>>> {
        let from = self.changes.partition_point(|(at, _)| *at <= revision);
        (revision >= self.floor).then(|| self.changes.range(from..).map(|(_, key)| key))
    }
}

/// The name and value of a label.
type Label = (Box<str>, Box<str>);

#[derive(Debug, Default)]
pub(super) struct Index {
    /// One map by value for each indexed field of the resource, in its order.
    fields: Vec<HashMap<Box<str>, FieldValue>>,
    /// The keys by label name and value.
    labels: BTreeMap<Label, BTreeSet<Arc<str>>>,
}

static NOTHING: BTreeSet<Arc<str>> = BTreeSet::new();

impl Index {
    /// Adds an object that existed before the resource; `now` is the newest applied revision.
    pub(super) fn add(&mut self, resource: &Resource, object: &Cached, now: Revision) {
        self.fields.resize_with(resource.indexed_fields.len(), HashMap::new);
        for (values, label) in self.fields.iter_mut().zip(&*resource.indexed_fields) {
            let Some(value) = object.field(label) else { continue };
            at(values, value, now).keys.insert(object.key.clone());
        }
        self.add_labels(resource, object);
    }

    /// Applies a change of one object.
    pub(super) fn change(
        &mut self,
        resource: &Resource,
        (old, new): (Option<&Cached>, Option<&Cached>),
        revision: Revision,
    ) {
        let Some(key) = new.or(old).map(|object| &object.key) else { return };
        self.fields.resize_with(resource.indexed_fields.len(), HashMap::new);
        for (values, label) in self.fields.iter_mut().zip(&*resource.indexed_fields) {
            let (before, after) = (old.and_then(|old| old.field(label)), new.and_then(|new| new.field(label)));
            if before == after {
                // The usual case: the value is unchanged.
                if let Some(value) = after.and_then(|value| values.get_mut(value)) {
                    value.record(revision, key);
                }
                continue;
            }
            if let Some(before) = before
                && let Some(value) = values.get_mut(before)
            {
                value.keys.remove(key);
                value.record(revision, key);
                if value.keys.is_empty() {
                    values.remove(before);
                }
            }
            if let Some(after) = after {
                let value = at(values, after, revision.saturating_sub(1));
                value.keys.insert(key.clone());
                value.record(revision, key);
            }
        }
        if resource.indexes_labels && !old.zip(new).is_some_and(|(old, new)| old.has_labels_of(new)) {
            old.iter().for_each(|old| self.remove_labels(old));
            new.iter().for_each(|new| self.add_labels(resource, new));
        }
    }

    fn add_labels(&mut self, resource: &Resource, object: &Cached) {
        for (name, value) in object.labels().filter(|_| resource.indexes_labels) {
            self.labels.entry((name.into(), value.into())).or_default().insert(object.key.clone());
        }
    }

    fn remove_labels(&mut self, object: &Cached) {
        for (name, value) in object.labels() {
            let label = (name.into(), value.into());
            if let Some(keys) = self.labels.get_mut(&label) {
                keys.remove(&object.key);
                if keys.is_empty() {
                    self.labels.remove(&label);
                }
            }
        }
    }

    /// The objects with a value of an indexed field. `None`: the field is not indexed; `Some(None)`: there are no such
    /// objects.
    pub(super) fn field_value(&self, resource: &Resource, field: &str, value: &str) -> Option<Option<&FieldValue>> {
        let at = resource.indexed_fields.iter().position(|label| **label == *field)?;
        Some(self.fields.get(at).and_then(|values| values.get(value)))
    }

    /// The smallest indexed set that contains the filter's result; `None` if no index applies.
    pub(super) fn narrow(&self, resource: &Resource, filter: &Selectors) -> Option<&BTreeSet<Arc<str>>> {
        let fields = filter.fields.requirements.iter().filter(|r| r.equal);
        let fields = fields.filter_map(|r| self.field_value(resource, &r.field, &r.value));
        let is = |r: &&Requirement| matches!(r.operator, Operator::In | Operator::Equals | Operator::DoubleEquals);
        let labels = filter.labels.requirements().iter().filter(|r| resource.indexes_labels && is(r));
        let labels = labels.filter_map(|r| match r.values.as_slice() {
            [one] => Some(self.labels.get(&(r.key.as_str().into(), one.as_str().into()))),
            _ => None,
        });
        fields
            .map(|value| value.map(|value| &value.keys))
            .chain(labels)
            .map(|keys| keys.unwrap_or(&NOTHING))
            .min_by_key(|keys| keys.len())
    }
}

/// The objects of a value; a new entry keeps its changes from `floor` on.
fn at<'a>(values: &'a mut HashMap<Box<str>, FieldValue>, value: &str, floor: Revision) -> &'a mut FieldValue {
    if !values.contains_key(value) {
        values.insert(value.into(), FieldValue::new(floor));
    }
    values.get_mut(value).expect("it was inserted just now")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use machinery_env::Env;

    use super::super::tests::{PODS, delete, on_node, open, pod, pods, put};
    use super::super::{FieldChanges, WatchCache};
    use super::*;

    /// A reader's view of one node's pods.
    #[derive(Default)]
    struct Follower {
        revision: Revision,
        pods: BTreeMap<Arc<str>, Revision>,
        lost: usize,
        changes: usize,
    }

    impl Follower {
        fn follow(&mut self, cache: &WatchCache, node: &str) {
            match cache.field_changes(PODS, ("spec.nodeName", node), self.revision) {
                FieldChanges::Empty => self.pods.clear(),
                FieldChanges::Lost(revision) => {
                    (self.revision, self.lost) = (revision, self.lost + 1);
                    self.pods = listed(cache, node);
                }
                FieldChanges::Since(revision, changes) => {
                    (self.revision, self.changes) = (revision, self.changes + changes.len());
                    for (key, version) in changes {
                        match version {
                            Some(version) => drop(self.pods.insert(key, version)),
                            None => drop(self.pods.remove(&key)),
                        }
                    }
                }
            }
        }
    }

    fn listed(cache: &WatchCache, node: &str) -> BTreeMap<Arc<str>, Revision> {
        let page = cache.list(PODS, None, None, 0, &on_node(node)).unwrap();
        page.items.iter().map(|object| (object.key.clone(), object.modified)).collect()
    }

    #[tokio::test]
    async fn the_change_index_agrees_with_lists() {
        for seed in 0..20 {
            let (env, _) = Env::seeded(seed, Timestamp::UNIX_EPOCH);
            let cache = open().await;
            let mut followers = BTreeMap::from(["a", "b"].map(|node| (node, Follower::default())));
            for _ in 0..300 {
                let name = format!("p{}", env.below(6));
                let node = ["a", "b", ""][usize::try_from(env.below(3)).unwrap()];
                let written = pod("ns", &name, node, "web");
                match env.below(40) {
                    0 => cache.register(pods()).await,
                    1..12 => {
                        if cache.get(&written.0).is_some() {
                            delete(&cache, &written.0).await;
                        }
                    }
                    _ => drop(put(&cache, written).await),
                }
                if env.below(3) == 0 {
                    for (node, follower) in &mut followers {
                        follower.follow(&cache, node);
                        assert_eq!(follower.pods, listed(&cache, node), "seed {seed}, node {node}");
                    }
                }
            }
            let sum = |of: fn(&Follower) -> usize| followers.values().map(of).sum::<usize>();
            assert!(sum(|follower| follower.changes) > 100, "seed {seed}: changes are hardly used");
        }
    }

    #[tokio::test]
    async fn changes_are_bounded() {
        let cache = open().await;
        put(&cache, pod("ns", "p", "a", "web")).await;
        let first = cache.revision();
        let changes = |after| cache.field_changes(PODS, ("spec.nodeName", "a"), after);
        for n in 0..CHANGES_MIN as u64 {
            put(&cache, pod("ns", "p", "a", &format!("{n}"))).await;
        }
        let now = cache.revision();
        let FieldChanges::Since(_, keys) = changes(first) else { panic!("the newest changes are kept") };
        assert_eq!((keys.len(), keys.iter().all(|(_, version)| *version == Some(now))), (CHANGES_MIN, true));
        put(&cache, pod("ns", "p", "a", "more")).await;
        assert_eq!(changes(first), FieldChanges::Lost(now + 1));
        assert_eq!(changes(now + 1), FieldChanges::Since(now + 1, vec![]));
        assert_eq!(cache.field_changes(PODS, ("spec.nodeName", "b"), 0), FieldChanges::Empty);
        assert_eq!(cache.field_changes(PODS, ("status.phase", "b"), 0), FieldChanges::Lost(now + 1), "no such index");
    }
}
