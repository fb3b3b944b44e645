//! Plans transactions without IO: compares against the visible and the pending state, times to live, compaction. Both
//! local stores use it, and differ in how they make a plan durable.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::versions::{HistoryRecord, OutOfReach, Versions};
use super::{
    COMPACT_EVERY, Change, Entry, HISTORY_BYTES_MAX, HISTORY_RECORD_BYTES, Op, Outcome, Range, Record, Revision,
    StoreError, TXN_OPS_MAX, Txn, VALUE_BYTES_MAX,
};

/// The stored form of a key, shared by its versions and its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredValue {
    pub(super) record: Record,
    pub(super) created: Revision,
    /// The expiry in milliseconds since the epoch; 0 for none.
    pub(super) expires_ms: u64,
}

impl StoredValue {
    /// The size of the record in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.record.bytes_len()
    }
}

/// One write of a planned transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) revision: Revision,
    pub(super) key: Arc<str>,
    pub(super) stored: Option<Arc<StoredValue>>,
}

/// Planned writes that are not visible yet: later transactions of the group must see them.
#[derive(Debug, Default)]
pub(super) struct PendingWrites {
    pub(super) writes: Vec<Write>,
    newest: HashMap<Arc<str>, usize>,
    revision: Option<Revision>,
}

/// The visible state of a local store.
#[derive(Debug)]
pub(super) struct StoreState {
    pub(super) versions: Versions<Arc<StoredValue>>,
    expiry: BTreeSet<(u64, Arc<str>)>,
    history_bytes: usize,
    /// The size of the newest values in bytes.
    live_bytes: usize,
    /// The next revision to compact to, and when (monotonic).
    next_compaction: Option<(Duration, Revision)>,
}

impl From<OutOfReach> for StoreError {
    fn from(out: OutOfReach) -> Self {
        match out {
            OutOfReach::Compacted(revision) => Self::Compacted(revision),
            OutOfReach::Future(revision) => Self::Future(revision),
        }
    }
}

fn entry(key: &Arc<str>, modified: Revision, stored: &StoredValue) -> Entry {
    Entry { key: key.clone(), record: stored.record.clone(), created: stored.created, modified }
}

fn change(HistoryRecord { revision, key, value, previous }: HistoryRecord<Arc<StoredValue>>) -> Change {
    Change {
        revision,
        entry: value.map(|stored| entry(&key, revision, &stored)),
        previous: previous.map(|(at, stored)| entry(&key, at, &stored)),
        key,
    }
}

/// Rejects a transaction that exceeds the limits of all stores, before it is queued.
pub(super) fn check(txn: &Txn) -> Result<(), StoreError> {
    if txn.ops.len() > TXN_OPS_MAX {
        return Err(StoreError::TooMany { ops: txn.ops.len(), limit: TXN_OPS_MAX });
    }
    for op in &txn.ops {
        if let Op::Put { record, .. } = op
            && record.body_len() > VALUE_BYTES_MAX
        {
            return Err(StoreError::TooLarge { bytes: record.body_len(), limit: VALUE_BYTES_MAX });
        }
    }
    Ok(())
}

impl StoreState {
    pub(super) fn new(revision: Revision) -> Self {
        Self {
            versions: Versions::new(revision),
            expiry: BTreeSet::new(),
            history_bytes: 0,
            live_bytes: 0,
            next_compaction: None,
        }
    }

    /// A state with initial content.
    pub(super) fn filled(revision: Revision, rows: &[Write]) -> Self {
        let stored = || rows.iter().filter_map(|row| Some((&row.key, row.revision, row.stored.as_ref()?)));
        let mortal = stored().filter(|(.., stored)| stored.expires_ms > 0);
        Self {
            expiry: mortal.map(|(key, _, stored)| (stored.expires_ms, key.clone())).collect(),
            live_bytes: stored().map(|(.., stored)| stored.bytes()).sum(),
            versions: Versions::filled(revision, stored().map(|(key, at, stored)| (key.clone(), at, stored.clone()))),
            ..Self::new(revision)
        }
    }

