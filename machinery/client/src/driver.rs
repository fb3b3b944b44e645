//! The driver: changes become keys, keys become plans, plans are performed. One for all controllers.
//!
//! Each controller is a row: what it looks at, how a change names the keys to look at again, and a pure function from
//! view and key to plan. The function gets the key only, never what changed: a lost hint, a restart and a second replica
//! are one code path. After a pass that wrote something the key is held back until the view shows what was written, so
//! that no controller counts what it expects to see.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cache::{Change, ObjectCache};
use crate::events::Recorder;
use crate::executor::Executor;
use crate::informer::{Informer, Listener};
use crate::metrics::Metrics;
use crate::object::{Decode, Kind, Typed, decode};
use crate::pace::Pace;
use crate::pass::{Memories, Pass};
use crate::pending::PendingWrite;
use crate::plan::{EventRecord, Failure, Plan};
use crate::question::Memory;
use crate::queue::{BackOff, WorkQueue};
use machinery_api::ObjectKey;
use machinery_env::Env;

/// How often every key is looked at again, as repair of whatever went wrong unnoticed.
const FULL_PASS_INTERVAL: Duration = Duration::from_secs(600);
/// Objects that one read of the view looks at in such a pass: some milliseconds.
const REPAIR_CHUNK: usize = 1000;
/// How long a key is held back at most for the view to catch up (upstream's expectations time out after as long).
const HOLD_MAX: Duration = Duration::from_secs(300);
/// Passes of one controller that wait for answers at once: more would only wait at the server.
const ASKING_MAX: usize = 32;
/// Rounds of questions of one pass.
const ROUNDS_MAX: usize = 24;

/// What a decision may know beside the view.
#[derive(Debug)]
pub struct Context<'a, S> {
    /// The time.
    pub now: Timestamp,
    /// The monotonic time on whose scale [`ObjectCache::seen_at`] is.
    pub elapsed: Duration,
    /// The controllers' settings.
    pub settings: &'a S,
    /// What was asked in this pass, and answered.
    pub pass: &'a Pass,
    /// What this controller remembers of its keys.
    pub memories: &'a Memories,
}

/// Which keys a change concerns.
pub type Keys = fn(&ObjectCache, &Change) -> Vec<ObjectKey>;

/// One kind of objects that a controller looks at.
#[derive(Debug, Clone, Copy)]
pub struct Input {
    /// None: every kind.
    held: Option<Held>,
    watch: fn(&Arc<Informer>, Option<Duration>),
    /// Asked for so often, where it can't be watched.
    every: Option<Duration>,
    keys: Keys,
}

/// A kind whose objects the view holds whole.
#[derive(Debug, Clone, Copy)]
struct Held {
    kind: fn() -> Kind,
    decode: Decode,
}

impl Input {
    /// Objects of one type.
    #[must_use]
    pub const fn of<K: Typed>(keys: Keys) -> Self {
        let held = Some(Held { kind: Kind::of::<K>, decode: |_, text| decode::<K>(text) });
        let watch = |informer: &Arc<Informer>, every: Option<Duration>| match every {
            Some(every) => informer.poll::<K>(every),
            None => informer.watch::<K>(),
        };
        Self { held, watch, every: None, keys }
    }

    /// Objects of one type that can be listed and not watched, such as metrics: asked for at an interval. Controllers
    /// start without them; how old they are says [`ObjectCache::replaced_at`].
    #[must_use]
    pub const fn polled<K: Typed>(every: Duration, keys: Keys) -> Self {
        Self { every: Some(every), ..Self::of::<K>(keys) }
    }

    /// The metadata of all objects that can be owned or left behind: see [`Informer::watch_everything`].
    #[must_use]
    pub const fn everything(keys: Keys) -> Self {
        Self { held: None, watch: |informer, _| informer.watch_everything(), every: None, keys }
    }

    /// The kind; none where it is every kind.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        self.held.map(|held| (held.kind)())
    }

    /// The kind, and how its objects are read.
    #[must_use]
    pub fn held(&self) -> Option<(Kind, Decode)> {
        self.held.map(|held| ((held.kind)(), held.decode))
    }

    /// The keys that a change concerns, if it is of this input's kind.
    #[must_use]
    pub fn keys(&self, view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
        match self.held {
            Some(held) if (held.kind)() != change.kind => Vec::new(),
            _ => (self.keys)(view, change),
        }
    }
}

/// The key of the changed object itself: what most controllers want of their own kind.
#[must_use]
pub fn own_key(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    vec![(*change.key).clone()]
}

