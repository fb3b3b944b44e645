//! Queue of event writes: bounded, merged by event, fair over namespaces. Pure.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Bound;

use serde_json::Value;

use machinery_api::ObjectKey;

/// Maximum queued events of one recorder (some 1 kB each); 1,000 pods that start at once cause 4,000. Beyond it the
/// newest of the namespace with the most are dropped: the objects' status carries the same information.
const WAITING_MAX: usize = 8192;

/// One write of one event.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct EventWrite {
    /// The event's own namespace and name.
    pub(super) key: ObjectKey,
    /// The whole event as it is now.
    pub(super) event: Value,
    /// The change since its creation; `None` for a new event.
    pub(super) patch: Option<Value>,
    /// The number of tries.
    pub(super) tries: u32,
}

/// The queue of one recorder.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    waiting: HashMap<ObjectKey, EventWrite>,
    /// Names in order of arrival, by namespace; no entry is empty.
    by_namespace: BTreeMap<String, VecDeque<String>>,
    /// The last served namespace, for round-robin.
    last_served: String,
    /// Events with a write in flight: two concurrent writes of one event could overtake each other.
    in_flight: HashSet<ObjectKey>,
}

impl EventQueue {
    /// Adds a write. Returns the write dropped for it.
    pub(super) fn push(&mut self, write: EventWrite) -> Option<EventWrite> {
        if let Some(waiting) = self.waiting.get_mut(&write.key) {
            // A new event stays a create, with its present content.
            waiting.patch = waiting.patch.take().and(write.patch);
            waiting.event = write.event;
            return None;
        }
        let dropped =
            if self.waiting.len() >= WAITING_MAX { self.drop_newest_of_longest(&write.key.namespace) } else { None };
        if self.waiting.len() >= WAITING_MAX {
            return Some(write);
        }
        self.by_namespace.entry(write.key.namespace.clone()).or_default().push_back(write.key.name.clone());
        self.waiting.insert(write.key.clone(), write);
        dropped
    }

    /// Drops the newest write of the longest queue, unless that is the newcomer's own.
    fn drop_newest_of_longest(&mut self, newcomer: &str) -> Option<EventWrite> {
        let own = self.by_namespace.get(newcomer).map_or(0, VecDeque::len);
        let (longest, names) = self.by_namespace.iter_mut().max_by_key(|(_, names)| names.len())?;
        if names.len() <= own + 1 {
            return None;
        }
        let name = names.pop_back()?;
        self.waiting.remove(&ObjectKey::new(longest.clone(), name))
    }

    /// The next write in round-robin order: a namespace's oldest that isn't in flight.
    pub(super) fn pop(&mut self) -> Option<EventWrite> {
        let last_served = self.last_served.as_str();
        let after = self.by_namespace.range::<str, _>((Bound::Excluded(last_served), Bound::Unbounded));
        let turns = after.chain(self.by_namespace.range::<str, _>((Bound::Unbounded, Bound::Included(last_served))));
        let free = |namespace: &str, name: &String| !self.in_flight.contains(&ObjectKey::new(namespace, name.clone()));
        let (namespace, at) = turns
            .filter_map(|(namespace, names)| Some((namespace.clone(), names.iter().position(|n| free(namespace, n))?)))
            .next()?;
        let names = self.by_namespace.get_mut(&namespace)?;
        let name = names.remove(at)?;
        if names.is_empty() {
            self.by_namespace.remove(&namespace);
        }
        self.last_served.clone_from(&namespace);
        let key = ObjectKey::new(namespace, name);
        self.in_flight.insert(key.clone());
        self.waiting.remove(&key)
    }

    /// Marks a write as finished.
    pub(super) fn finish(&mut self, key: &ObjectKey) {
        self.in_flight.remove(key);
    }

    /// Requeues a failed write, merged with newer changes.
    pub(super) fn retry(&mut self, mut write: EventWrite) {
        self.finish(&write.key);
        if let Some(newer) = self.waiting.get_mut(&write.key) {
            newer.patch = write.patch.take().and(newer.patch.take());
            newer.tries = write.tries;
            return;
        }
        self.by_namespace.entry(write.key.namespace.clone()).or_default().push_front(write.key.name.clone());
        self.waiting.insert(write.key.clone(), write);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn write(namespace: &str, name: &str, count: u32) -> EventWrite {
        let event = json!({"count": count});
        let patch = (count > 1).then(|| event.clone());
        EventWrite { key: ObjectKey::new(namespace, name), event, patch, tries: 0 }
    }

    fn names(queue: &mut EventQueue) -> Vec<String> {
        std::iter::from_fn(|| queue.pop()).map(|write| write.key.name).collect()
    }

    #[test]
    fn namespaces_take_turns() {
        let mut queue = EventQueue::default();
        for (namespace, name) in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("c", "c2")] {
            assert_eq!(queue.push(write(namespace, name, 1)), None);
        }
        assert_eq!(names(&mut queue), ["a1", "b1", "c1", "a2", "c2", "a3"]);
    }

    #[test]
    fn a_flood_of_one_namespace_costs_that_namespace() {
        let mut queue = EventQueue::default();
        for nth in 0..WAITING_MAX {
            assert_eq!(queue.push(write("loud", &format!("l{nth}"), 1)), None);
        }
        let newest = format!("l{}", WAITING_MAX - 1);
        assert_eq!(queue.push(write("quiet", "q", 1)).unwrap().key.name, newest, "the newest of the loud one goes");
        assert_eq!(queue.push(write("loud", "late", 1)).unwrap().key.name, "late");
        assert_eq!(names(&mut queue).iter().filter(|name| *name == "q").count(), 1);
    }

    #[test]
    fn writes_of_one_event_are_merged_and_never_overtake_each_other() {
        let mut queue = EventQueue::default();
        queue.push(write("a", "e", 1));
        queue.push(write("a", "e", 2));
        let first = queue.pop().unwrap();
        assert_eq!((first.patch.is_none(), &first.event), (true, &json!({"count": 2})), "still to be made");
        queue.push(write("a", "e", 3));
        assert_eq!(queue.pop(), None, "the first is under way");
        queue.retry(first);
        let again = queue.pop().unwrap();
        assert_eq!((again.patch.is_none(), &again.event), (true, &json!({"count": 3})));
        queue.finish(&again.key);
        queue.push(write("a", "e", 4));
        assert_eq!(queue.pop().unwrap().patch, Some(json!({"count": 4})));
    }
}
