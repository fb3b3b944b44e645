//! A watcher's end: takes events out of a ring at its own pace, so that a slow one holds up nobody and ends with `VersionError`.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use super::object::Cached;
use super::ring::{Event, Kind, Ring};
use super::select::Selectors;
use super::{VersionError, WatchCache};
use crate::store::Revision;

/// Events taken out of a ring at once: what a watcher may hold beside the ring.
const BATCH_EVENTS: usize = 64;

/// An event as a watcher's filter shows it.
#[derive(Debug, Clone)]
pub struct WatchEvent {
    /// Added, modified or deleted, to this watcher.
    pub kind: Kind,
    /// The object that is shown.
    pub object: Arc<Cached>,
    /// The event behind, whose encoded frames are shared.
    pub event: Arc<Event>,
}

/// An open watch.
pub struct Watch {
    cache: Arc<WatchCache>,
    ring: Arc<Ring>,
    moved: watch::Receiver<u64>,
    prefix: Box<str>,
    filter: Selectors,
    /// The number of the next event to take.
    next: u64,
    taken: VecDeque<Arc<Event>>,
    /// Where the watch began: older events are none of its own.
    from: Revision,
    /// The newest event that was taken up, shown or not; more of its revision may follow.
    handed_out: Revision,
}

impl Watch {
    pub(super) fn start(
        cache: Arc<WatchCache>,
        ring: Arc<Ring>,
        prefix: &str,
        after: Revision,
        filter: Selectors,
        compacted: Revision,
    ) -> Result<Self, VersionError> {
        if after < compacted {
            return Err(VersionError::Compacted(compacted));
        }
        let next = ring.position(after).map_err(VersionError::Compacted)?;
        let moved = ring.moved.subscribe();
        Ok(Self {
            cache,
            ring,
            moved,
            prefix: prefix.into(),
            filter,
            next,
            taken: VecDeque::new(),
            from: after,
            handed_out: after,
        })
    }

    /// The next event; cancel-safe.
    pub async fn recv(&mut self) -> Result<WatchEvent, VersionError> {
        loop {
            if let Some(seen) = self.try_recv()? {
                return Ok(seen);
            }
            if self.ring.is_over(self.next) {
                return Err(VersionError::Unregistered);
            }
            // The sender lives in `self.ring`.
            let _ = self.moved.changed().await;
        }
    }

    /// The next event that is already there.
    pub fn try_recv(&mut self) -> Result<Option<WatchEvent>, VersionError> {
        loop {
            while let Some(event) = self.taken.pop_front() {
                if event.revision <= self.from {
                    // Of a time before the watch (one that began in the future).
                    continue;
                }
                self.handed_out = event.revision;
                if !event.object.key.starts_with(&*self.prefix) {
                    continue;
                }
                if let Some((kind, object)) = event.seen_through(&self.filter) {
                    return Ok(Some(WatchEvent { kind, object, event }));
                }
            }
            // The usual case, without the ring's lock: nothing was pushed since.
            if *self.moved.borrow_and_update() <= self.next {
                return Ok(None);
            }
            self.taken = self.ring.take(self.next, BATCH_EVENTS).map_err(VersionError::Compacted)?;
            self.next += self.taken.len() as u64;
            if self.taken.is_empty() {
                return Ok(None);
            }
        }
    }

    /// Everything that this watch shows up to the returned revision was handed out: what a bookmark may say. Never
    /// below an event that was handed out. `None`: more of that event's revision is still to come, or events are lost.
    #[must_use]
    pub fn progress(&self) -> Option<Revision> {
        // Read before the ring: its events up to this revision are in the ring then.
        let visible = self.cache.revision();
        let next = match self.taken.front() {
            Some(event) => Some(event.revision),
            None => self.ring.revision_at(self.next).ok()?,
        };
        let complete = next.map_or(visible.max(self.from), |next| next.saturating_sub(1));
        (complete >= self.handed_out).then_some(complete)
    }

    /// The revision of the newest event that was handed out, or where the watch began.
    #[must_use]
    pub fn handed_out(&self) -> Revision {
        self.handed_out
    }
}
