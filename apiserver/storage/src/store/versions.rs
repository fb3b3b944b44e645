//! A multi-version map with its history: reads of the current state and of past revisions, and the changes since one.
//!
//! Pure. The stores keep entries in it, the cache objects; values are cheap to clone (shared bytes, `Arc`).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use super::Revision;

/// Why a revision can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutOfReach {
    /// Below the compacted revision, which is contained.
    Compacted(Revision),
    /// Above the current revision, which is contained.
    Future(Revision),
}

#[derive(Debug, Clone)]
struct Version<V> {
    at: Revision,
    value: Option<V>,
}

/// Most keys have one version, so older versions are allocated only when needed.
#[derive(Debug, Clone)]
struct Chain<V> {
    latest: Version<V>,
    older: Vec<Version<V>>,
}

impl<V> Chain<V> {
    fn at(&self, revision: Revision) -> Option<(Revision, &V)> {
        let version = if self.latest.at <= revision {
            &self.latest
        } else {
            let after = self.older.partition_point(|v| v.at <= revision);
            self.older.get(after.checked_sub(1)?)?
        };
        Some((version.at, version.value.as_ref()?))
    }
}

/// One change in history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRecord<V> {
    /// The revision of the change.
    pub revision: Revision,
    /// The key.
    pub key: Arc<str>,
    /// The new value; `None` if deleted.
    pub value: Option<V>,
    /// The value before, and its revision.
    pub previous: Option<(Revision, V)>,
}

/// A write of a key at a revision, at most one each; the value is in the key's versions.
#[derive(Debug)]
struct HistoryEntry {
    revision: Revision,
    key: Arc<str>,
}

/// A multi-version map.
#[derive(Debug)]
pub struct Versions<V> {
    keys: BTreeMap<Arc<str>, Chain<V>>,
    history: VecDeque<HistoryEntry>,
    revision: Revision,
    compacted: Revision,
}

impl<V: Clone> Versions<V> {
    /// An empty map at a revision.
    #[must_use]
    pub fn new(revision: Revision) -> Self {
        Self { keys: BTreeMap::new(), history: VecDeque::new(), revision, compacted: revision }
    }

    /// A map with an initial state at a revision and no history. A state in key order is built in bulk, which takes
    /// half the time and memory of inserting.
    #[must_use]
    pub fn filled(revision: Revision, state: impl Iterator<Item = (Arc<str>, Revision, V)>) -> Self {
        let chain = |(key, at, value)| (key, Chain { latest: Version { at, value: Some(value) }, older: Vec::new() });
        Self { keys: state.map(chain).collect(), ..Self::new(revision) }
    }

