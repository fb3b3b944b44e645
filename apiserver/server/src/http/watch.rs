//! Watches as streams of frames. Each event is encoded once per form, and the frame is shared by all watchers.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use http::Response;
use machinery_api::ApiError;
use machinery_env::Env;
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::negotiate::{self, Form, Transform};
use super::protobuf;
use super::respond;
use super::table::{Tables, write_partial};
use crate::registry::versions::CustomVersions;
use crate::registry::{WatchStart, fields};
use apiserver_resources::ResourceInfo;
use apiserver_schema as schema;
use apiserver_storage::cache::{Cached, EventType, Media, Shape, VersionError, WatchEncoding, WatchEvent};

/// The size of one chunk of the stream; bounds what a slow client holds besides its ring.
const CHUNK_BYTES: usize = 64 * 1024;
/// The maximum number of chunks in sequence without a look at the watch's end, which costs the lock that all watches
/// share.
const UNCHECKED_CHUNKS_MAX: u32 = 16;
/// The bookmark interval.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// The time of the last bookmark before a watch's end.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);

/// The retry delay of a bookmark when an event is pending.
const BOOKMARK_AGAIN: Duration = Duration::from_millis(10);

/// How events are encoded for one watch.
#[derive(Clone)]
pub struct WatchForm {
    /// The row.
    pub row: Arc<ResourceInfo>,
    /// The transformation of objects.
    pub transform: Option<Transform>,
    /// The table settings, if the watch sends tables.
    pub tables: Option<Tables>,
    /// Whether objects carry `managedFields`.
    pub managed: bool,
    /// The encoding of frames.
    pub media: Media,
}

struct Stream {
    watch_form: WatchForm,
    /// Everything but the event that its frame depends on.
    encoding: WatchEncoding,
    initial: VecDeque<Arc<Cached>>,
    start: WatchStart,
    /// Whether the bookmark at the end of the initial state is still to be sent.
    initial_events_bookmark: bool,
    columns_sent: bool,
    bookmarks: bool,
    /// Registered once for the whole watch: all watches share the token and its lock.
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    stop_token: CancellationToken,
    end: Pin<Box<Sleep>>,
    bookmark: Pin<Box<Sleep>>,
    over: bool,
    /// The chunks since the last look at `stop` and `end`.
    unchecked: u32,
    /// The clock of ages in tables and of bookmarks.
    env: Env,
    /// Converts custom resources into the version that is watched.
    versions: Option<Arc<CustomVersions>>,
}

/// The response of a watch; it ends after `lasts`, on `stop`, or when the client is too slow.
#[must_use]
pub fn stream(
    watch_form: WatchForm,
    mut start: WatchStart,
    bookmarks: bool,
    lasts: Duration,
    stop: CancellationToken,
    env: Env,
    versions: Arc<CustomVersions>,
) -> Response<Body> {
    let initial = std::mem::take(&mut start.initial).into();
    let initial_events_bookmark = start.initial_events_bookmark;
    let end = env.sleep(lasts);
    let bookmark = env.sleep_until(next_bookmark(env.instant(), end.deadline()));
    let encoding = encoding(&watch_form);
    let media = watch_form.media;
    let versions = watch_form.row.custom.is_some().then_some(versions);
    let stream = Stream {
        watch_form,
        encoding,
        initial,
        start,
        initial_events_bookmark,
        columns_sent: false,
        bookmarks,
        stop: Box::pin(stop.clone().cancelled_owned()),
        stop_token: stop,
        end: Box::pin(end),
        bookmark: Box::pin(bookmark),
        // A watch with a negative timeoutSeconds ends at once, as upstream.
        over: lasts.is_zero(),
        unchecked: 0,
        env,
        versions,
    };
    // Boxed: it is moved with every event.
    let frames = futures::stream::unfold(Box::new(stream), |mut stream| async move {
        let chunk = stream.next().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), stream))
    });
    respond::bytes(200, media_type(media), Body::from_stream(frames))
}

/// A minute from now, or shortly before the watch's end if that is earlier.
fn next_bookmark(now: Instant, end: Instant) -> Instant {
    let heartbeat = now + BOOKMARK_EVERY;
    match end.checked_sub(BOOKMARK_BEFORE_END) {
        Some(last) if now < last && last < heartbeat => last,
        _ => heartbeat,
    }
}

/// The `Content-Type`.
fn media_type(media: Media) -> &'static str {
    match media {
        Media::Json => "application/json",
        Media::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
    }
}

fn media_of(form: Form) -> Media {
    if form.media == negotiate::Media::Protobuf { Media::Protobuf } else { Media::Json }
}

/// A watch that consists of one ERROR event.
#[must_use]
pub fn error_stream(form: Form, error: &ApiError) -> Response<Body> {
    let media = media_of(form);
    respond::bytes(200, media_type(media), error_frame(media, error))
}

