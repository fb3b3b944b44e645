//! Events of a resource in order, each shared by all its watchers, in bounded rings: one of everything, and one per
//! topic (namespace, object, node) that somebody watches, so that a quiet topic wakes nobody and is never too slow.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::watch;

use super::object::{Cached, Resource};
use super::select::Selectors;
use crate::store::Revision;

/// Events that a ring reaches back at most: about 3 MiB, and seconds of the busiest cluster; compaction cuts it shorter.
const RING_EVENTS_MAX: usize = 32 * 1024;
/// Encoded frames are kept on the newest events only: enough for all watchers that keep up.
const FRAMED_EVENTS_MAX: usize = 256;
/// Different encodings kept per event; further ones are made but not kept.
const FRAMES_PER_EVENT_MAX: usize = 16;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It is new (to the selector).
    Added,
    /// It changed.
    Modified,
    /// It is gone (from the selector).
    Deleted,
}

/// One change of one object.
#[derive(Debug)]
pub struct Event {
    /// When.
    pub revision: Revision,
    /// To a watcher that selects everything.
    pub kind: Kind,
    /// The object after the change; for a deletion its last state, under the deletion's revision.
    pub object: Arc<Cached>,
    /// The object before the change.
    pub previous: Option<Arc<Cached>>,
    frames: Mutex<Frames>,
}

/// An event's encodings.
#[derive(Debug, Default)]
struct Frames {
    kept: Vec<(WatchEncoding, Bytes)>,
    /// The event is no longer among the newest: what is encoded now is for a latecomer alone.
    cold: bool,
}

/// All that an event's encoding depends on beside the event: watchers that ask for the same share the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchEncoding {
    /// As what the watcher sees the event.
    pub kind: Kind,
    /// It shows the object before the event: what has left a selector.
    pub before: bool,
    /// Objects are shown with who manages their fields.
    pub managed: bool,
    /// The group and version that objects are shown in (`apps/v1`).
    pub api_version: Arc<str>,
    /// Whole objects, or what stands in their stead.
    pub shape: Shape,
    /// How they are written.
    pub media: Media,
}

/// How much of an object a watch shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// All of it.
    Object,
    /// Its metadata, as a PartialObjectMetadata of this version.
    Metadata(&'static str),
}

/// What a watch's stream is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// JSON, a line for each event.
    Json,
    /// Kubernetes protobuf, each event after its length.
    Protobuf,
}

impl Event {
    pub(super) fn new(revision: Revision, new: Option<Arc<Cached>>, old: Option<Arc<Cached>>) -> Option<Self> {
        let (kind, object) = match (&new, &old) {
            (Some(new), None) => (Kind::Added, new.clone()),
            (Some(new), Some(_)) => (Kind::Modified, new.clone()),
            (None, Some(old)) => (Kind::Deleted, Arc::new(old.stamped(revision))),
            (None, None) => return None,
        };
        Some(Self { revision, kind, object, previous: old, frames: Mutex::default() })
    }

    /// What a watcher with this filter sees: an object that comes into the selection is added, one that leaves it is
    /// deleted, with the state that was selected under the change's revision.
    #[must_use]
    pub fn seen_through(&self, filter: &Selectors) -> Option<(Kind, Arc<Cached>)> {
        let now = self.kind != Kind::Deleted && filter.matches(&self.object);
        let before = self.previous.as_ref().filter(|previous| filter.matches(previous));
        match (now, before) {
            (true, None) => Some((Kind::Added, self.object.clone())),
            (true, Some(_)) => Some((Kind::Modified, self.object.clone())),
            (false, Some(_)) if self.kind == Kind::Deleted => Some((Kind::Deleted, self.object.clone())),
            (false, Some(previous)) => Some((Kind::Deleted, Arc::new(previous.stamped(self.revision)))),
            (false, None) => None,
        }
    }

    /// The event in an encoding, made once for all watchers that keep up.
    pub fn frame(&self, encoding: &WatchEncoding, make: impl FnOnce() -> Bytes) -> Bytes {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, frame)) = frames.kept.iter().find(|(kept, _)| kept == encoding) {
            return frame.clone();
        }
        if frames.cold {
            drop(frames);
            return make();
        }
        let frame = make();
        if frames.kept.len() < FRAMES_PER_EVENT_MAX {
            frames.kept.push((encoding.clone(), frame.clone()));
        }
        frame
    }

    /// Lets go of the encodings for good.
    fn drop_frames(&self) {
        *self.frames.lock().unwrap_or_else(PoisonError::into_inner) = Frames { kept: Vec::new(), cold: true };
    }
}

/// What a watch is about, where that is less than its whole resource.
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
    /// The number of the first event in `queue`.
    first: u64,
    /// All events after this revision were put in.
    floor: Revision,
    /// No more will come.
    closed: bool,
}

#[derive(Debug)]
pub(super) struct Ring {
    events: Mutex<Events>,
    /// The number of the next event to come.
    pub(super) moved: watch::Sender<u64>,
}

impl Ring {
    fn new(queue: VecDeque<Arc<Event>>, floor: Revision) -> Self {
        let moved = watch::Sender::new(queue.len() as u64);
        Self { events: Mutex::new(Events { queue, first: 0, floor, closed: false }), moved }
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
        self.moved.send_replace(next);
    }

    /// Wakes all who wait: there is nothing more to come.
    fn close(&self) {
        self.lock().closed = true;
        self.moved.send_modify(|_| {});
    }

    /// Whether all is over after event number `next`.
    pub(super) fn is_over(&self, next: u64) -> bool {
        let events = self.lock();
        events.closed && next >= events.first + events.queue.len() as u64
    }

    fn forget(&self, revision: Revision) {
        let mut events = self.lock();
        while events.queue.front().is_some_and(|event| event.revision <= revision) {
            events.drop_first();
        }
        events.floor = events.floor.max(revision);
    }

    /// The number of the first event after `revision`; the floor where that is lost.
    pub(super) fn position(&self, revision: Revision) -> Result<u64, Revision> {
        let events = self.lock();
        if revision < events.floor {
            return Err(events.floor);
        }
        Ok(events.first + events.queue.partition_point(|event| event.revision <= revision) as u64)
    }

    /// Up to `most` events from number `next` on; the floor where they are lost.
    pub(super) fn take(&self, next: u64, most: usize) -> Result<VecDeque<Arc<Event>>, Revision> {
        let events = self.lock();
        let skip = next.checked_sub(events.first).ok_or(events.floor)?;
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(events.queue.len());
        Ok(events.queue.range(skip..).take(most).cloned().collect())
    }

    /// The revision of event number `number`, `None` where it is still to come; the floor where it is lost.
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

/// All rings of a resource.
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

    /// The ring of a topic, made from what the ring of everything holds where nobody watches it yet.
    pub(super) fn open(&mut self, topic: Topic) -> Arc<Ring> {
        if topic == Topic::All {
            return self.all.clone();
        }
        if let Some(ring) = self.topics.get(&topic).and_then(Weak::upgrade) {
            return ring;
        }
        // Rings that nobody watches any more and no event has hit since.
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
