//! One event recorder for every component, with client-go's correlation and retries.
//!
//! [`Recorder::record`] never waits: an event is correlated at once ([`correlate`]), and the resulting write is queued
//! in a bounded queue ([`queue`]) that is fair over namespaces and merges writes of one event. One task sends several
//! writes at a time and retries writes that the server couldn't take.

mod correlate;
mod queue;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::{core, events};
use kube::Client;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::correlate::{Correlator, EventApi, EventReporter};
use self::queue::{EventQueue, EventWrite};
use crate::object::Kind;
use crate::plan::EventRecord;
use crate::request::{ApiClient, BackOff, PatchType, may_succeed_later, status_code};
use machinery_api::ObjectKey;
use machinery_env::Env;

/// Concurrent writes of one recorder: hides the server's latency and leaves capacity to others.
const WRITES_MAX: usize = 8;
/// Maximum tries of a write (client-go's `maxTriesPerEvent`).
const TRIES_MAX: u32 = 12;
/// Back-off after a failure. It applies to all writes, since the cause of one failure affects all (client-go: 10 s).
const BACK_OFF_FIRST: Duration = Duration::from_millis(500);
const BACK_OFF_MAX: Duration = Duration::from_secs(10);

/// Records events of one component. Clones share a queue; after the last clone is dropped, queued events are still
/// written.
#[derive(Debug, Clone)]
pub struct Recorder {
    handle: Arc<WriterHandle>,
    env: Env,
}

/// Stops the writer with the last recorder.
#[derive(Debug)]
struct WriterHandle(Arc<RecorderShared>);

impl Drop for WriterHandle {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.wake.notify_one();
    }
}

#[derive(Debug)]
struct RecorderShared {
    state: Mutex<RecorderState>,
    wake: Notify,
}

#[derive(Debug)]
struct RecorderState {
    correlator: Correlator,
    queue: EventQueue,
    closed: bool,
}

impl RecorderShared {
    fn state(&self) -> MutexGuard<'_, RecorderState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder {
    /// Starts a writer of `v1` events with `client`, until `stop`.
    #[must_use]
    pub fn start(client: Client, env: Env, component: &str, stop: &CancellationToken) -> Self {
        Self::start_on(client, env, component, String::new(), stop)
    }

    /// As [`Recorder::start`], for a component of one node, which is the host in its events.
    #[must_use]
    pub fn start_on(client: Client, env: Env, component: &str, host: String, stop: &CancellationToken) -> Self {
        let source = EventReporter { api: EventApi::Core, component: component.to_owned(), instance: host };
        Self::start_from(client, env, source, stop)
    }

    /// Starts a writer of `events.k8s.io/v1` events, as upstream's scheduler: with an action and a reporting instance,
    /// and repeated events as a series.
    #[must_use]
    pub fn start_series(client: Client, env: Env, controller: &str, instance: &str, stop: &CancellationToken) -> Self {
        let source =
            EventReporter { api: EventApi::Series, component: controller.to_owned(), instance: instance.to_owned() };
        Self::start_from(client, env, source, stop)
    }

    fn start_from(client: Client, env: Env, source: EventReporter, stop: &CancellationToken) -> Self {
        let component = source.component.clone();
        let kind = match source.api {
            EventApi::Core => Kind::of::<core::v1::Event>(),
            EventApi::Series => Kind::of::<events::v1::Event>(),
        };
        let state = RecorderState { correlator: Correlator::new(source), queue: EventQueue::default(), closed: false };
        let shared = Arc::new(RecorderShared { state: Mutex::new(state), wake: Notify::new() });
        let writer = Writer { shared: shared.clone(), client: client.into(), kind, env: env.clone(), component };
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = writer.run() => {}
            }
        });
        Self { handle: Arc::new(WriterHandle(shared)), env }
    }

    /// Records an event; never waits.
    pub fn record(&self, note: EventRecord) {
        self.record_action(note, "");
    }

    /// Records an event with its action, if the event's API has that field.
    pub fn record_action(&self, note: EventRecord, action: &'static str) {
        let shared = &self.handle.0;
        let mut state = shared.state();
        let Some(write) = state.correlator.correlate(&note, action, self.env.now()) else { return };
        if let Some(dropped) = state.queue.push(write) {
            tracing::warn!(namespace = %dropped.key.namespace, event = %dropped.key.name, "an event is lost: too many wait");
        }
        drop(state);
        shared.wake.notify_one();
    }
}

struct Writer {
    shared: Arc<RecorderShared>,
    client: ApiClient,
    kind: Kind,
    env: Env,
    component: String,
}

impl Writer {
    async fn run(self) {
        let mut in_flight = FuturesUnordered::new();
        let mut back_off = BackOff::new(BACK_OFF_FIRST, BACK_OFF_MAX);
        let mut pause: Option<std::pin::Pin<Box<tokio::time::Sleep>>> = None;
        loop {
            while pause.is_none() && in_flight.len() < WRITES_MAX {
                let Some(write) = self.shared.state().queue.pop() else { break };
                in_flight.push(self.write(write));
            }
            if in_flight.is_empty() && pause.is_none() && self.shared.state().closed {
                return;
            }
            tokio::select! {
                biased;
                Some((write, result)) = in_flight.next(), if !in_flight.is_empty() => {
                    let again = self.handle_result(write, result);
                    if again && pause.is_none() {
                        pause = Some(Box::pin(self.env.sleep(back_off.next(&self.env))));
                    } else if !again {
                        back_off.reset();
                    }
                }
                () = async { pause.as_mut().expect("polled only where there is one").await }, if pause.is_some() => {
                    pause = None;
                }
                () = self.shared.wake.notified() => {}
            }
        }
    }

    /// One try. A known event that has expired is created again.
    async fn write(&self, write: EventWrite) -> (EventWrite, Result<(), kube::Error>) {
        let ObjectKey { namespace, .. } = &write.key;
        let result = match &write.patch {
            Some(patch) => {
                let patched = self.client.patch::<Value>(&self.kind, &write.key, None, PatchType::Merge, patch).await;
                match patched {
                    Err(error) if status_code(&error) == 404 => {
                        self.client.create::<Value>(&self.kind, namespace, &write.event).await
                    }
                    patched => patched,
                }
            }
            None => self.client.create::<Value>(&self.kind, namespace, &write.event).await,
        };
        (write, result.map(drop))
    }

    /// Applies a try's result to the queue; returns whether the write waits for a retry.
    fn handle_result(&self, mut write: EventWrite, result: Result<(), kube::Error>) -> bool {
        write.tries += 1;
        let mut state = self.shared.state();
        let Err(error) = result else {
            state.queue.finish(&write.key);
            return false;
        };
        let again = may_succeed_later(&error) && write.tries < TRIES_MAX;
        let (component, key, tries) = (&self.component, write.key.clone(), write.tries);
        if again {
            tracing::debug!(%component, %key, tries, %error, "an event could not be written, retrying");
            state.queue.retry(write);
            return true;
        }
        state.queue.finish(&key);
        // 409: an earlier try whose response was lost had succeeded.
        if status_code(&error) != 409 {
            tracing::info!(%component, %key, tries, %error, "an event is lost: it could not be written");
        }
        false
    }
}
