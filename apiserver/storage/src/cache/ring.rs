//! The watch cache's event buffers. A resource has bounded rings of events in order, shared by its watchers: one for
//! all events, and one per watched topic (namespace, object, node), so that a quiet topic causes no wake-ups and is
//! never too slow.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::watch;

use super::object::{Cached, Resource};
use super::select::Selectors;
use crate::store::Revision;

/// The maximum number of events in a ring: about 3 MiB, and seconds of the busiest cluster; compaction trims it
/// further.
const RING_EVENTS_MAX: usize = 32 * 1024;
/// Encoded frames are kept only for this many newest events: enough for all watchers that keep up.
const FRAMED_EVENTS_MAX: usize = 256;
/// The maximum number of frames kept per event, one per encoding; others are not kept.
const FRAMES_PER_EVENT_MAX: usize = 16;

/// The type of a watch event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventType {
    /// The object is new (for the selector).
    Added,
    /// The object changed.
    Modified,
    /// The object is gone (for the selector).
    Deleted,
}

/// One change of one object.
#[derive(Debug)]
pub struct Event {
    /// The revision of the change.
    pub revision: Revision,
    /// The type for a watcher without a selector.
    pub kind: EventType,
    /// The object after the change; for a deletion its last state, with the deletion's revision.
    pub object: Arc<Cached>,
    /// The object before the change.
    pub previous: Option<Arc<Cached>>,
    frames: Mutex<Frames>,
}

/// The encoded frames of an event.
#[derive(Debug, Default)]
struct Frames {
    encoded: Vec<(WatchEncoding, Bytes)>,
    /// Whether the event is no longer among the newest, so that new frames are not kept.
    cold: bool,
}

/// What an event's frame depends on besides the event: watchers with equal encodings share the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchEncoding {
    /// The event type for the watcher.
    pub kind: EventType,
    /// Whether the frame has the object before the event, which left the selector.
    pub before: bool,
    /// Whether objects include `managedFields`.
    pub managed: bool,
    /// The apiVersion of the objects (`apps/v1`).
    pub api_version: Arc<str>,
    /// Whole objects or their metadata.
    pub shape: Shape,
    /// The encoding of frames.
    pub media: Media,
}

/// The part of an object that a watch shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The whole object.
    Object,
    /// Its metadata, as a PartialObjectMetadata of this version.
    Metadata(&'static str),
}

/// The encoding of a watch's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// JSON, one event per line.
    Json,
    /// Kubernetes protobuf, length-delimited.
    Protobuf,
}

impl Event {
    pub(super) fn new(revision: Revision, new: Option<Arc<Cached>>, old: Option<Arc<Cached>>) -> Option<Self> {
        let (kind, object) = match (&new, &old) {
            (Some(new), None) => (EventType::Added, new.clone()),
            (Some(new), Some(_)) => (EventType::Modified, new.clone()),
            (None, Some(old)) => (EventType::Deleted, Arc::new(old.stamped(revision))),
            (None, None) => return None,
        };
        Some(Self { revision, kind, object, previous: old, frames: Mutex::default() })
    }

    /// The event through a filter: an object that enters the selection is added; one that leaves it is deleted, with
    /// its selected state under the change's revision.
    #[must_use]
    pub fn through_filter(&self, filter: &Selectors) -> Option<(EventType, Arc<Cached>)> {
        let now = self.kind != EventType::Deleted && filter.matches(&self.object);
        let before = self.previous.as_ref().filter(|previous| filter.matches(previous));
        match (now, before) {
            (true, None) => Some((EventType::Added, self.object.clone())),
            (true, Some(_)) => Some((EventType::Modified, self.object.clone())),
            (false, Some(_)) if self.kind == EventType::Deleted => Some((EventType::Deleted, self.object.clone())),
            (false, Some(previous)) => Some((EventType::Deleted, Arc::new(previous.stamped(self.revision)))),
            (false, None) => None,
        }
    }

