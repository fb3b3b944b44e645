//! Eras of etcd: stretches of its history in which revisions only rise. An era ends when etcd is restored from a snapshot
//! or from older disks; the next one adds an offset to etcd's revisions, so that the store's still rise for its clients.
//!
//! Input: the headers of responses to linearizable requests, and the last change that the feed has seen. Invariant: a
//! response that contradicts what was seen before its request is never used.

use std::hash::{DefaultHasher, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::Revision;
use super::super::embedded::backup::RESTORED_REVISIONS;
use super::keys::Mapping;
use super::messages::{Event, ResponseHeader};

/// An era, with what was seen in it.
#[derive(Debug)]
pub(super) struct Era {
    pub(super) number: u64,
    pub(super) mapping: Mapping,
    /// The newest revision in a response.
    newest: AtomicU64,
    /// etcd's identifier of the cluster; 0: none seen.
    cluster_id: AtomicU64,
}

impl Era {
    pub(super) fn new(number: u64, mapping: Mapping) -> Self {
        Self { number, mapping, newest: AtomicU64::new(0), cluster_id: AtomicU64::new(0) }
    }

    pub(super) fn newest(&self) -> Revision {
        self.newest.load(Ordering::Acquire)
    }

    pub(super) fn saw(&self, at: Revision) -> Revision {
        self.newest.fetch_max(at, Ordering::AcqRel);
        at
    }

    /// The revision of a response to a linearizable request, before which `before` was seen.
    ///
    /// # Errors
    /// If etcd's history was replaced, with the reason.
    pub(super) fn observe(&self, header: Option<ResponseHeader>, before: Revision) -> Result<Revision, String> {
        let Some(header) = header else { return Ok(0) };
        let at = self.mapping.revision(header.revision);
        if at < before {
            return Err(format!("its revision {at} is below {before}, which was seen"));
        }
        let known = self.cluster_id.compare_exchange(0, header.cluster_id, Ordering::AcqRel, Ordering::Acquire);
        if known.is_err_and(|known| known != header.cluster_id) {
            return Err("it is another cluster".into());
        }
        Ok(self.saw(at))
    }
}

/// The offset of the era after one with `ended` as offset, in which `seen` was the newest revision. `recorded` is the offset
/// in etcd's record, and `at` etcd's revision there. The record's own offset is taken if another API server has raised it
/// already.
pub(super) fn next_offset(ended: Revision, seen: Revision, recorded: Revision, at: Revision) -> Revision {
    if recorded > ended && recorded.saturating_add(at) > seen {
        return recorded;
    }
    seen.max(recorded.saturating_add(at)).saturating_add(RESTORED_REVISIONS).saturating_sub(at)
}

/// The last change that a feed has seen: a history without it is another one, also where its revisions are higher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Anchor {
    key: Vec<u8>,
    kind: i32,
    /// etcd's revision of the change.
    pub(super) modified: i64,
    created: i64,
    version: i64,
    value_hash: u64,
}

impl Anchor {
    pub(super) fn of(event: &Event) -> Option<Self> {
        let kv = event.kv.as_ref()?;
        let mut hasher = DefaultHasher::new();
        hasher.write(&kv.value);
        Some(Self {
            key: kv.key.to_vec(),
            kind: event.kind,
            modified: kv.mod_revision,
            created: kv.create_revision,
            version: kv.version,
            value_hash: hasher.finish(),
        })
    }

    /// Whether a watch from the anchor's revision on begins with it.
    pub(super) fn is_in(&self, events: &[Event]) -> bool {
        events.iter().filter_map(Self::of).any(|event| event == *self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::messages::KeyValue;
    use super::*;

    #[test]
    fn a_lower_revision_and_another_cluster_end_an_era() {
        let era = Era::new(0, Mapping::new("/registry", 100));
        let header = |revision, cluster_id| Some(ResponseHeader { revision, cluster_id });
        assert_eq!(era.observe(header(5, 7), era.newest()), Ok(105));
        assert_eq!(era.observe(header(9, 7), era.newest()), Ok(109));
        // Requests that overlap: what was seen during a request proves nothing about its response.
        assert_eq!(era.observe(header(6, 7), 105), Ok(106));
        assert_eq!(era.newest(), 109);
        assert!(era.observe(header(8, 7), era.newest()).is_err_and(|why| why.contains("108 is below 109")));
        assert!(era.observe(header(9, 8), era.newest()).is_err_and(|why| why.contains("another cluster")));
        assert_eq!(era.observe(header(9, 7), era.newest()), Ok(109));
    }

    #[test]
    fn revisions_of_the_next_era_are_above_all_that_were_seen() {
        for (ended, seen, recorded, at) in
            [(0, 1020, 0, 900), (0, 1020, 0, 1500), (0, 1020, 50, 900), (500, 1520, 0, 3), (500, 1520, 500, 1000)]
        {
            let next = next_offset(ended, seen, recorded, at);
            assert_eq!(next + at, seen.max(recorded + at) + RESTORED_REVISIONS, "{ended} {seen} {recorded} {at}");
        }
        let raised = next_offset(0, 1020, 0, 900);
        // The other API servers take what one has written, also those that have seen a little more.
        assert_eq!(next_offset(0, 1024, raised, 903), raised);
        assert_eq!(next_offset(raised, raised + 950, raised, 940), raised + 950 + RESTORED_REVISIONS - 940);
    }

    #[test]
    fn a_history_without_the_last_change_is_another_one() {
        let event = |key: &'static [u8], modified, value: &'static [u8]| Event {
            kind: 0,
            kv: Some(KeyValue { key: key.into(), value: value.into(), mod_revision: modified, ..KeyValue::default() }),
            prev_kv: None,
        };
        let anchor = Anchor::of(&event(b"/p/a", 7, b"1")).unwrap();
        assert!(anchor.is_in(&[event(b"/p/b", 7, b"1"), event(b"/p/a", 7, b"1"), event(b"/p/a", 8, b"2")]));
        for other in [event(b"/p/a", 7, b"2"), event(b"/p/b", 7, b"1"), event(b"/p/a", 8, b"1")] {
            assert!(!anchor.is_in(&[other]));
        }
        let deleted = Event { kind: 1, ..event(b"/p/a", 7, b"1") };
        assert!(!anchor.is_in(&[deleted]));
    }
}
