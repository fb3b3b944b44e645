//! Records rest: some seconds after it was written each is packed beside others of its resource, also those that only
//! history and watchers hold. Done behind all requests, a bounded number each second, and nothing is looked at twice.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use machinery_api::StoragePrefix;
use machinery_api::packed::Packer;

use super::{Inner, SLICE_OBJECTS, WatchCache};
use crate::store::{Record, Revision};

/// Ticks (seconds) that a record is left as it is after it was written: who reads it, reads it then.
const REST_AFTER_TICKS: usize = 2;
/// Records that are packed in a tick, and those that are looked at.
const PACKED_MAX: usize = 4096;
const SEEN_MAX: usize = 32 * 1024;
/// Bytes that are packed before others have a turn: some thirty pods.
const PACKED_AT_ONCE_BYTES: usize = 128 * 1024;

/// How far the cache has been packed.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// All versions of the keys up to this one: what was there at a start. Changes after the revision come thereafter.
    Keys(Option<Arc<str>>, Revision),
    /// All changes up to and with this revision.
    Changes(Revision),
}

/// Those of a resource.
#[derive(Debug, Default)]
struct Packers {
    bodies: Packer,
    /// For managers' fields.
    fields: Packer,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Rest {
    progress: Progress,
    /// The newest revision of each of the last ticks, the oldest first.
    ticks: VecDeque<Revision>,
    packers: HashMap<StoragePrefix, Packers>,
}

impl Rest {
    pub(super) fn new() -> Self {
        Self { progress: Progress::Keys(None, 0), ticks: VecDeque::new(), packers: HashMap::new() }
    }

    /// Packs some of what rests by now.
    pub(super) async fn tick(&mut self, cache: &WatchCache) {
        self.ticks.push_back(cache.revision());
        if self.ticks.len() <= REST_AFTER_TICKS {
            return;
        }
        let until = self.ticks.pop_front().unwrap_or_default();
        let (mut packed, mut seen) = (0, 0);
        while packed < PACKED_MAX && seen < SEEN_MAX {
            let (records, looked_at) = self.next(&cache.read(), until);
            if looked_at == 0 {
                return;
            }
            seen += looked_at;
            packed += records.len();
            let mut bytes = 0;
            for (prefix, record) in records {
                bytes += record.body_len();
                let packers = self.packers.entry(prefix).or_default();
                record.pack(&mut packers.bodies, &mut packers.fields);
                if bytes >= PACKED_AT_ONCE_BYTES {
                    bytes = 0;
                    tokio::task::yield_now().await;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Further plain records, with their resources, and how many were looked at: none where all is done up to `until`.
    fn next(&mut self, inner: &Inner, until: Revision) -> (Vec<(StoragePrefix, Record)>, usize) {
        let (mut records, mut seen) = (Vec::new(), 0);
        let mut look = |key: &str, record: &Record| {
            seen += 1;
            if record.is_plain()
                && let Some(shelf) = inner.shelf(key)
            {
                records.push((shelf.resource.prefix.clone(), record.clone()));
            }
        };
        match &self.progress {
            Progress::Changes(from) => match inner.versions.since(*from) {
                Ok(changes) => {
                    let (mut last, mut count) = (*from, 0);
                    // What was changed together is seen together.
                    for change in changes.take_while(|change| change.revision <= until) {
                        if count >= SLICE_OBJECTS && change.revision > last {
                            break;
                        }
                        (last, count) = (change.revision, count + 1);
                        if let Some(cached) = &change.value {
                            look(&change.key, cached.record());
                        }
                    }
                    self.progress = Progress::Changes(last);
                    seen = seen.max(count);
                }
                // It was far behind: what it has missed is history no more, but may be what is there.
                Err(_) => {
                    self.progress = Progress::Keys(None, until);
                    seen = 1;
                }
            },
            Progress::Keys(after, began) => {
                let began = if after.is_none() { until } else { *began };
                let mut last = None;
                for (key, versions) in inner.versions.after(after.as_deref()).take(SLICE_OBJECTS) {
                    let written = versions.filter(|cached| cached.modified <= until);
                    written.for_each(|cached| look(key, cached.record()));
                    last = Some(key.clone());
                }
                seen = seen.max(1);
                self.progress = match last {
                    Some(last) => Progress::Keys(Some(last), began),
                    None => Progress::Changes(began),
                };
            }
        }
        if self.packers.len() > inner.shelves.len() {
            self.packers.retain(|prefix, _| inner.shelves.contains_key(prefix));
        }
        (records, seen)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{PODS, on_node, open, pod, put};
    use super::*;

    /// All records that the cache holds.
    fn records(cache: &WatchCache) -> Vec<Record> {
        let inner = cache.read();
        let all = inner.versions.after(None);
        all.flat_map(|(_, versions)| versions.map(|cached| cached.record().clone()).collect::<Vec<_>>()).collect()
    }

    fn template(n: usize, phase: &str) -> (String, Value) {
        let (key, mut object) = pod("ns", &format!("p{n}"), "node-1", "web");
        let filler: serde_json::Map<_, _> = (0..30).map(|i| (format!("field{i}"), json!(i * 7 % 11))).collect();
        object["spec"]["filler"] = filler.into();
        object["status"] = json!({"phase": phase});
        (key, object)
    }

    #[tokio::test]
    async fn what_rests_is_packed_and_says_what_it_said() {
        let cache = open().await;
        for phase in ["Pending", "Running"] {
            for n in 0..200 {
                put(&cache, template(n, phase)).await;
            }
        }
        let middle = cache.revision() - 200;
        let mut rest = Rest::new();
        rest.tick(&cache).await;
        rest.tick(&cache).await;
        assert!(records(&cache).iter().all(Record::is_plain), "too fresh");
        // Written since: the next tick must not touch it.
        let fresh = template(0, "Succeeded");
        put(&cache, fresh).await;
        rest.tick(&cache).await;
        let plain = records(&cache).into_iter().filter(Record::is_plain).count();
        assert!((1..=12).contains(&plain), "{plain}: the fresh one, and those before a model was found");
        for (at, phase) in [(Some(middle), "Pending"), (None, "Running")] {
            let page = cache.list(PODS, at, None, 0, &on_node("node-1")).unwrap();
            assert_eq!(page.items.len(), 200);
            for cached in page.items.iter().filter(|cached| cached.name() != "p0") {
                let n = cached.name()[1..].parse().unwrap();
                let mut expected = template(n, phase).1;
                expected["metadata"]["resourceVersion"] = cached.modified.to_string().into();
                assert_eq!(cached.value(), expected);
            }
        }
        // What comes later is found by its change, what was there at a start by its key.
        put(&cache, template(7, "Failed")).await;
        for _ in 0..3 {
            rest.tick(&cache).await;
        }
        let seventh = cache.get(&template(7, "").0).unwrap();
        assert!(!seventh.record().is_plain());
        assert_eq!(seventh.value()["status"]["phase"], "Failed");
    }

    #[tokio::test]
    async fn what_history_has_lost_meanwhile_is_packed_by_its_key() {
        let cache = open().await;
        let mut rest = Rest::new();
        for _ in 0..3 {
            rest.tick(&cache).await;
        }
        for n in 0..50 {
            put(&cache, template(n, "Running")).await;
        }
        cache.store().compact(cache.revision()).await.unwrap();
        for _ in 0..5 {
            rest.tick(&cache).await;
        }
        assert!(records(&cache).iter().filter(|record| record.is_plain()).count() <= 6);
    }
}