    /// The event's frame in an encoding, built once for all watchers that keep up.
    pub fn frame(&self, encoding: &WatchEncoding, make: impl FnOnce() -> Bytes) -> Bytes {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, frame)) = frames.encoded.iter().find(|(other, _)| other == encoding) {
            return frame.clone();
        }
        if frames.cold {
            drop(frames);
            return make();
        }
        let frame = make();
        if frames.encoded.len() < FRAMES_PER_EVENT_MAX {
            frames.encoded.push((encoding.clone(), frame.clone()));
        }
        frame
    }

    /// Drops the frames and keeps no further ones.
    fn drop_frames(&self) {
        *self.frames.lock().unwrap_or_else(PoisonError::into_inner) = Frames { encoded: Vec::new(), cold: true };
    }
}

/// The subset of a resource's events that a watch needs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Topic {
    All,
    Namespace(Box<str>),
    Object(Box<str>),
    Field(Arc<str>, Box<str>),
}

impl Topic {
    pub(super) fn of(resource: &Resource, prefix: &str, filter: &Selectors) -> Self {
        for label in &*resource.indexed_fields {
            if let Some(value) = filter.field_equals(label) {
                return Self::Field(label.clone(), value.into());
            }
        }
        if let Some(name) = filter.field_equals("metadata.name") {
            return Self::Object(name.into());
        }
        match resource.prefix.namespace_of(prefix) {
            Some(namespace) if !namespace.is_empty() => Self::Namespace(namespace.into()),
            _ => Self::All,
        }
    }

    fn all_of(resource: &Resource, object: &Cached) -> Vec<Self> {
        let mut topics = vec![Self::Object(object.name().into())];
        if !object.namespace().is_empty() {
            topics.push(Self::Namespace(object.namespace().into()));
        }
        for label in &*resource.indexed_fields {
            topics.push(Self::Field(label.clone(), object.field(label).unwrap_or("").into()));
        }
        topics
    }
}

#[derive(Debug)]
struct Events {
    queue: VecDeque<Arc<Event>>,
    /// The sequence number of the first event in `queue`.
    first: u64,
    /// The queue is complete after this revision.
    floor: Revision,
    /// Whether no further events follow.
    closed: bool,
}

#[derive(Debug)]
pub(super) struct Ring {
    events: Mutex<Events>,
    /// The sequence number of the next event.
    pub(super) next_number: watch::Sender<u64>,
}

impl Ring {
    fn new(queue: VecDeque<Arc<Event>>, floor: Revision) -> Self {
        let next_number = watch::Sender::new(queue.len() as u64);
        Self { events: Mutex::new(Events { queue, first: 0, floor, closed: false }), next_number }
    }

    fn lock(&self) -> MutexGuard<'_, Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: Arc<Event>) {
        let mut events = self.lock();
        if events.queue.len() >= RING_EVENTS_MAX {
            events.drop_first();
        }
        events.queue.push_back(event);
        let next = events.first + events.queue.len() as u64;
        drop(events);
        self.next_number.send_replace(next);
    }

    /// Wakes all watchers: no further events follow.
    fn close(&self) {
        self.lock().closed = true;
        self.next_number.send_modify(|_| {});
    }

    /// Whether the ring is closed and has no event from number `next` on.
    pub(super) fn is_over(&self, next: u64) -> bool {
        let events = self.lock();
        events.closed && next >= events.first + events.queue.len() as u64
    }

    /// Events up to `revision` were lost: each watcher must list again, also one that has taken all of them.
    fn lose(&self, revision: Revision) {
        let mut events = self.lock();
        events.first += events.queue.len() as u64 + 1;
        events.queue.clear();
        events.floor = events.floor.max(revision);
        let next = events.first;
        drop(events);
        self.next_number.send_replace(next);
    }

    fn forget(&self, revision: Revision) {
        let mut events = self.lock();
        while events.queue.front().is_some_and(|event| event.revision <= revision) {
            events.drop_first();
        }
        events.floor = events.floor.max(revision);
    }

    /// The number of the first event after `revision`; the floor as error if that was dropped.
    pub(super) fn position(&self, revision: Revision) -> Result<u64, Revision> {
        let events = self.lock();
        if revision < events.floor {
            return Err(events.floor);
        }
        Ok(events.first + events.queue.partition_point(|event| event.revision <= revision) as u64)
    }

    /// Up to `most` events from number `next` on; the floor as error if they were dropped.
    pub(super) fn take(&self, next: u64, most: usize) -> Result<VecDeque<Arc<Event>>, Revision> {
        let events = self.lock();
        let skip = next.checked_sub(events.first).ok_or(events.floor)?;
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(events.queue.len());
        Ok(events.queue.range(skip..).take(most).cloned().collect())
    }

    /// The revision of event number `number`, `None` if it is in the future; the floor as error if it was dropped.
    pub(super) fn revision_at(&self, number: u64) -> Result<Option<Revision>, Revision> {
        let events = self.lock();
        let index = number.checked_sub(events.first).ok_or(events.floor)?;
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        Ok(events.queue.get(index).map(|event| event.revision))
    }
}