fn error_frame(media: Media, error: &ApiError) -> Bytes {
    frame_of(media, "ERROR", &serde_json::to_value(error.status()).unwrap_or_default())
}

/// An event with an object that is not stored.
fn frame_of(media: Media, kind: &str, object: &Value) -> Bytes {
    match media {
        Media::Json => format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").into(),
        Media::Protobuf => protobuf::event(kind, object),
    }
}

impl Stream {
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        if !self.initial.is_empty() || self.initial_events_bookmark {
            // Not checked with each event: all watches share the token's lock.
            return (!self.stop_token.is_cancelled()).then(|| self.initial_state());
        }
        if self.unchecked < UNCHECKED_CHUNKS_MAX
            && let Some(seen) = self.start.watch.try_recv().transpose()
        {
            self.unchecked += 1;
            return self.chunk(seen).await;
        }
        self.unchecked = 0;
        loop {
            tokio::select! {
                biased;
                () = self.stop.as_mut() => return None,
                () = self.end.as_mut() => return None,
                seen = self.start.watch.recv() => return self.chunk(seen).await,
                () = self.bookmark.as_mut(), if self.bookmarks => match self.start.watch.progress() {
                    Some(revision) => {
                        let next = next_bookmark(self.env.instant(), self.end.deadline());
                        self.bookmark.set(self.env.sleep_until(next));
                        return Some(self.bookmark_frame(revision.max(self.start.revision), false));
                    }
                    None => self.bookmark.set(self.env.sleep(BOOKMARK_AGAIN)),
                },
            }
        }
    }

    /// A chunk with an event and those that are pending behind it; `None` ends the stream.
    async fn chunk(&mut self, seen: Result<WatchEvent, VersionError>) -> Option<Bytes> {
        let events = match self.versions.clone() {
            None => self.events(seen),
            Some(versions) => self.converted_events(seen, &versions).await,
        };
        (!events.is_empty()).then_some(events)
    }

    /// A chunk of the initial state, with the bookmark at its end.
    fn initial_state(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        while out.len() < CHUNK_BYTES {
            let Some(cached) = self.initial.pop_front() else { break };
            let frame = self.frame(EventType::Added, &cached);
            out.extend_from_slice(&frame);
        }
        if self.initial.is_empty() && std::mem::take(&mut self.initial_events_bookmark) {
            let mark = self.bookmark_frame(self.start.revision, true);
            out.extend_from_slice(&mark);
        }
        out.freeze()
    }

    /// An event, and those that are pending behind it.
    fn events(&mut self, first: Result<WatchEvent, VersionError>) -> Bytes {
        let mut next = first;
        let mut out = BytesMut::new();
        let mut single: Option<Bytes> = None;
        loop {
            match next {
                Ok(seen) => {
                    let frame = self.shared_frame(&seen);
                    if let Some(only) = single.take() {
                        out.extend_from_slice(&only);
                    }
                    if out.is_empty() { single = Some(frame) } else { out.extend_from_slice(&frame) }
                }
                // The kind is no longer served: the stream ends.
                Err(VersionError::Unregistered) => {
                    self.over = true;
                    break;
                }
                Err(VersionError::Compacted(oldest) | VersionError::Future(oldest)) => {
                    self.over = true;
                    let reached = self.start.watch.last_revision();
                    let error = ApiError::Expired(format!("too old resource version: {reached} ({oldest})"));
                    if let Some(only) = single.take() {
                        out.extend_from_slice(&only);
                    }
                    out.extend_from_slice(&error_frame(self.watch_form.media, &error));
                    return out.freeze();
                }
            }
            // The next event of a custom resource may need conversion.
            if out.len() >= CHUNK_BYTES || self.versions.is_some() {
                break;
            }
            match self.start.watch.try_recv() {
                Ok(None) => break,
                Ok(Some(seen)) => next = Ok(seen),
                Err(gone) => next = Err(gone),
            }
        }
        // The usual case: a single event, whose shared frame is sent without copying.
        single.unwrap_or_else(|| out.freeze())
    }

    /// One event of a custom resource, in the version that is watched.
    async fn converted_events(&mut self, seen: Result<WatchEvent, VersionError>, versions: &CustomVersions) -> Bytes {
        let Ok(seen) = seen else { return self.events(seen) };
        match versions.show_one(&self.watch_form.row, seen.object.clone()).await {
            Ok(object) if Arc::ptr_eq(&object, &seen.object) => self.events(Ok(seen)),
            Ok(object) => self.frame(seen.kind, &object),
            Err(error) => {
                self.over = true;
                error_frame(self.watch_form.media, &error)
            }
        }
    }

    fn shared_frame(&mut self, seen: &WatchEvent) -> Bytes {
        if self.watch_form.tables.is_some() {
            return self.frame(seen.kind, &seen.object);
        }
        // An object that left the selector is shown as before the event: another object than the event's own.
        let before = seen.kind == EventType::Deleted && seen.event.kind != EventType::Deleted;
        self.encoding.kind = seen.kind;
        self.encoding.before = before;
        seen.event.frame(&self.encoding, || plain_frame(&self.watch_form, seen.kind, &seen.object))
    }

    fn frame(&mut self, kind: EventType, cached: &Cached) -> Bytes {
        let Some(tables) = self.watch_form.tables.clone() else { return plain_frame(&self.watch_form, kind, cached) };
        let row = &self.watch_form.row;
        let value =
            if row.serves_cached_form() { cached.value() } else { row.strategy.read_storage_version(cached.value()) };
        let line = Tables { now: self.env.now(), ..tables.clone() }.row_of(cached);
        self.table_frame(&tables, type_of(kind), &value, line)
    }

    fn table_frame(&mut self, tables: &Tables, kind: &str, object: &Value, line: Value) -> Bytes {
        let columns = if std::mem::replace(&mut self.columns_sent, true) { Value::Null } else { tables.columns() };
        let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"].as_str().unwrap_or("")});
        let table = tables.table(metadata, columns, vec![line]);
        format!("{{\"type\":\"{kind}\",\"object\":{table}}}\n").into()
    }

    fn bookmark_frame(&mut self, revision: u64, ends_state: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if ends_state {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let row = self.watch_form.row.clone();
        let mut object = json!({"kind": &*row.kind, "apiVersion": &*row.api_version, "metadata": metadata});
        if let Some(tables) = self.watch_form.tables.clone() {
            let line = Tables { now: self.env.now(), ..tables.clone() }.row(&object);
            return self.table_frame(&tables, "BOOKMARK", &object, line);
        }
        let object = match self.watch_form.transform {
            Some(Transform::Metadata(version) | Transform::MetadataList(version)) => json!({
                "kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": object["metadata"],
            }),
            _ => {
                // An empty object, which upstream encodes with its zero values.
                let made = row.schema.made();
                if made.is_some_and(|made| schema::normalise(made.get(), &mut object).is_ok()) {
                    row.strategy.fill_empty_object(&mut object);
                }
                object
            }
        };
        frame_of(self.watch_form.media, "BOOKMARK", &object)
    }
}