    /// The size of the newest values in bytes.
    pub(super) fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    fn newest<'a>(&'a self, pending: &'a PendingWrites, key: &str) -> Option<(Arc<str>, Revision, &'a StoredValue)> {
        if let Some((key, index)) = pending.newest.get_key_value(key) {
            let write = &pending.writes[*index];
            return Some((key.clone(), write.revision, write.stored.as_deref()?));
        }
        let (modified, stored) = self.versions.get(key)?;
        Some((self.versions.shared_key(key)?, modified, stored))
    }

    /// Plans one transaction on top of `pending`, and adds its writes to it.
    pub(super) fn plan(&self, pending: &mut PendingWrites, txn: Txn, now_ms: u64) -> Outcome {
        let current = pending.revision.unwrap_or(self.versions.revision());
        let holds = txn
            .compares
            .iter()
            .all(|compare| self.newest(pending, &compare.key).map_or(0, |(_, at, _)| at) == compare.modified);
        if !holds {
            let entries = txn.compares.iter().map(|compare| {
                self.newest(pending, &compare.key).map(|(key, modified, stored)| entry(&key, modified, stored))
            });
            return Outcome::Conflict(entries.collect());
        }
        let revision = current + 1;
        let mut last: BTreeMap<usize, Op> = BTreeMap::new();
        let mut place: HashMap<String, usize> = HashMap::new();
        for (index, op) in txn.ops.into_iter().enumerate() {
            if let Some(earlier) = place.insert(op.key().to_owned(), index) {
                last.remove(&earlier);
            }
            last.insert(index, op);
        }
        let mut writes = Vec::with_capacity(last.len());
        for op in last.into_values() {
            let found = self.newest(pending, op.key()).map(|(key, _, stored)| (key, stored.created));
            match op {
                Op::Put { key, record, ttl } => {
                    let (key, created) = found.unwrap_or_else(|| (key.into(), revision));
                    let expires_ms =
                        ttl.map_or(0, |ttl| now_ms.saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)));
                    writes.push(Write {
                        revision,
                        key,
                        stored: Some(StoredValue { record, created, expires_ms }.into()),
                    });
                }
                Op::Delete { .. } => {
                    if let Some((key, _)) = found {
                        writes.push(Write { revision, key, stored: None });
                    }
                }
            }
        }
        if writes.is_empty() {
            return Outcome::Committed(current);
        }
        for write in writes {
            pending.newest.insert(write.key.clone(), pending.writes.len());
            pending.writes.push(write);
        }
        pending.revision = Some(revision);
        Outcome::Committed(revision)
    }

    /// Makes durable writes visible.
    pub(super) fn apply(&mut self, writes: Vec<Write>) -> Vec<Change> {
        writes.into_iter().map(|write| self.apply_one(write)).collect()
    }

    pub(super) fn apply_one(&mut self, write: Write) -> Change {
        let Write { revision, key, stored } = write;
        let previous = self.versions.apply(revision, &key, stored.clone());
        self.history_bytes += HISTORY_RECORD_BYTES;
        if let Some((_, old)) = &previous {
            self.history_bytes += old.bytes();
            self.live_bytes = self.live_bytes.saturating_sub(old.bytes());
            if old.expires_ms > 0 {
                self.expiry.remove(&(old.expires_ms, key.clone()));
            }
        }
        if let Some(new) = &stored {
            self.live_bytes += new.bytes();
            if new.expires_ms > 0 {
                self.expiry.insert((new.expires_ms, key.clone()));
            }
        }
        Change {
            revision,
            entry: stored.as_ref().map(|stored| entry(&key, revision, stored)),
            previous: previous.map(|(at, stored)| entry(&key, at, &stored)),
            key,
        }
    }

    /// A transaction that deletes expired keys, at most as many as allowed; it requires that the keys were not written
    /// again.
    pub(super) fn expired(&self, now_ms: u64) -> Option<Txn> {
        let due = self.expiry.range(..(now_ms.saturating_add(1), Arc::from(""))).take(TXN_OPS_MAX);
        let ops: Vec<Op> = due.map(|(_, key)| Op::Delete { key: key.to_string() }).collect();
        (!ops.is_empty()).then(|| Txn { compares: Vec::new(), ops })
    }

    /// The revision to compact to, if the interval has passed or history is too large.
    pub(super) fn compaction_due(&mut self, elapsed: Duration) -> Option<Revision> {
        if self.history_bytes > HISTORY_BYTES_MAX {
            return Some(self.versions.middle());
        }
        match self.next_compaction {
            Some((at, _)) if elapsed < at => None,
            last => {
                self.next_compaction = Some((elapsed + COMPACT_EVERY, self.versions.revision()));
                last.map(|(_, revision)| revision).filter(|revision| *revision > self.versions.compacted())
            }
        }
    }

    /// Compacts, and returns the dropped history, oldest first.
    pub(super) fn compact(&mut self, revision: Revision) -> Result<Vec<HistoryRecord<Arc<StoredValue>>>, StoreError> {
        self.versions.check(revision)?;
        let forgotten = self.versions.compact(revision);
        for record in &forgotten {
            let superseded = record.previous.as_ref().map_or(0, |(_, old)| old.bytes());
            self.history_bytes = self.history_bytes.saturating_sub(HISTORY_RECORD_BYTES + superseded);
        }
        Ok(forgotten)
    }

    pub(super) fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Entry>, StoreError> {
        let at = at.unwrap_or(self.versions.revision());
        let found = self.versions.get_at(key, at)?;
        Ok(found.map(|(modified, stored)| entry(&Arc::from(key), modified, stored)))
    }

    pub(super) fn range(&self, from: &str, to: &str, at: Option<Revision>, limit: usize) -> Result<Range, StoreError> {
        let revision = at.unwrap_or(self.versions.revision());
        self.versions.check(revision)?;
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut keys = self.versions.range(Bound::Included(from), Bound::Excluded(to), revision);
        let entries: Vec<Entry> =
            keys.by_ref().take(limit).map(|(key, modified, stored)| entry(key, modified, stored)).collect();
        Ok(Range { entries, revision, remaining: keys.count() as u64 })
    }

    /// All entries at the compacted revision.
    pub(super) fn base(&self) -> Vec<Entry> {
        let at = self.versions.compacted();
        self.versions
            .range(Bound::Unbounded, Bound::Unbounded, at)
            .map(|(key, modified, stored)| entry(key, modified, stored))
            .collect()
    }

    pub(super) fn since(
        &self,
        prefix: &str,
        after: Revision,
        most: usize,
    ) -> Result<(Vec<Change>, Revision), StoreError> {
        let mut changes = Vec::new();
        // A watch from a future revision waits for it.
        let mut covered = self.versions.revision().max(after);
        for record in self.versions.since(after)? {
            // Never ends between two changes of one revision.
            if changes.len() >= most && changes.last().is_some_and(|c: &Change| c.revision < record.revision) {
                covered = record.revision - 1;
                break;
            }
            if record.key.starts_with(prefix) {
                changes.push(change(record));
            }
        }
        Ok((changes, covered))
    }

    pub(super) fn changes_since(&self, after: Revision) -> Result<Vec<Change>, StoreError> {
        Ok(self.versions.since(after)?.map(change).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heavy_history_is_compacted_before_its_time() {
        let mut state = StoreState::new(0);
        let record = Record::plain(&vec![0; 1024 * 1024]);
        assert_eq!(state.compaction_due(Duration::ZERO), None);
        for revision in 1..=70 {
            let stored = Some(StoredValue { record: record.clone(), created: 1, expires_ms: 0 }.into());
            state.apply_one(Write { revision, key: "/a".into(), stored });
        }
        let due = state.compaction_due(Duration::ZERO);
        assert_eq!(due, Some(36));
        state.compact(36).unwrap();
        assert_eq!(state.compaction_due(Duration::ZERO), None);
        state.compact(70).unwrap();
        assert_eq!(state.history_bytes, 0);
        assert_eq!(state.live_bytes(), record.bytes_len());
        state.apply_one(Write { revision: 71, key: "/a".into(), stored: None });
        assert_eq!(state.live_bytes(), 0);
    }
}
