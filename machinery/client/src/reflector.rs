//! The reflector: lists and watches the objects of one kind, all or those of a field selector. It uses a streaming list
//! (`sendInitialEvents`) if the server has it, else list and watch.
//!
//! A loop of two states: without a known version it lists, with one it watches from there. Output: [`ReflectorEvent`]s,
//! which lead from one complete state to the next.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncBufReadExt as _, StreamExt as _};
use http::{Request, header::ACCEPT};
use kube::Client;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::object::{Decode, Kind, Object, Typed, decode, decode_metadata, key_of, version_of};
use crate::request::{BackOff, query_string, status_code};
use machinery_env::Env;

/// Minimum `timeoutSeconds` of a watch. The value is random up to twice this, so that watches spread over servers.
const WATCH_SECONDS_MIN: u64 = 300;
/// Timeout of a streaming list; after it list and watch are used instead.
const FIRST_STATE_TIMEOUT: Duration = Duration::from_secs(60);
/// `limit` of a list request: keeps a response at a few MB.
const LIST_PAGE: usize = 500;
/// Back-off of failed tries (client-go's reflector: 800 ms, doubling to 30 s).
const BACK_OFF_FIRST: Duration = Duration::from_millis(800);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// A stream that ends sooner than this counts as a failure, so that a server which ends all streams isn't hammered.
const STREAM_SHORT: Duration = Duration::from_secs(1);

const JSON: &str = "application/json";
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;q=0.5";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;q=0.5";
/// The annotation of the bookmark at the end of a streaming list (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// An event of a reflector.
#[derive(Debug, Clone)]
pub enum ReflectorEvent {
    /// The complete state at a version: an object that it lacks is gone.
    Replaced(Vec<Arc<dyn Object>>, u64),
    /// An object was added or changed.
    Applied(Arc<dyn Object>),
    /// An object was deleted; its last state.
    Deleted(Arc<dyn Object>),
    /// A bookmark: nothing changed up to this version.
    Progress(u64),
    /// The server is unreachable or rejects the request, for this reason. The known state stays valid; the reflector
    /// retries.
    Interrupted(String),
}

type EventSender = mpsc::Sender<ReflectorEvent>;

/// A reflector's events in order. The reflector runs only while `next` is awaited and buffers one event at most: a slow
/// reader slows down the watch and costs no memory.
pub struct ReflectorEvents {
    work: Pin<Box<dyn Future<Output = ()> + Send>>,
    events: mpsc::Receiver<ReflectorEvent>,
}

impl std::fmt::Debug for ReflectorEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReflectorEvents").finish_non_exhaustive()
    }
}

impl ReflectorEvents {
    fn of<F: Future<Output = ()> + Send + 'static>(work: impl FnOnce(EventSender) -> F) -> Self {
        let (sender, events) = mpsc::channel(1);
        Self { work: Box::pin(work(sender)), events }
    }

    /// The next event. Cancel safe.
    pub async fn next(&mut self) -> ReflectorEvent {
        tokio::select! {
            biased;
            Some(event) = self.events.recv() => event,
            // The reflector doesn't end while there is a reader.
            () = &mut self.work => std::future::pending().await,
        }
    }

    async fn each(mut self, mut on_event: impl FnMut(ReflectorEvent) -> ControlFlow<()> + Send) {
        while on_event(self.next().await).is_continue() {}
    }
}