    /// The newest revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The oldest readable revision; history begins after it.
    #[must_use]
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// The current value of a key, with the revision of its last write.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<(Revision, &V)> {
        let chain = self.keys.get(key)?;
        Some((chain.latest.at, chain.latest.value.as_ref()?))
    }

    /// The map's own copy of the key, for sharing.
    #[must_use]
    pub fn shared_key(&self, key: &str) -> Option<Arc<str>> {
        self.keys.get_key_value(key).map(|(key, _)| key.clone())
    }

    /// Whether `at` can be read.
    pub fn check(&self, at: Revision) -> Result<(), OutOfReach> {
        if at < self.compacted {
            Err(OutOfReach::Compacted(self.compacted))
        } else if at > self.revision {
            Err(OutOfReach::Future(self.revision))
        } else {
            Ok(())
        }
    }

    /// The value of a key at a revision.
    pub fn get_at(&self, key: &str, at: Revision) -> Result<Option<(Revision, &V)>, OutOfReach> {
        self.check(at)?;
        Ok(self.keys.get(key).and_then(|chain| chain.at(at)))
    }

    /// The keys between two bounds at a checked revision, in order.
    pub fn range<'a>(
        &'a self,
        from: Bound<&'a str>,
        to: Bound<&'a str>,
        at: Revision,
    ) -> impl Iterator<Item = (&'a Arc<str>, Revision, &'a V)> + 'a {
        let empty = match (from, to) {
            (Bound::Included(f) | Bound::Excluded(f), Bound::Included(t) | Bound::Excluded(t)) => f >= t,
            _ => false,
        };
        let range = (!empty).then(|| self.keys.range::<str, _>((from, to)));
        range.into_iter().flatten().filter_map(move |(key, chain)| {
            let (since, value) = chain.at(at)?;
            Some((key, since, value))
        })
    }

    /// The keys after one (`None`: all), each with all of its readable values.
    pub fn after<'a>(
        &'a self,
        key: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Arc<str>, impl Iterator<Item = &'a V>)> + 'a {
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.keys.range::<str, _>((from, Bound::Unbounded)).map(|(key, chain)| {
            (key, chain.older.iter().chain([&chain.latest]).filter_map(|version| version.value.as_ref()))
        })
    }

    /// Sets or deletes a key at `revision`, which is the newest or the next one. Returns the value before.
    pub fn apply(&mut self, revision: Revision, key: &Arc<str>, value: Option<V>) -> Option<(Revision, V)> {
        debug_assert!(revision >= self.revision, "revisions only rise");
        self.revision = revision;
        let version = Version { at: revision, value };
        let mut shared = key.clone();
        let previous = match self.keys.get_mut(key) {
            None => {
                self.keys.insert(key.clone(), Chain { latest: version, older: Vec::new() });
                None
            }
            Some(chain) => {
                let old = std::mem::replace(&mut chain.latest, version);
                let previous = old.value.clone().map(|value| (old.at, value));
                chain.older.push(old);
                shared = self.shared_key(key).unwrap_or(shared);
                previous
            }
        };
        self.history.push_back(HistoryEntry { revision, key: shared });
        previous
    }

    /// There are no changes up to `revision`.
    pub fn advance(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
    }

    /// Replaces the newest value of a key with an equivalent one: no change, and nothing in history.
    pub fn replace_latest(&mut self, key: &str, value: V) {
        if let Some(chain) = self.keys.get_mut(key)
            && chain.latest.value.is_some()
        {
            chain.latest.value = Some(value);
        }
    }

    /// History after `revision`, oldest first.
    pub fn since(&self, revision: Revision) -> Result<impl Iterator<Item = HistoryRecord<V>>, OutOfReach> {
        if revision < self.compacted {
            return Err(OutOfReach::Compacted(self.compacted));
        }
        let first = self.history.partition_point(|record| record.revision <= revision);
        Ok(self.history.range(first..).map(|written| self.history_record(written)))
    }

    /// The history record of a write that is not compacted.
    fn history_record(&self, HistoryEntry { revision, key }: &HistoryEntry) -> HistoryRecord<V> {
        let versions = self.keys.get(key);
        let at = |revision| versions.and_then(|versions| versions.at(revision));
        let value = at(*revision).map(|(_, value)| value.clone());
        let previous = at(revision - 1).map(|(since, value)| (since, value.clone()));
        HistoryRecord { revision: *revision, key: key.clone(), value, previous }
    }

    /// The number of changes in history.
    #[must_use]
    pub fn history_len(&self) -> usize {
        self.history.len()
    }

    /// The revision in the middle of history: compacting there halves it.
    #[must_use]
    pub fn middle(&self) -> Revision {
        self.history.get(self.history.len() / 2).map_or(self.revision, |record| record.revision)
    }

    /// Drops history up to and including `revision`; returns the dropped records, oldest first.
    pub fn compact(&mut self, revision: Revision) -> Vec<HistoryRecord<V>> {
        let revision = revision.min(self.revision);
        let mut gone = Vec::new();
        if revision <= self.compacted {
            return gone;
        }
        self.compacted = revision;
        while let Some(written) = self.history.front().filter(|written| written.revision <= revision) {
            let record = self.history_record(written);
            self.history.pop_front();
            if let Some(chain) = self.keys.get_mut(&record.key) {
                chain.older.retain(|version| version.at >= record.revision);
                if chain.older.is_empty() {
                    chain.older.shrink_to_fit();
                }
                if chain.latest.at == record.revision && chain.latest.value.is_none() {
                    self.keys.remove(&record.key);
                }
            }
            gone.push(record);
        }
        // The capacity of a busy hour is not kept.
        if self.history.capacity() > 4 * self.history.len() {
            self.history.shrink_to(2 * self.history.len());
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_revision_since_the_compacted_one_reads_as_it_was() {
        let mut map = Versions::new(0);
        let mut models = vec![BTreeMap::new()];
        for revision in 1..=60u64 {
            let key: Arc<str> = format!("k{}", revision * 7 % 5).into();
            let value = (revision % 4 != 0).then_some(revision);
            map.apply(revision, &key, value);
            let mut model: BTreeMap<Arc<str>, u64> = models[models.len() - 1].clone();
            match value {
                Some(value) => model.insert(key, value),
                None => model.remove(&key),
            };
            models.push(model);
        }
        for compacted in [0u64, 17, 40, 60] {
            map.compact(compacted);
            assert_eq!(map.since(compacted).unwrap().count() as u64, 60 - compacted);
            for change in map.since(compacted).unwrap() {
                let (after, before) = (&models[change.revision as usize], &models[change.revision as usize - 1]);
                assert_eq!(change.value.as_ref(), after.get(&change.key), "compacted {compacted}");
                assert_eq!(change.previous.map(|(_, value)| value).as_ref(), before.get(&change.key));
            }
            for at in compacted..=60 {
                let seen: BTreeMap<Arc<str>, u64> =
                    map.range(Bound::Unbounded, Bound::Unbounded, at).map(|(k, _, v)| (k.clone(), *v)).collect();
                assert_eq!(seen, models[at as usize], "at {at} compacted {compacted}");
            }
        }
        assert_eq!(map.check(59), Err(OutOfReach::Compacted(60)));
        assert_eq!(map.check(61), Err(OutOfReach::Future(60)));
        assert!(map.keys.values().all(|chain| chain.older.is_empty() && chain.latest.value.is_some()));
    }
}