/// A controller: one row of a table.
#[derive(Debug)]
pub struct Controller<S: 'static> {
    /// Upstream's name; also the source of its events.
    pub name: &'static str,
    /// The service account in `kube-system` in whose name it acts, as upstream's default roles are bound to it.
    pub account: &'static str,
    /// How many keys are worked on at once.
    pub workers: usize,
    /// How long a key waits that failed.
    pub back_off: BackOff,
    /// What it looks at.
    pub inputs: &'static [Input],
    /// The decision: pure.
    pub reconcile: fn(&ObjectCache, &ObjectKey, &Context<'_, S>) -> Plan,
}

/// Gives the client that acts in the name of a service account of `kube-system`.
pub type Clients = Arc<dyn Fn(&'static str) -> Client + Send + Sync>;

/// What the driver works with.
pub struct DriverDeps<S> {
    /// Gives the client that acts as a service account of `kube-system`.
    pub clients: Clients,
    /// The view; its inputs are watched from the start of the driver on.
    pub informer: Arc<Informer>,
    /// Clock and randomness.
    pub env: Env,
    /// The figures.
    pub metrics: Metrics,
    /// What the controllers are told.
    pub settings: Arc<S>,
    /// How many keys are worked on at once, where that is another number than the controller's own.
    pub workers: BTreeMap<&'static str, usize>,
}

impl<S> std::fmt::Debug for DriverDeps<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DriverDeps").finish_non_exhaustive()
    }
}

/// One controller at work.
struct Running<S: 'static> {
    row: &'static Controller<S>,
    queue: Arc<WorkQueue>,
    executor: Executor,
    informer: Arc<Informer>,
    env: Env,
    metrics: Metrics,
    settings: Arc<S>,
    memories: RwLock<Memories>,
    /// What says only how far it has come.
    pace: Mutex<Pace>,
    /// Passes that wait for answers at once.
    asking: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Runs controllers until `stop`.
pub async fn run<S: Send + Sync + 'static>(
    controllers: impl IntoIterator<Item = &'static Controller<S>>,
    parts: DriverDeps<S>,
    stop: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    let mut listeners = Vec::new();
    let all: Vec<Arc<Running<S>>> = controllers.into_iter().map(|row| Running::new(row, &parts, &stop)).collect();
    // Whole kinds first: what is watched whole needs no second watch of its metadata.
    let inputs = || all.iter().flat_map(|r| r.row.inputs);
    inputs().filter(|i| i.held.is_some()).for_each(|input| (input.watch)(&parts.informer, input.every));
    inputs().filter(|i| i.held.is_none()).for_each(|input| (input.watch)(&parts.informer, input.every));
    tokio::select! {
        biased;
        () = stop.cancelled() => return,
        () = parts.informer.synced() => {}
    }
    for running in &all {
        let listening = running.clone();
        let listener: Arc<Listener> =
            Arc::new(move |view: &ObjectCache, change: &Change| listening.on_change(view, change));
        parts.informer.listen(&listener);
        listeners.push(listener);
        let workers = parts.workers.get(running.row.name).copied().unwrap_or(running.row.workers);
        for _ in 0..workers.max(1) {
            tasks.spawn(running.clone().work_until(stop.clone()));
        }
    }
    let full_passes = async {
        loop {
            tokio::time::sleep(FULL_PASS_INTERVAL).await;
            for kind in parts.informer.read(|view| view.kinds().cloned().collect::<Vec<_>>()) {
                repair(&parts.informer, &kind, |view, change| {
                    all.iter().for_each(|running| running.on_change(view, change));
                })
                .await;
            }
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = full_passes => {}
    }
    drop(listeners);
    // What is being performed breaks off between two requests' awaits: every plan may be repeated.
    while tasks.join_next().await.is_some() {}
}

/// Looks at all objects of a kind again, in pieces: between two of them others get at the view.
async fn repair(informer: &Informer, kind: &Kind, look: impl Fn(&ObjectCache, &Change)) {
    let mut after: Option<Arc<ObjectKey>> = None;
    loop {
        let last = informer.read(|view| {
            let changes = view.changes_after(kind, after.as_deref(), REPAIR_CHUNK);
            changes.iter().for_each(|change| look(view, change));
            changes.last().map(|change| change.key.clone()).filter(|_| changes.len() == REPAIR_CHUNK)
        });
        let Some(last) = last else { return };
        after = Some(last);
        tokio::task::yield_now().await;
    }
}

