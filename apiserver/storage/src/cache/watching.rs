//! A watcher takes events from a ring at its own pace: a slow one blocks nothing, and ends with `VersionError`.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use super::object::Cached;
use super::ring::{Event, EventType, Ring};
use super::select::Selectors;
use super::{VersionError, WatchCache};
use crate::store::Revision;

/// The number of events taken at once: the maximum that a watcher holds besides the ring.
const BATCH_EVENTS: usize = 64;

/// An event through a watcher's filter.
#[derive(Debug, Clone)]
pub struct WatchEvent {
    /// The event type for this watcher.
    pub kind: EventType,
    /// The object for this watcher.
    pub object: Arc<Cached>,
    /// The underlying event, whose encoded frames are shared.
    pub event: Arc<Event>,
}

/// An open watch.
pub struct Watch {
    cache: Arc<WatchCache>,
    ring: Arc<Ring>,
    next_number: watch::Receiver<u64>,
    prefix: Box<str>,
    filter: Selectors,
    /// The number of the next event to take.
    next: u64,
    taken: VecDeque<Arc<Event>>,
    /// The start of the watch: earlier events are skipped.
    from: Revision,
    /// The revision of the newest event that was taken, shown or not; more events of it may follow.
    last_revision: Revision,
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
        let next_number = ring.next_number.subscribe();
        Ok(Self {
            cache,
            ring,
            next_number,
            prefix: prefix.into(),
            filter,
            next,
            taken: VecDeque::new(),
            from: after,
            last_revision: after,
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
            let _ = self.next_number.changed().await;
        }
    }

    /// The next event without waiting.
    pub fn try_recv(&mut self) -> Result<Option<WatchEvent>, VersionError> {
        loop {
            while let Some(event) = self.taken.pop_front() {
                if event.revision <= self.from {
                    // Before the start of the watch (which was in the future).
                    continue;
                }
                self.last_revision = event.revision;
                if !event.object.key.starts_with(&*self.prefix) {
                    continue;
                }
                if let Some((kind, object)) = event.through_filter(&self.filter) {
                    return Ok(Some(WatchEvent { kind, object, event }));
                }
            }
            // The usual case, without the ring's lock: no event was pushed since.
            if *self.next_number.borrow_and_update() <= self.next {
                return Ok(None);
            }
            self.taken = self.ring.take(self.next, BATCH_EVENTS).map_err(VersionError::Compacted)?;
            self.next += self.taken.len() as u64;
            if self.taken.is_empty() {
                return Ok(None);
            }
        }
    }

    /// The revision up to which all events of this watch were returned, for a bookmark; never below a returned event.
    /// `None` if more events of that revision are pending, or if events were lost.
    #[must_use]
    pub fn progress(&self) -> Option<Revision> {
        // Read before the ring: then the ring has all events up to this revision.
        let visible = self.cache.revision();
        let next = match self.taken.front() {
            Some(event) => Some(event.revision),
            None => self.ring.revision_at(self.next).ok()?,
        };
        let complete = next.map_or(visible.max(self.from), |next| next.saturating_sub(1));
        (complete >= self.last_revision).then_some(complete)
    }

    /// The revision of the newest event that was returned, or of the start of the watch.
    #[must_use]
    pub fn last_revision(&self) -> Revision {
        self.last_revision
    }
}
