//! Watches as streams of frames: each event encoded once per form and shared by all who watch it.

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
use crate::registry::versions::Versions;
use crate::registry::{WatchStart, fields};
use apiserver_resources::ResourceInfo;
use apiserver_storage::cache::{Cached, Kind, Media, Shape, VersionError, WatchEncoding, WatchEvent};
use machinery_api::schema;

/// One piece of the stream; bounds what a slow client holds beside its ring.
const CHUNK_BYTES: usize = 64 * 1024;
/// Bookmarks come this often.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// And this long before a watch's end.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);

/// And again after this time where an event came in between.
const BOOKMARK_AGAIN: Duration = Duration::from_millis(10);

/// How events are shown.
#[derive(Clone)]
pub struct Lens {
    /// The row.
    pub row: Arc<ResourceInfo>,
    /// What stands in objects' stead.
    pub transform: Option<Transform>,
    /// For tables.
    pub tables: Option<Tables>,
    /// Whether objects are shown with who manages their fields.
    pub managed: bool,
    /// How frames are written.
    pub media: Media,
}

struct Stream {
    lens: Lens,
    /// All that an event's frame depends on but the event.
    encoding: WatchEncoding,
    initial: VecDeque<Arc<Cached>>,
    start: WatchStart,
    /// The bookmark at the end of the initial state is still to come.
    initial_events_bookmark: bool,
    columns_sent: bool,
    bookmarks: bool,
    /// Registered once for the whole watch: the token is every watch's, and so is its lock.
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    stopped: CancellationToken,
    end: Pin<Box<Sleep>>,
    bookmark: Pin<Box<Sleep>>,
    over: bool,
    /// For the ages in tables.
    env: Env,
    /// Brings custom resources into the version that is watched.
    versions: Option<Arc<Versions>>,
}

/// A watch's answer; it ends after `lasts`, on `stop`, or when the client is too slow.
#[must_use]
pub fn stream(
    lens: Lens,
    mut start: WatchStart,
    bookmarks: bool,
    lasts: Duration,
    stop: CancellationToken,
    env: Env,
    versions: Arc<Versions>,
) -> Response<Body> {
    let initial = std::mem::take(&mut start.initial).into();
    let initial_events_bookmark = start.initial_events_bookmark;
    let end = tokio::time::sleep(lasts);
    let bookmark = tokio::time::sleep_until(next_bookmark(end.deadline()));
    let encoding = encoding(&lens);
    let media = lens.media;
    let versions = lens.row.custom.is_some().then_some(versions);
    let stream = Stream {
        lens,
        encoding,
        initial,
        start,
        initial_events_bookmark,
        columns_sent: false,
        bookmarks,
        stop: Box::pin(stop.clone().cancelled_owned()),
        stopped: stop,
        end: Box::pin(end),
        bookmark: Box::pin(bookmark),
        // A negative timeoutSeconds is over before it begins, as upstream has it.
        over: lasts.is_zero(),
        env,
        versions,
    };
    // In a box: it is moved with every event.
    let frames = futures::stream::unfold(Box::new(stream), |mut stream| async move {
        let chunk = stream.next().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), stream))
    });
    respond::bytes(200, media_type(media), Body::from_stream(frames))
}

/// A minute from now, or shortly before the watch's end where that comes first.
fn next_bookmark(end: Instant) -> Instant {
    let now = Instant::now();
    let heartbeat = now + BOOKMARK_EVERY;
    match end.checked_sub(BOOKMARK_BEFORE_END) {
        Some(last) if now < last && last < heartbeat => last,
        _ => heartbeat,
    }
}

/// As in `Content-Type`.
fn media_type(media: Media) -> &'static str {
    match media {
        Media::Json => "application/json",
        Media::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
    }
}

fn media_of(form: Form) -> Media {
    if form.media == negotiate::Media::Protobuf { Media::Protobuf } else { Media::Json }
}

/// A watch that only says why it can't be.
#[must_use]
pub fn refused(form: Form, error: &ApiError) -> Response<Body> {
    let media = media_of(form);
    respond::bytes(200, media_type(media), error_frame(media, error))
}