impl<S: Send + Sync + 'static> Running<S> {
    fn new(row: &'static Controller<S>, parts: &DriverDeps<S>, stop: &CancellationToken) -> Arc<Self> {
        let client = (parts.clients)(row.account);
        let recorder = Recorder::start(client.clone(), parts.env.clone(), row.name, stop);
        let queue = Arc::new(WorkQueue::new(parts.env.clone(), row.back_off));
        parts.metrics.watch(row.name, &queue);
        Arc::new(Self {
            row,
            queue,
            executor: Executor { api: client.into(), recorder },
            informer: parts.informer.clone(),
            env: parts.env.clone(),
            metrics: parts.metrics.clone(),
            settings: parts.settings.clone(),
            memories: RwLock::default(),
            pace: Mutex::default(),
            asking: Arc::new(Semaphore::new(ASKING_MAX)),
            stop: stop.clone(),
        })
    }

    fn on_change(&self, view: &ObjectCache, change: &Change) {
        for input in self.row.inputs {
            // The caller feeds all controllers: a panic must not end it. The next full pass looks at the object again.
            match catch_unwind(AssertUnwindSafe(|| input.keys(view, change))) {
                Ok(keys) => keys.into_iter().for_each(|key| {
                    self.queue.add(key);
                }),
                Err(panic) => {
                    self.metrics.panicked(self.row.name);
                    let panic = panic_message(&*panic);
                    tracing::error!(controller = self.row.name, key = %change.key, panic, "mapping a change to keys panicked");
                }
            }
        }
    }

    async fn work_until(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.work() => {}
        }
    }

    async fn work(self: Arc<Self>) {
        loop {
            let taken = self.queue.next().await;
            self.metrics.taken(self.row.name, taken.waited);
            let key = taken.key;
            let now = self.env.now();
            let Some(plan) = self.decide(&key, now, &Pass::default()) else { continue };
            if plan.questions.is_empty() {
                self.guard(&key, self.perform(key.clone(), plan)).await;
                continue;
            }
            // Who answers may be slow: that is no worker's time.
            let Ok(permit) = self.asking.clone().acquire_owned().await else { return };
            let running = self.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let stop = running.stop.clone();
                let asking = running.clone().ask(key.clone(), now, plan);
                stop.run_until_cancelled(running.guard(&key, asking)).await;
            });
        }
    }

    /// Asks what a decision needs to know, as long as it needs more; then does what it says. One pass has one time.
    async fn ask(self: Arc<Self>, key: Arc<ObjectKey>, now: Timestamp, mut plan: Plan) {
        let mut pass = Pass::default();
        for _ in 0..ROUNDS_MAX {
            if plan.questions.is_empty() {
                break;
            }
            pass.carried = plan.memory.take();
            for (question, answer) in self.executor.ask(plan.questions).await {
                pass.answered(question, answer);
            }
            let Some(next) = self.decide(&key, now, &pass) else { return };
            plan = next;
        }
        if !plan.questions.is_empty() {
            tracing::error!(controller = self.row.name, %key, "the decision asks without end");
            plan = Plan::nothing();
            plan.requeue_after(now, FULL_PASS_INTERVAL);
        }
        self.perform(key, plan).await;
    }

    async fn perform(self: &Arc<Self>, key: Arc<ObjectKey>, plan: Plan) {
        self.remember(&key, plan.memory);
        let requeue_at = plan.requeue_at;
        let may_wait = plan.may_wait && !plan.actions.is_empty();
        let wait = self.pace.lock().unwrap_or_else(PoisonError::into_inner).wait(&key, may_wait, self.env.elapsed());
        if let Some(wait) = wait {
            self.release(&key, Some(wait), requeue_at);
            return;
        }
        if !plan.actions.is_empty() {
            tracing::debug!(controller = self.row.name, %key, actions = ?plan.actions, "performing");
        }
        let (wrote, result) = self.executor.perform(plan.actions).await;
        let seen = |view: &ObjectCache| wrote.iter().all(|w| w.seen(view));
        if self.informer.read(seen) {
            self.finish(&key, requeue_at, result);
        } else {
            let (running, waiting) = (self.clone(), self.clone().await_cache(key.clone(), wrote, requeue_at, result));
            tokio::spawn(async move { running.guard(&key, waiting).await });
        }
    }

    fn remember(&self, key: &ObjectKey, memory: Option<Memory>) {
        let known = self.memories.read().unwrap_or_else(PoisonError::into_inner);
        // Most controllers remember nothing.
        if memory.is_none() && known.lacks(key) {
            return;
        }
        drop(known);
        self.memories.write().unwrap_or_else(PoisonError::into_inner).set(key, memory);
    }

    /// Makes the decision; none where it panicked, and the key was given back.
    fn decide(&self, key: &Arc<ObjectKey>, now: Timestamp, pass: &Pass) -> Option<Plan> {
        let memories = self.memories.read().unwrap_or_else(PoisonError::into_inner);
        let elapsed = self.env.elapsed();
        let context = Context { now, elapsed, settings: &*self.settings, pass, memories: &memories };
        // A bug in one decision must not end all others.
        let plan =
            self.informer.read(|view| catch_unwind(AssertUnwindSafe(|| (self.row.reconcile)(view, key, &context))));
        drop(memories);
        plan.map_err(|panic| self.panicked(key, &*panic)).ok()
    }

    /// Runs a step of a pass. A panic fails the pass, so that its key does not stay taken nor its worker end.
    async fn guard(&self, key: &Arc<ObjectKey>, step: impl Future<Output = ()>) {
        if let Err(panic) = AssertUnwindSafe(step).catch_unwind().await {
            self.panicked(key, &*panic);
        }
    }

    /// Gives back a key whose pass panicked, as one that failed: it is retried with its back-off. Nothing is remembered of
    /// it any more, as after a restart.
    fn panicked(&self, key: &Arc<ObjectKey>, panic: &(dyn Any + Send)) {
        let controller = self.row.name;
        tracing::error!(controller, %key, panic = panic_message(panic), "the decision panicked; it is retried");
        self.metrics.panicked(controller);
        if let Some(about) = self.informer.read(|view| self.subject(view, key)) {
            self.executor.recorder.record(panic_event(about, controller));
        }
        self.remember(key, None);
        self.queue.add_rate_limited(key.clone());
        self.release(key, None, None);
    }

    /// The object that a key names: of the first kind among the inputs that has it.
    fn subject(&self, view: &ObjectCache, key: &ObjectKey) -> Option<ObjectReference> {
        self.row.inputs.iter().filter_map(Input::kind).find_map(|kind| {
            let metadata = view.metadata(&kind, key)?;
            Some(ObjectReference {
                api_version: Some(kind.api_version()),
                kind: Some(kind.kind.to_string()),
                namespace: metadata.namespace.clone(),
                name: metadata.name.clone(),
                uid: metadata.uid.clone(),
                resource_version: metadata.resource_version.clone(),
                field_path: None,
            })
        })
    }

    /// Waits until the view shows what was written.
    async fn await_cache(
        self: Arc<Self>,
        key: Arc<ObjectKey>,
        wrote: Vec<PendingWrite>,
        requeue_at: Option<Timestamp>,
        result: Result<(), Failure>,
    ) {
        let shown = self.informer.shown(&wrote);
        if tokio::time::timeout(HOLD_MAX, shown).await.is_err() {
            tracing::warn!(controller = self.row.name, %key, "the view does not show what was written");
        }
        self.finish(&key, requeue_at, result);
    }

    fn finish(&self, key: &Arc<ObjectKey>, requeue_at: Option<Timestamp>, result: Result<(), Failure>) {
        match result {
            Ok(()) => self.queue.forget(key),
            Err(failure) => {
                if failure.code == 409 {
                    tracing::debug!(controller = self.row.name, %key, %failure, "trying again");
                } else {
                    tracing::info!(controller = self.row.name, %key, %failure, "trying again");
                }
                self.queue.add_rate_limited(key.clone());
            }
        }
        self.release(key, None, requeue_at);
    }

    /// Gives a key back that was worked on, to be looked at again after `wait` and at `requeue_at`.
    fn release(&self, key: &Arc<ObjectKey>, wait: Option<Duration>, requeue_at: Option<Timestamp>) {
        let until =
            |at| self.env.now().until(at).ok().and_then(|span| Duration::try_from(span).ok()).unwrap_or_default();
        for wait in wait.into_iter().chain(requeue_at.map(until)) {
            self.queue.add_after(key.clone(), wait);
        }
        self.metrics.done(self.row.name, self.queue.done(key));
    }
}

/// The event about an object whose decision panicked. It is the same at each retry, so that the recorder counts it.
fn panic_event(about: ObjectReference, controller: &str) -> EventRecord {
    let message = format!(
        "{controller} panicked while it reconciled this object and retries it with back-off; its log has the panic, the \
         metric coracle_controller_panics_total counts them"
    );
    EventRecord { about, warning: true, reason: "ReconcilePanicked", message, source: None }
}

/// What a panic says, where it is a text.
fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