fn type_of(kind: EventType) -> &'static str {
    match kind {
        EventType::Added => "ADDED",
        EventType::Modified => "MODIFIED",
        EventType::Deleted => "DELETED",
    }
}

/// What an event's frame depends on (tables are never shared: they contain ages).
fn encoding(watch_form: &WatchForm) -> WatchEncoding {
    let shape = match watch_form.transform {
        Some(Transform::Metadata(version) | Transform::MetadataList(version)) => Shape::Metadata(version.api_version()),
        _ => Shape::Object,
    };
    let api_version = watch_form.row.api_version.clone();
    WatchEncoding {
        kind: EventType::Added,
        before: false,
        managed: watch_form.managed,
        api_version,
        shape,
        media: watch_form.media,
    }
}

fn plain_frame(watch_form: &WatchForm, kind: EventType, cached: &Cached) -> Bytes {
    if watch_form.media == Media::Protobuf {
        return protobuf_frame(watch_form, kind, cached);
    }
    let mut out = Vec::with_capacity(cached.stored_len() + 96);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(type_of(kind).as_bytes());
    out.put_slice(b"\",\"object\":");
    match watch_form.transform {
        Some(Transform::Metadata(version) | Transform::MetadataList(version)) => {
            write_partial(version, &cached.bytes(watch_form.managed), &mut out);
        }
        _ if watch_form.row.serves_cached_form() => cached.write_to(watch_form.managed, &mut out),
        _ => {
            let mut value = watch_form.row.strategy.read_storage_version(cached.value());
            if watch_form.managed {
                value = fields::with_managed_fields(value, cached.managers());
            }
            // Writing into memory cannot fail.
            let _ = serde_json::to_writer(&mut out, &value);
        }
    }
    out.put_slice(b"}\n");
    out.into()
}

fn protobuf_frame(watch_form: &WatchForm, kind: EventType, cached: &Cached) -> Bytes {
    let row = &watch_form.row;
    let value = cached.value();
    let value = if row.serves_cached_form() { value } else { row.strategy.read_storage_version(value) };
    let value = if watch_form.managed { fields::with_managed_fields(value, cached.managers()) } else { value };
    let shown = match watch_form.transform {
        Some(Transform::Metadata(version) | Transform::MetadataList(version)) => {
            protobuf::partial(version.api_version(), value)
        }
        _ => value,
    };
    protobuf::event(type_of(kind), &shown)
}

/// The settings of a watch for a negotiated form.
#[must_use]
pub fn watch_form(row: &Arc<ResourceInfo>, form: Form, tables: Option<Tables>, managed: bool) -> WatchForm {
    WatchForm { row: row.clone(), transform: form.transform, tables, managed, media: media_of(form) }
}
