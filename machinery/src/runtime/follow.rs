//! Follows one kind on the server into a view: a streamed first state where the server has it, list and watch elsewhere.
//!
//! A loop of two positions: without a known version it takes the whole state, with one it watches from there.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::{AsyncBufReadExt as _, StreamExt as _};
use http::{Request, header::ACCEPT};
use kube::Client;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::informer::Informer;
use super::object::{Decode, Kind, Object, decode_metadata, key_of, version_of};
use super::view::View;
use crate::env::Env;

/// A watch is asked to end after this long, and up to as long again, so that watches are spread over servers.
const WATCH_SECONDS_MIN: u64 = 300;
/// How long a streamed first state may take before list and watch are used instead.
const FIRST_STATE_TIMEOUT: Duration = Duration::from_secs(60);
/// Objects in one page of a list: keeps an answer at a few MB.
const LIST_PAGE: usize = 500;
/// Waits between failed tries (client-go's reflector: 800 ms, doubling to 30 s).
const BACK_OFF_FIRST: Duration = Duration::from_millis(800);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// A stream that ends sooner than this counts as a failure, so that a server which ends all at once isn't hammered.
const STREAM_SHORT: Duration = Duration::from_secs(1);

const JSON: &str = "application/json";
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;q=0.5";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;q=0.5";
/// The annotation of the bookmark that ends a streamed first state (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Why following broke off.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the request failed")]
    Request(#[from] kube::Error),
    #[error("the stream broke")]
    Stream(#[from] std::io::Error),
    #[error("the server's answer cannot be read")]
    Answer(#[from] serde_json::Error),
    #[error("the watch ended with {code}: {message}")]
    Ended { code: u16, message: String },
    #[error("the first state was not complete in time")]
    Late,
    #[error("nobody reads the view any more")]
    Unread,
}

impl Broken {
    fn code(&self) -> u16 {
        match self {
            Self::Request(kube::Error::Api(status)) => status.code,
            Self::Ended { code, .. } => *code,
            _ => 0,
        }
    }
}

/// Where following stands.
enum Position {
    /// Nothing is known, or it is too old.
    Start,
    /// Known up to this version.
    At(String),
}

#[derive(Deserialize)]
struct Line<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Page<'a> {
    metadata: PageMetadata,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    r#continue: String,
}

#[derive(Deserialize)]
struct ErrorObject {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

struct Follow {
    informer: Weak<Informer>,
    client: Client,
    env: Env,
    kind: Kind,
    typed: bool,
    decode: Decode,
    stop: CancellationToken,
}

/// Follows `kind` until stopped.
pub(super) async fn follow(
    informer: Weak<Informer>,
    client: Client,
    env: Env,
    kind: Kind,
    typed: bool,
    decode: Decode,
    stop: CancellationToken,
) {
    let this = Follow { informer, client, env, kind, typed, decode, stop: stop.clone() };
    tokio::select! {
        () = stop.cancelled() => {}
        () = this.run() => {}
    }
}

impl Follow {
    async fn run(&self) {
        let mut position = Position::Start;
        let mut streaming = true;
        let mut wait = BACK_OFF_FIRST;
        loop {
            let began = self.env.elapsed();
            let result = match &position {
                Position::Start if streaming => self.watch(&mut position, true).await,
                Position::Start => self.list(&mut position).await,
                Position::At(_) => self.watch(&mut position, false).await,
            };
            let short = self.env.elapsed().saturating_sub(began) < STREAM_SHORT;
            match result {
                Err(Broken::Unread) => return,
                Ok(false) if !short => wait = BACK_OFF_FIRST,
                // A list is followed by its watch at once.
                Ok(true) => continue,
                Ok(false) => self.pause(&mut wait).await,
                Err(broken) => {
                    let code = broken.code();
                    if code == 410 {
                        position = Position::Start;
                        if !short {
                            wait = BACK_OFF_FIRST;
                            continue;
                        }
                    }
                    if matches!(position, Position::Start)
                        && (matches!(broken, Broken::Late) || code == 400 || code == 422)
                    {
                        streaming = false;
                        continue;
                    }
                    if code == 404 {
                        // The kind isn't served (any more): there are no objects of it.
                        position = Position::Start;
                        self.change(|view| view.replace(&self.kind, Vec::new(), 0));
                    }
                    tracing::debug!(kind = %self.kind.resource(), error = ?broken, "watching broke off, trying again");
                    self.pause(&mut wait).await;
                }
            }
        }
    }

    async fn pause(&self, wait: &mut Duration) {
        let jitter_ms = self.env.below(wait.as_millis() as u64 / 2 + 1);
        tokio::time::sleep(*wait + Duration::from_millis(jitter_ms)).await;
        *wait = wait.saturating_mul(2).min(BACK_OFF_MAX);
    }

    fn change(&self, act: impl FnOnce(&mut View) -> Vec<super::view::Change>) -> bool {
        let Some(informer) = self.informer.upgrade() else { return false };
        informer.change(|view| if self.stop.is_cancelled() { Vec::new() } else { act(view) });
        true
    }

    fn read(&self, text: &str) -> Option<Arc<dyn Object>> {
        (self.decode)(&self.kind, text)
            .inspect_err(|error| tracing::warn!(kind = %self.kind.resource(), %error, "an object cannot be read"))
            .ok()
    }

    fn request(&self, query: &str, accept: &'static str) -> Result<Request<Vec<u8>>, Broken> {
        Request::get(format!("{}?{query}", self.kind.collection_path("")))
            .header(ACCEPT, accept)
            .body(Vec::new())
            .map_err(|e| Broken::Request(kube::Error::HttpError(e)))
    }

    /// Takes the whole state in pages. Answers true: the watch may begin at once.
    async fn list(&self, position: &mut Position) -> Result<bool, Broken> {
        let mut objects = Vec::new();
        let mut from = String::new();
        loop {
            let mut query = form_urlencoded(&[("limit", &LIST_PAGE.to_string())]);
            if !from.is_empty() {
                query = form_urlencoded(&[("limit", &LIST_PAGE.to_string()), ("continue", &from)]);
            }
            let accept = if self.typed { JSON } else { METADATA_LIST };
            let text = self.client.request_text(self.request(&query, accept)?).await?;
            let page: Page<'_> = serde_json::from_str(&text)?;
            objects.extend(page.items.unwrap_or_default().iter().filter_map(|item| self.read(item.get())));
            from = page.metadata.r#continue;
            if from.is_empty() {
                let version = page.metadata.resource_version;
                let seen = version.parse().unwrap_or(0);
                *position = Position::At(version);
                return if self.change(|view| view.replace(&self.kind, objects, seen)) {
                    Ok(true)
                } else {
                    Err(Broken::Unread)
                };
            }
        }
    }

    /// Watches, with the first state in the stream where `initial`. Answers false when the server ended the stream.
    async fn watch(&self, position: &mut Position, initial: bool) -> Result<bool, Broken> {
        let seconds = WATCH_SECONDS_MIN + self.env.below(WATCH_SECONDS_MIN);
        let mut query = format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}");
        if initial {
            query.push_str("&sendInitialEvents=true&resourceVersionMatch=NotOlderThan");
        }
        if let Position::At(version) = &position {
            query = format!("{query}&{}", form_urlencoded(&[("resourceVersion", version)]));
        }
        let accept = if self.typed { JSON } else { METADATA };
        let stream = self.client.request_stream(self.request(&query, accept)?).await?;
        let mut lines = std::pin::pin!(stream.lines());
        // The first state is collected, so that the view steps from one complete state to the next.
        let mut first: Option<Vec<Arc<dyn Object>>> = initial.then(Vec::new);
        let deadline = tokio::time::sleep(FIRST_STATE_TIMEOUT);
        let mut deadline = std::pin::pin!(deadline);
        loop {
            let line = tokio::select! {
                line = lines.next() => line,
                () = &mut deadline, if first.is_some() => return Err(Broken::Late),
            };
            let Some(line) = line else { return Ok(false) };
            let line = line?;
            if line.is_empty() {
                continue;
            }
            let event: Line<'_> = serde_json::from_str(&line)?;
            let text = event.object.get();
            match (event.r#type, &mut first) {
                ("ERROR", _) => {
                    let error: ErrorObject = serde_json::from_str(text)?;
                    return Err(Broken::Ended { code: error.code, message: error.message });
                }
                ("BOOKMARK", first) => {
                    let mark = decode_metadata(&self.kind, text)?;
                    let metadata = mark.metadata();
                    let seen = version_of(metadata);
                    let ends = metadata.annotations.as_ref().is_some_and(|a| a.contains_key(INITIAL_EVENTS_END));
                    if first.is_none() || ends {
                        *position = Position::At(metadata.resource_version.clone().unwrap_or_default());
                        let objects = first.take();
                        let read = self.change(|view| match objects {
                            Some(objects) => view.replace(&self.kind, objects, seen),
                            None => {
                                view.progress(&self.kind, seen);
                                Vec::new()
                            }
                        });
                        if !read {
                            return Err(Broken::Unread);
                        }
                    }
                }
                ("ADDED" | "MODIFIED", Some(objects)) => objects.extend(self.read(text)),
                ("DELETED", Some(objects)) => {
                    if let Some(gone) = self.read(text) {
                        objects.retain(|o| key_of(o.metadata()) != key_of(gone.metadata()));
                    }
                }
                (change, None) => {
                    let Some(object) = self.read(text) else { continue };
                    if let Some(version) = object.metadata().resource_version.clone() {
                        *position = Position::At(version);
                    }
                    let read = self.change(|view| match change {
                        "DELETED" => {
                            let metadata = object.metadata();
                            view.remove(&self.kind, &key_of(metadata), version_of(metadata)).into_iter().collect()
                        }
                        _ => view.put(&self.kind, object).into_iter().collect(),
                    });
                    if !read {
                        return Err(Broken::Unread);
                    }
                }
                (_, Some(_)) => {}
            }
        }
    }
}

/// A query string of these pairs.
pub(super) fn form_urlencoded(pairs: &[(&str, &str)]) -> String {
    let mut query = String::new();
    for (name, value) in pairs {
        if !query.is_empty() {
            query.push('&');
        }
        query.push_str(name);
        query.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => query.push(byte as char),
                _ => query.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    query
}
