//! A watcher's end: takes events out of a ring at its own pace, so that a slow one holds up nobody and ends with `Gone`.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use super::object::Cached;
use super::ring::{Event, Kind, Ring};
use super::select::Selectors;
use super::{Cache, Gone};
use crate::store::Revision;

/// Events taken out of a ring at once: what a watcher may hold beside the ring.
const BATCH_EVENTS: usize = 64;

/// An event as a watcher's filter shows it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Added, modified or deleted, to this watcher.
    pub kind: Kind,
    /// The object that is shown.
    pub object: Arc<Cached>,
    /// The event behind, whose encoded frames are shared.
    pub event: Arc<Event>,
}

/// An open watch.
pub struct Watch {
    cache: Arc<Cache>,
    ring: Arc<Ring>,
    moved: watch::Receiver<u64>,
    prefix: Box<str>,
    filter: Selectors,
    /// The number of the next event to take.
    next: u64,
    taken: VecDeque<Arc<Event>>,
    /// Everything up to here was handed out.
    after: Revision,
}

impl Watch {
    pub(super) fn start(
        cache: Arc<Cache>,
        ring: Arc<Ring>,
        prefix: &str,
        after: Revision,
        filter: Selectors,
        compacted: Revision,
    ) -> Result<Self, Gone> {
        if after < compacted {
            return Err(Gone::Compacted(compacted));
        }
        let next = ring.position(after).map_err(Gone::Compacted)?;
        let moved = ring.moved.subscribe();
        Ok(Self { cache, ring, moved, prefix: prefix.into(), filter, next, taken: VecDeque::new(), after })
    }

    /// The next event; cancel-safe.
    pub async fn recv(&mut self) -> Result<Seen, Gone> {
        loop {
            if let Some(seen) = self.try_recv()? {
                return Ok(seen);
            }
            // The sender lives in `self.ring`.
            let _ = self.moved.changed().await;
        }
    }

    /// The next event that is already there.
    pub fn try_recv(&mut self) -> Result<Option<Seen>, Gone> {
        loop {
            while let Some(event) = self.taken.pop_front() {
                if event.revision <= self.after {
                    // Of a time before the watch (one that began in the future).
                    continue;
                }
                // Of several changes at one revision, the last one ends it.
                if self.taken.front().is_none_or(|next| next.revision > event.revision) {
                    self.after_event(event.revision);
                }
                if !event.object.key.starts_with(&*self.prefix) {
                    continue;
                }
                if let Some((kind, object)) = event.seen_through(&self.filter) {
                    return Ok(Some(Seen { kind, object, event }));
                }
            }
            self.moved.borrow_and_update();
            self.taken = self.ring.take(self.next, BATCH_EVENTS).map_err(Gone::Compacted)?;
            self.next += self.taken.len() as u64;
            if self.taken.is_empty() {
                return Ok(None);
            }
        }
    }

    /// Everything that this watch shows up to the returned revision was handed out: what a bookmark may say.
    #[must_use]
    pub fn progress(&self) -> Revision {
        // Read before the ring: its events up to this revision are in the ring then.
        let visible = self.cache.revision();
        if self.taken.is_empty() && self.ring.end() == self.next { visible.max(self.after) } else { self.after }
    }

    fn after_event(&mut self, revision: Revision) {
        // Within a batch only; a revision may continue in the next one, whose events must not be skipped.
        if !self.taken.is_empty() {
            self.after = revision;
        }
    }
}
