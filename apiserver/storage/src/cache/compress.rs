//! Compresses cold records: some seconds after a record was written, it is compressed against similar records of its
//! resource, including records that only history and watchers hold. This runs in the background with a bounded number
//! of records per second, and visits no record twice.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use machinery_api::StoragePrefix;
use machinery_api::packed::Packer;

use super::{CacheState, SLICE_OBJECTS, WatchCache};
use crate::store::{Record, Revision};

/// The number of ticks (seconds) that a record stays uncompressed after its write: most reads come soon after it.
const COLD_AFTER_TICKS: usize = 2;
/// The maximum number of records that are compressed, and that are visited, in a tick.
const COMPRESSED_MAX: usize = 4096;
const VISITED_MAX: usize = 32 * 1024;
/// The number of bytes to compress before yielding: some thirty pods.
const COMPRESSED_BYTES_BEFORE_YIELD: usize = 128 * 1024;

/// The progress of the compression.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// All versions of the keys up to this one, which existed at the start. Changes after the revision follow later.
    Keys(Option<Arc<str>>, Revision),
    /// All changes up to and including this revision.
    Changes(Revision),
}

/// The packers of a resource.
#[derive(Debug, Default)]
struct Packers {
    bodies: Packer,
    /// For the field sets of managers.
    fields: Packer,
}

/// Compresses the cold records of a watch cache.
#[derive(Debug)]
pub(super) struct ColdCompressor {
    progress: Progress,
    /// The newest revision at each of the last ticks, oldest first.
    ticks: VecDeque<Revision>,
    packers: HashMap<StoragePrefix, Packers>,
}

impl ColdCompressor {
    pub(super) fn new() -> Self {
        Self { progress: Progress::Keys(None, 0), ticks: VecDeque::new(), packers: HashMap::new() }
    }

    /// Compresses some cold records.
    pub(super) async fn tick(&mut self, cache: &WatchCache) {
        self.ticks.push_back(cache.revision());
        if self.ticks.len() <= COLD_AFTER_TICKS {
            return;
        }
        let until = self.ticks.pop_front().unwrap_or_default();
        let (mut compressed, mut visited) = (0, 0);
        while compressed < COMPRESSED_MAX && visited < VISITED_MAX {
            let (records, visited_now) = self.next(&cache.read(), until);
            if visited_now == 0 {
                return;
            }
            visited += visited_now;
            compressed += records.len();
            let mut bytes = 0;
            for (prefix, record) in records {
                bytes += record.body_len();
                let packers = self.packers.entry(prefix).or_default();
                record.pack(&mut packers.bodies, &mut packers.fields);
                if bytes >= COMPRESSED_BYTES_BEFORE_YIELD {
                    bytes = 0;
                    tokio::task::yield_now().await;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// The next uncompressed records with their resources, and the number of visited records: 0 once all up to `until`
    /// are done.
    fn next(&mut self, state: &CacheState, until: Revision) -> (Vec<(StoragePrefix, Record)>, usize) {
        let (mut records, mut visited) = (Vec::new(), 0);
        let mut visit = |key: &str, record: &Record| {
            visited += 1;
            if record.is_plain()
                && let Some(entry) = state.resource(key)
            {
                records.push((entry.resource.prefix.clone(), record.clone()));
            }
        };
        match &self.progress {
            Progress::Changes(from) => match state.versions.since(*from) {
                Ok(changes) => {
                    let (mut last, mut count) = (*from, 0);
                    // Changes of one revision are visited together.
                    for change in changes.take_while(|change| change.revision <= until) {
                        if count >= SLICE_OBJECTS && change.revision > last {
                            break;
                        }
                        (last, count) = (change.revision, count + 1);
                        if let Some(cached) = &change.value {
                            visit(&change.key, cached.record());
                        }
                    }
                    self.progress = Progress::Changes(last);
                    visited = visited.max(count);
                }
                // It fell behind: the missed changes are no longer in history, but may be current state.
                Err(_) => {
                    self.progress = Progress::Keys(None, until);
                    visited = 1;
                }
            },
            Progress::Keys(after, began) => {
                let began = if after.is_none() { until } else { *began };
                let mut last = None;
                for (key, versions) in state.versions.after(after.as_deref()).take(SLICE_OBJECTS) {
                    let written = versions.filter(|cached| cached.modified <= until);
                    written.for_each(|cached| visit(key, cached.record()));
                    last = Some(key.clone());
                }
                visited = visited.max(1);
                self.progress = match last {
                    Some(last) => Progress::Keys(Some(last), began),
                    None => Progress::Changes(began),
                };
            }
        }
        if self.packers.len() > state.resources.len() {
            self.packers.retain(|prefix, _| state.resources.contains_key(prefix));
        }
        (records, visited)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{PODS, on_node, open, pod, put};
    use super::*;

    /// All records of the cache.
    fn records(cache: &WatchCache) -> Vec<Record> {
        let state = cache.read();
        let all = state.versions.after(None);
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
    async fn cold_records_are_compressed_and_keep_their_content() {
        let cache = open().await;
        for phase in ["Pending", "Running"] {
            for n in 0..200 {
                put(&cache, template(n, phase)).await;
            }
        }
        let middle = cache.revision() - 200;
        let mut compressor = ColdCompressor::new();
        compressor.tick(&cache).await;
        compressor.tick(&cache).await;
        assert!(records(&cache).iter().all(Record::is_plain), "too fresh");
        // A recent write: the next tick must not compress it.
        let fresh = template(0, "Succeeded");
        put(&cache, fresh).await;
        compressor.tick(&cache).await;
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
        // Later writes are found by their change, existing objects by their key.
        put(&cache, template(7, "Failed")).await;
        for _ in 0..3 {
            compressor.tick(&cache).await;
        }
        let seventh = cache.get(&template(7, "").0).unwrap();
        assert!(!seventh.record().is_plain());
        assert_eq!(seventh.value()["status"]["phase"], "Failed");
    }

    #[tokio::test]
    async fn keys_dropped_from_history_are_still_compressed() {
        let cache = open().await;
        let mut compressor = ColdCompressor::new();
        for _ in 0..3 {
            compressor.tick(&cache).await;
        }
        for n in 0..50 {
            put(&cache, template(n, "Running")).await;
        }
        cache.store().compact(cache.revision()).await.unwrap();
        for _ in 0..5 {
            compressor.tick(&cache).await;
        }
        assert!(records(&cache).iter().filter(|record| record.is_plain()).count() <= 6);
    }
}