fn error_frame(media: Media, error: &ApiError) -> Bytes {
    frame_of(media, "ERROR", &serde_json::to_value(error.status()).unwrap_or_default())
}

/// An event with an object of its own.
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
            // Not asked with each event: the token's lock is that of every watch.
            return (!self.stopped.is_cancelled()).then(|| self.state());
        }
        loop {
            tokio::select! {
                biased;
                () = self.stop.as_mut() => return None,
                () = self.end.as_mut() => return None,
                seen = self.start.watch.recv() => {
                    let events = match self.versions.clone() {
                        None => self.events(seen),
                        Some(versions) => self.converted(seen, &versions).await,
                    };
                    return (!events.is_empty()).then_some(events);
                }
                () = self.bookmark.as_mut(), if self.bookmarks => match self.start.watch.progress() {
                    Some(revision) => {
                        self.bookmark.set(tokio::time::sleep_until(next_bookmark(self.end.deadline())));
                        return Some(self.mark(revision.max(self.start.revision), false));
                    }
                    None => self.bookmark.set(tokio::time::sleep(BOOKMARK_AGAIN)),
                },
            }
        }
    }

    /// A piece of the initial state, and the bookmark at its end.
    fn state(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        while out.len() < CHUNK_BYTES {
            let Some(cached) = self.initial.pop_front() else { break };
            let frame = self.frame(Kind::Added, &cached);
            out.extend_from_slice(&frame);
        }
        if self.initial.is_empty() && std::mem::take(&mut self.initial_events_bookmark) {
            let mark = self.mark(self.start.revision, true);
            out.extend_from_slice(&mark);
        }
        out.freeze()
    }

    /// One event, and those that are already there.
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
                // The kind is served no more: the stream ends.
                Err(VersionError::Unregistered) => {
                    self.over = true;
                    break;
                }
                Err(VersionError::Compacted(oldest) | VersionError::Future(oldest)) => {
                    self.over = true;
                    let reached = self.start.watch.handed_out();
                    let error = ApiError::Expired(format!("too old resource version: {reached} ({oldest})"));
                    if let Some(only) = single.take() {
                        out.extend_from_slice(&only);
                    }
                    out.extend_from_slice(&error_frame(self.lens.media, &error));
                    return out.freeze();
                }
            }
            // The next one of a custom resource may have to be converted.
            if out.len() >= CHUNK_BYTES || self.versions.is_some() {
                break;
            }
            match self.start.watch.try_recv() {
                Ok(None) => break,
                Ok(Some(seen)) => next = Ok(seen),
                Err(gone) => next = Err(gone),
            }
        }
        // The usual case: one event, and its frame is shared as it is.
        single.unwrap_or_else(|| out.freeze())
    }

    /// One event of a custom resource, in the version that is watched.
    async fn converted(&mut self, seen: Result<WatchEvent, VersionError>, versions: &Versions) -> Bytes {
        let Ok(seen) = seen else { return self.events(seen) };
        match versions.show_one(&self.lens.row, seen.object.clone()).await {
            Ok(object) if Arc::ptr_eq(&object, &seen.object) => self.events(Ok(seen)),
            Ok(object) => self.frame(seen.kind, &object),
            Err(error) => {
                self.over = true;
                error_frame(self.lens.media, &error)
            }
        }
    }

    fn shared_frame(&mut self, seen: &WatchEvent) -> Bytes {
        if self.lens.tables.is_some() {
            return self.frame(seen.kind, &seen.object);
        }
        // What left a selector shows the state before the event, another object than the event's own.
        let before = seen.kind == Kind::Deleted && seen.event.kind != Kind::Deleted;
        self.encoding.kind = seen.kind;
        self.encoding.before = before;
        seen.event.frame(&self.encoding, || plain_frame(&self.lens, seen.kind, &seen.object))
    }

    fn frame(&mut self, kind: Kind, cached: &Cached) -> Bytes {
        let Some(tables) = self.lens.tables.clone() else { return plain_frame(&self.lens, kind, cached) };
        let row = &self.lens.row;
        let value = if row.shows_stored() { cached.value() } else { row.strategy.read_storage_version(cached.value()) };
        let line = Tables { now: self.env.now(), ..tables.clone() }.row_of(cached);
        self.table_frame(&tables, type_of(kind), &value, line)
    }

    fn table_frame(&mut self, tables: &Tables, kind: &str, object: &Value, line: Value) -> Bytes {
        let columns = if std::mem::replace(&mut self.columns_sent, true) { Value::Null } else { tables.columns() };
        let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"].as_str().unwrap_or("")});
        let table = tables.table(metadata, columns, vec![line]);
        format!("{{\"type\":\"{kind}\",\"object\":{table}}}\n").into()
    }

    fn mark(&mut self, revision: u64, ends_state: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if ends_state {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let row = self.lens.row.clone();
        let mut object = json!({"kind": &*row.kind, "apiVersion": &*row.api_version, "metadata": metadata});
        if let Some(tables) = self.lens.tables.clone() {
            let line = Tables { now: self.env.now(), ..tables.clone() }.row(&object);
            return self.table_frame(&tables, "BOOKMARK", &object, line);
        }
        let object = match self.lens.transform {
            Some(Transform::Metadata(version) | Transform::MetadataList(version)) => json!({
                "kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": object["metadata"],
            }),
            _ => {
                // An object of nothing, which upstream prints as any other.
                let made = row.schema.made();
                if made.is_some_and(|made| schema::normalise(made.get(), &mut object).is_ok()) {
                    row.strategy.of_nothing(&mut object);
                }
                object
            }
        };
        frame_of(self.lens.media, "BOOKMARK", &object)
    }
}