/// Why a list or watch ended.
#[derive(Debug, thiserror::Error)]
enum ReflectorError {
    #[error("the request failed")]
    Request(#[from] kube::Error),
    #[error("the server ended the watch at once")]
    Short,
    #[error("the stream broke")]
    Stream(#[from] std::io::Error),
    #[error("the server's answer cannot be read")]
    EffectResult(#[from] serde_json::Error),
    #[error("the watch ended with {code}: {message}")]
    Ended { code: u16, message: String },
    #[error("the first state was not complete in time")]
    Late,
    #[error("the events have no reader")]
    Unread,
}

impl ReflectorError {
    fn code(&self) -> u16 {
        match self {
            Self::Request(error) => status_code(error),
            Self::Ended { code, .. } => *code,
            _ => 0,
        }
    }
}

/// State of the reflector.
enum ReflectorState {
    /// No version is known, or it is too old.
    Start,
    /// Known up to this version.
    At(String),
}

#[derive(Deserialize)]
struct WatchLine<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct ListPage<'a> {
    metadata: ListPageMetadata,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListPageMetadata {
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

/// Reflector of one kind.
#[derive(Debug)]
pub struct Reflector {
    client: ClientHandle,
    env: Env,
    kind: Kind,
    /// Whether whole objects are requested, or their metadata only.
    typed: bool,
    decode: Decode,
    /// Empty for all namespaces.
    namespace: String,
    /// Empty for all objects.
    field_selector: String,
    /// Empty for all objects.
    label_selector: String,
}

/// A client with `Debug`.
struct ClientHandle(Client);

impl std::fmt::Debug for ClientHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Reflector {
    /// A reflector of all objects of a type.
    #[must_use]
    pub fn of<K: Typed>(client: Client, env: Env) -> Self {
        Self::with(client, env, Kind::of::<K>(), true, |_, text| decode::<K>(text))
    }

    /// A reflector of the metadata of all objects of a kind.
    #[must_use]
    pub fn of_metadata(client: Client, env: Env, kind: Kind) -> Self {
        Self::with(client, env, kind, false, decode_metadata)
    }

    pub(super) fn with(client: Client, env: Env, kind: Kind, typed: bool, decode: Decode) -> Self {
        let (namespace, field_selector, label_selector) = Default::default();
        Self { client: ClientHandle(client), env, kind, typed, decode, namespace, field_selector, label_selector }
    }

    /// Restricts it to one namespace.
    #[must_use]
    pub fn within(self, namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), ..self }
    }

    /// Restricts it to a field selector, such as `spec.nodeName=n`.
    #[must_use]
    pub fn selecting(self, field_selector: impl Into<String>) -> Self {
        Self { field_selector: field_selector.into(), ..self }
    }

    /// Restricts it to a label selector, such as `app=web`.
    #[must_use]
    pub fn labelled(self, label_selector: impl Into<String>) -> Self {
        Self { label_selector: label_selector.into(), ..self }
    }

    /// Starts the reflector. Failures are retried for ever and the known state stays valid meanwhile. That includes a
    /// kind that the server doesn't serve: a starting server may not serve it yet. Callers whose kinds come and go use
    /// discovery.
    #[must_use]
    pub fn events(self) -> ReflectorEvents {
        ReflectorEvents::of(|events| async move { self.follow(&events).await })
    }

    /// Runs until `on_event` breaks: see [`Reflector::events`].
    pub async fn run(self, on_event: impl FnMut(ReflectorEvent) -> ControlFlow<()> + Send) {
        self.events().each(on_event).await;
    }

    /// Lists a kind without watch (metrics) at an interval, until `on_event` breaks. A failed list is retried with
    /// back-off; the known state stays as it is.
    pub async fn poll(self, every: Duration, on_event: impl FnMut(ReflectorEvent) -> ControlFlow<()> + Send) {
        let events = ReflectorEvents::of(|events| async move {
            let mut back_off = BackOff::new(every, BACK_OFF_MAX.max(every));
            loop {
                let wait = match self.list(&mut ReflectorState::Start, &events).await {
                    Err(ReflectorError::Unread) => return,
                    Ok(_) => {
                        back_off.reset();
                        every
                    }
                    Err(error) => {
                        self.interrupted(&error, &events).await;
                        back_off.next(&self.env)
                    }
                };
                self.env.sleep(wait).await;
            }
        });
        events.each(on_event).await;
    }

    async fn interrupted(&self, error: &ReflectorError, events: &EventSender) {
        tracing::debug!(kind = %self.kind.resource(), ?error, "the watch failed, retrying");
        // Without a reader the next event ends this reflector.
        let _ = events.send(ReflectorEvent::Interrupted(with_source(error))).await;
    }

    async fn follow(&self, events: &EventSender) {
        let mut state = ReflectorState::Start;
        let mut streaming = true;
        let mut back_off = BackOff::new(BACK_OFF_FIRST, BACK_OFF_MAX);
        loop {
            let began = self.env.elapsed();
            let result = match &state {
                ReflectorState::Start if streaming => self.watch(&mut state, true, events).await,
                ReflectorState::Start => self.list(&mut state, events).await,
                ReflectorState::At(_) => self.watch(&mut state, false, events).await,
            };
            let short = self.env.elapsed().saturating_sub(began) < STREAM_SHORT;
            match result {
                Err(ReflectorError::Unread) => return,
                Ok(false) if !short => {
                    back_off.reset();
                    continue;
                }
                // A list is followed by its watch at once.
                Ok(true) => continue,
                Ok(false) => self.interrupted(&ReflectorError::Short, events).await,
                Err(error) => {
                    let code = error.code();
                    if code == 410 {
                        state = ReflectorState::Start;
                        if !short {
                            back_off.reset();
                            continue;
                        }
                    }
                    let first = matches!(state, ReflectorState::Start);
                    if first && (matches!(error, ReflectorError::Late) || code == 400 || code == 422) && streaming {
                        streaming = false;
                        continue;
                    }
                    self.interrupted(&error, events).await;
                }
            }
            self.env.sleep(back_off.next(&self.env)).await;
        }
    }

    fn read(&self, text: &str) -> Option<Arc<dyn Object>> {
        (self.decode)(&self.kind, text)
            .inspect_err(|error| tracing::warn!(kind = %self.kind.resource(), %error, "an object cannot be decoded"))
            .ok()
    }

    fn request<'a>(
        &'a self,
        mut query: Vec<(&'a str, &'a str)>,
        accept: &'static str,
    ) -> Result<Request<Vec<u8>>, ReflectorError> {
        if !self.field_selector.is_empty() {
            query.push(("fieldSelector", &self.field_selector));
        }
        if !self.label_selector.is_empty() {
            query.push(("labelSelector", &self.label_selector));
        }
        Request::get(format!("{}?{}", self.kind.collection_path(&self.namespace), query_string(&query)))
            .header(ACCEPT, accept)
            .body(Vec::new())
            .map_err(|e| ReflectorError::Request(kube::Error::HttpError(e)))
    }

    /// Lists in pages. Returns true: the watch may begin at once.
    async fn list(&self, state: &mut ReflectorState, events: &EventSender) -> Result<bool, ReflectorError> {
        let mut objects = Vec::new();
        let mut from = String::new();
        loop {
            let limit = LIST_PAGE.to_string();
            let mut query = vec![("limit", limit.as_str())];
            if !from.is_empty() {
                query.push(("continue", &from));
            }
            let accept = if self.typed { JSON } else { METADATA_LIST };
            let text = self.client.0.request_text(self.request(query, accept)?).await?;
            let page: ListPage<'_> = serde_json::from_str(&text)?;
            objects.extend(page.items.unwrap_or_default().iter().filter_map(|item| self.read(item.get())));
            from = page.metadata.r#continue;
            if from.is_empty() {
                let version = page.metadata.resource_version;
                let seen = version.parse().unwrap_or(0);
                *state = ReflectorState::At(version);
                let reported = events.send(ReflectorEvent::Replaced(objects, seen)).await;
                return reported.map(|()| true).map_err(|_| ReflectorError::Unread);
            }
        }
    }

    /// Watches; with `initial` as a streaming list. Returns false if the server ended the stream.
    async fn watch(
        &self,
        state: &mut ReflectorState,
        initial: bool,
        events: &EventSender,
    ) -> Result<bool, ReflectorError> {
        let seconds = (WATCH_SECONDS_MIN + self.env.below(WATCH_SECONDS_MIN)).to_string();
        let mut query = vec![("watch", "true"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", &seconds)];
        if initial {
            query.extend([("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan")]);
        }
        if let ReflectorState::At(version) = &state {
            query.push(("resourceVersion", version));
        }
        let accept = if self.typed { JSON } else { METADATA };
        let stream = self.client.0.request_stream(self.request(query, accept)?).await?;
        let mut lines = std::pin::pin!(stream.lines());
        // The initial objects are collected, so that readers step from one complete state to the next.
        let mut first: Option<Vec<Arc<dyn Object>>> = initial.then(Vec::new);
        let deadline = self.env.sleep(FIRST_STATE_TIMEOUT);
        let mut deadline = std::pin::pin!(deadline);
        loop {
            let line = tokio::select! {
                biased;
                () = &mut deadline, if first.is_some() => return Err(ReflectorError::Late),
                line = lines.next() => line,
            };
            let Some(line) = line else { return Ok(false) };
            let line = line?;
            if line.is_empty() {
                continue;
            }
            if let Some(event) = self.read_line(&line, &mut first, state)? {
                events.send(event).await.map_err(|_| ReflectorError::Unread)?;
            }
        }
    }

    /// Decodes a line of a watch; `None` while the initial objects are collected into `first`.
    fn read_line(
        &self,
        line: &str,
        first: &mut Option<Vec<Arc<dyn Object>>>,
        state: &mut ReflectorState,
    ) -> Result<Option<ReflectorEvent>, ReflectorError> {
        let event: WatchLine<'_> = serde_json::from_str(line)?;
        let text = event.object.get();
        match (event.r#type, &mut *first) {
            ("ERROR", _) => {
                let error: ErrorObject = serde_json::from_str(text)?;
                return Err(ReflectorError::Ended { code: error.code, message: error.message });
            }
            ("BOOKMARK", _) => {
                let mark = decode_metadata(&self.kind, text)?;
                let metadata = mark.metadata();
                let ends = metadata.annotations.as_ref().is_some_and(|a| a.contains_key(INITIAL_EVENTS_END));
                if first.is_some() && !ends {
                    return Ok(None);
                }
                *state = ReflectorState::At(metadata.resource_version.clone().unwrap_or_default());
                let seen = version_of(metadata);
                return Ok(Some(match first.take() {
                    Some(objects) => ReflectorEvent::Replaced(objects, seen),
                    None => ReflectorEvent::Progress(seen),
                }));
            }
            ("ADDED" | "MODIFIED", Some(objects)) => objects.extend(self.read(text)),
            ("DELETED", Some(objects)) => {
                if let Some(gone) = self.read(text) {
                    objects.retain(|o| key_of(o.metadata()) != key_of(gone.metadata()));
                }
            }
            (change, None) => {
                let Some(object) = self.read(text) else { return Ok(None) };
                if let Some(version) = object.metadata().resource_version.clone() {
                    *state = ReflectorState::At(version);
                }
                let deleted = change == "DELETED";
                let event = if deleted { ReflectorEvent::Deleted } else { ReflectorEvent::Applied };
                return Ok(Some(event(object)));
            }
            (_, Some(_)) => {}
        }
        Ok(None)
    }
}

fn with_source(error: &ReflectorError) -> String {
    use std::error::Error as _;
    // The client's own text has the Status twice, the second time with all its fields.
    if let ReflectorError::Request(kube::Error::Api(status)) = error {
        return format!("{error}: {} ({})", status.message, status.code);
    }
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_printed_once() {
        let status = serde_json::json!({"status": "Failure", "message": "nodes is forbidden", "reason": "Forbidden", "code": 403});
        let error = kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()));
        assert_eq!(with_source(&ReflectorError::Request(error)), "the request failed: nodes is forbidden (403)");
    }
}