impl Events {
    fn drop_first(&mut self) {
        if let Some(event) = self.queue.pop_front() {
            self.first += 1;
            self.floor = self.floor.max(event.revision);
        }
    }
}

/// The rings of a resource.
pub(super) struct Rings {
    all: Arc<Ring>,
    topics: HashMap<Topic, Weak<Ring>>,
    framed: VecDeque<Arc<Event>>,
}

impl Rings {
    pub(super) fn new(floor: Revision) -> Self {
        Self { all: Arc::new(Ring::new(VecDeque::new(), floor)), topics: HashMap::new(), framed: VecDeque::new() }
    }

    pub(super) fn push(&mut self, resource: &Resource, event: Arc<Event>) {
        if !self.topics.is_empty() {
            let mut topics = Topic::all_of(resource, &event.object);
            if let Some(previous) = &event.previous {
                for topic in Topic::all_of(resource, previous) {
                    if !topics.contains(&topic) {
                        topics.push(topic);
                    }
                }
            }
            for topic in topics {
                match self.topics.get(&topic).map(Weak::upgrade) {
                    Some(Some(ring)) => ring.push(event.clone()),
                    Some(None) => {
                        self.topics.remove(&topic);
                    }
                    None => {}
                }
            }
        }
        self.framed.push_back(event.clone());
        if self.framed.len() > FRAMED_EVENTS_MAX
            && let Some(old) = self.framed.pop_front()
        {
            old.drop_frames();
        }
        self.all.push(event);
    }

    /// The ring of a topic; a new one is filled from the ring of all events.
    pub(super) fn open(&mut self, topic: Topic) -> Arc<Ring> {
        if topic == Topic::All {
            return self.all.clone();
        }
        if let Some(ring) = self.topics.get(&topic).and_then(Weak::upgrade) {
            return ring;
        }
        // Drops the dead rings of quiet topics: `push` drops only those that an event reaches.
        if self.topics.len() >= 2 * self.topics.values().filter(|ring| ring.strong_count() > 0).count().max(8) {
            self.topics.retain(|_, ring| ring.strong_count() > 0);
        }
        let events = self.all.lock();
        let about = |object: &Cached| match &topic {
            Topic::All => true,
            Topic::Namespace(namespace) => object.namespace() == &**namespace,
            Topic::Object(name) => object.name() == &**name,
            Topic::Field(label, value) => object.field(label).unwrap_or("") == &**value,
        };
        let queue = events.queue.iter().filter(|e| about(&e.object) || e.previous.as_deref().is_some_and(about));
        let ring = Arc::new(Ring::new(queue.cloned().collect(), events.floor));
        drop(events);
        self.topics.insert(topic, Arc::downgrade(&ring));
        ring
    }

    /// Ends all watches, as their events up to `revision` were lost.
    pub(super) fn lose(&self, revision: Revision) {
        self.all.lose(revision);
        for ring in self.topics.values().filter_map(Weak::upgrade) {
            ring.lose(revision);
        }
    }

    /// Ends all watches.
    pub(super) fn close(&self) {
        self.all.close();
        for ring in self.topics.values().filter_map(Weak::upgrade) {
            ring.close();
        }
    }

    pub(super) fn forget(&mut self, revision: Revision) {
        self.all.forget(revision);
        while self.framed.front().is_some_and(|event| event.revision <= revision) {
            if let Some(old) = self.framed.pop_front() {
                old.drop_frames();
            }
        }
        for ring in self.topics.values().filter_map(Weak::upgrade) {
            ring.forget(revision);
        }
    }
}