fn type_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Added => "ADDED",
        Kind::Modified => "MODIFIED",
        Kind::Deleted => "DELETED",
    }
}

/// What an event's frame depends on (tables are never shared: they hold ages).
fn encoding(lens: &Lens) -> WatchEncoding {
    let shape = match lens.transform {
        Some(Transform::Metadata(version) | Transform::MetadataList(version)) => Shape::Metadata(version.api_version()),
        _ => Shape::Object,
    };
    let api_version = lens.row.api_version.clone();
    WatchEncoding { kind: Kind::Added, before: false, managed: lens.managed, api_version, shape, media: lens.media }
}

fn plain_frame(lens: &Lens, kind: Kind, cached: &Cached) -> Bytes {
    if lens.media == Media::Protobuf {
        return protobuf_frame(lens, kind, cached);
    }
    let mut out = Vec::with_capacity(cached.stored_len() + 96);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(type_of(kind).as_bytes());
    out.put_slice(b"\",\"object\":");
    match lens.transform {
        Some(Transform::Metadata(version) | Transform::MetadataList(version)) => {
            write_partial(version, &cached.bytes(lens.managed), &mut out);
        }
        _ if lens.row.shows_stored() => cached.write_to(lens.managed, &mut out),
        _ => {
            let mut value = lens.row.strategy.read_storage_version(cached.value());
            if lens.managed {
                value = fields::shown(value, cached.managers());
            }
            // Writing into memory cannot fail.
            let _ = serde_json::to_writer(&mut out, &value);
        }
    }
    out.put_slice(b"}\n");
    out.into()
}

fn protobuf_frame(lens: &Lens, kind: Kind, cached: &Cached) -> Bytes {
    let row = &lens.row;
    let value = cached.value();
    let value = if row.shows_stored() { value } else { row.strategy.read_storage_version(value) };
    let value = if lens.managed { fields::shown(value, cached.managers()) } else { value };
    let shown = match lens.transform {
        Some(Transform::Metadata(version) | Transform::MetadataList(version)) => {
            protobuf::partial(version.api_version(), value)
        }
        _ => value,
    };
    protobuf::event(type_of(kind), &shown)
}

/// The lens of a form.
#[must_use]
pub fn lens(row: &Arc<ResourceInfo>, form: Form, tables: Option<Tables>, managed: bool) -> Lens {
    Lens { row: row.clone(), transform: form.transform, tables, managed, media: media_of(form) }
}
