//! The controller driver: maps changes to keys, keys to plans, and performs the plans. All controllers share it.
//!
//! Each controller is a row: its inputs, a mapping from a change to work queue keys, and a pure function from cache and
//! key to plan. The function receives the key only, never the change: a lost hint, a restart and a second replica are
//! one code path. After a pass with writes, the key is held back until the cache shows them, so that no controller
//! needs expectation counters.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
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
use crate::effect::ReconcilerState;
use crate::events::Recorder;
use crate::executor::Executor;
use crate::informer::{Informer, Listener};
use crate::metrics::Metrics;
use crate::object::{Decode, Kind, Typed, decode};
use crate::pass::{Pass, ReconcilerCache};
use crate::pending::PendingWrite;
use crate::plan::{EventRecord, Failure, Plan};
use crate::progress::ProgressLimiter;
use crate::queue::{BackOff, WorkQueue};
use machinery_api::ObjectKey;
use machinery_env::Env;

/// Interval at which every key is requeued, as repair of missed changes (client-go's resync).
const FULL_PASS_INTERVAL: Duration = Duration::from_secs(600);
/// Objects per read lock of the cache in a full pass: some milliseconds.
const FULL_PASS_CHUNK: usize = 1000;
/// How long a key is held back at most for the cache to catch up (upstream's expectations time out after as long).
const HOLD_MAX: Duration = Duration::from_secs(300);
/// Passes of one controller that run effects at once: more would only queue at the server.
const EFFECT_PASSES_MAX: usize = 32;
/// Rounds of effects in one pass.
const EFFECT_ROUNDS_MAX: usize = 24;

/// Inputs of a decision beside the cache.
#[derive(Debug)]
pub struct Context<'a, S> {
    /// The time.
    pub now: Timestamp,
    /// The monotonic time, on the scale of [`ObjectCache::seen_at`].
    pub elapsed: Duration,
    /// The controllers' settings.
    pub settings: &'a S,
    /// Effects of this pass and their results.
    pub pass: &'a Pass,
    /// The controller's cached state, by key.
    pub reconciler_cache: &'a ReconcilerCache,
}

/// Maps a change to the keys to enqueue.
pub type Keys = fn(&ObjectCache, &Change) -> Vec<ObjectKey>;

/// One kind of objects that a controller watches.
#[derive(Debug, Clone, Copy)]
pub struct Input {
    /// `None` for an input of every kind.
    held: Option<TypedInput>,
    watch: fn(&Arc<Informer>, Option<Duration>),
    /// Poll interval of a kind that can't be watched.
    every: Option<Duration>,
    keys: Keys,
}

/// A kind whose whole objects are cached.
#[derive(Debug, Clone, Copy)]
struct TypedInput {
    kind: fn() -> Kind,
    decode: Decode,
}

impl Input {
    /// Objects of one type.
    #[must_use]
    pub const fn of<K: Typed>(keys: Keys) -> Self {
        let held = Some(TypedInput { kind: Kind::of::<K>, decode: |_, text| decode::<K>(text) });
        let watch = |informer: &Arc<Informer>, every: Option<Duration>| match every {
            Some(every) => informer.poll::<K>(every),
            None => informer.watch::<K>(),
        };
        Self { held, watch, every: None, keys }
    }

    /// Objects of one type that can be listed but not watched, such as metrics: polled at an interval. Controllers
    /// start before the first list; [`ObjectCache::replaced_at`] has the age.
    #[must_use]
    pub const fn polled<K: Typed>(every: Duration, keys: Keys) -> Self {
        Self { every: Some(every), ..Self::of::<K>(keys) }
    }

    /// The metadata of all objects that can have owners or be orphaned: see [`Informer::watch_everything`].
    #[must_use]
    pub const fn everything(keys: Keys) -> Self {
        Self { held: None, watch: |informer, _| informer.watch_everything(), every: None, keys }
    }

    /// The kind; `None` for an input of every kind.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        self.held.map(|held| (held.kind)())
    }

    /// The kind with the decoder of its objects.
    #[must_use]
    pub fn held(&self) -> Option<(Kind, Decode)> {
        self.held.map(|held| ((held.kind)(), held.decode))
    }

    /// The keys to enqueue for a change; none if the change is of another kind.
    #[must_use]
    pub fn keys(&self, view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
        match self.held {
            Some(held) if (held.kind)() != change.kind => Vec::new(),
            _ => (self.keys)(view, change),
        }
    }
}

/// The key of the changed object itself, for a controller's own kind.
#[must_use]
pub fn own_key(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    vec![(*change.key).clone()]
}

/// A controller: one row of a table.
#[derive(Debug)]
pub struct Controller<S: 'static> {
    /// Upstream's name; also the source of its events.
    pub name: &'static str,
    /// The service account in `kube-system` that the controller acts as. Upstream's default roles are bound to it.
    pub account: &'static str,
    /// Number of workers: keys reconciled at once.
    pub workers: usize,
    /// Back-off of a failed key.
    pub back_off: BackOff,
    /// The watched kinds.
    pub inputs: &'static [Input],
    /// The decision: a pure function.
    pub reconcile: fn(&ObjectCache, &ObjectKey, &Context<'_, S>) -> Plan,
}

/// Returns the client that acts as a service account of `kube-system`.
pub type Clients = Arc<dyn Fn(&'static str) -> Client + Send + Sync>;

/// Dependencies of the driver.
pub struct DriverDeps<S> {
    /// Returns the client that acts as a service account of `kube-system`.
    pub clients: Clients,
    /// The informer; its inputs are watched from the driver's start on.
    pub informer: Arc<Informer>,
    /// Clock and randomness.
    pub env: Env,
    /// Metrics of all controllers.
    pub metrics: Metrics,
    /// The controllers' settings.
    pub settings: Arc<S>,
    /// Number of workers by controller name, where it differs from the controller's own.
    pub workers: BTreeMap<&'static str, usize>,
}

impl<S> std::fmt::Debug for DriverDeps<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DriverDeps").finish_non_exhaustive()
    }
}

/// One running controller.
struct ControllerRunner<S: 'static> {
    row: &'static Controller<S>,
    queue: Arc<WorkQueue>,
    executor: Executor,
    informer: Arc<Informer>,
    env: Env,
    metrics: Metrics,
    settings: Arc<S>,
    reconciler_cache: RwLock<ReconcilerCache>,
    /// Delays writes that only report progress.
    progress_limiter: Mutex<ProgressLimiter>,
    /// Permits of passes that run effects.
    effect_permits: Arc<Semaphore>,
    stop: CancellationToken,
}

/// The controllers' inputs by kind: a change reaches those of its kind alone.
struct Dispatcher<S: 'static> {
    by_kind: HashMap<Kind, Vec<Mapping<S>>>,
    of_every_kind: Vec<Mapping<S>>,
}

/// An input of a running controller.
type Mapping<S> = (Arc<ControllerRunner<S>>, Keys);

impl<S: Send + Sync + 'static> Dispatcher<S> {
    fn of(all: &[Arc<ControllerRunner<S>>]) -> Self {
        let (mut by_kind, mut of_every_kind) = (HashMap::<Kind, Vec<Mapping<S>>>::new(), Vec::new());
        for (running, input) in
            all.iter().flat_map(|running| running.row.inputs.iter().map(move |input| (running, input)))
        {
            let mappings = match input.kind() {
                Some(kind) => by_kind.entry(kind).or_default(),
                None => &mut of_every_kind,
            };
            mappings.push((running.clone(), input.keys));
        }
        Self { by_kind, of_every_kind }
    }

    fn on_change(&self, view: &ObjectCache, change: &Change) {
        for (running, keys) in self.by_kind.get(&change.kind).into_iter().flatten().chain(&self.of_every_kind) {
            running.on_change(*keys, view, change);
        }
    }
}

/// Runs controllers until `stop`.
pub async fn run<S: Send + Sync + 'static>(
    controllers: impl IntoIterator<Item = &'static Controller<S>>,
    parts: DriverDeps<S>,
    stop: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    let all: Vec<Arc<ControllerRunner<S>>> =
        controllers.into_iter().map(|row| ControllerRunner::new(row, &parts, &stop)).collect();
    // Typed inputs first: a kind that is cached whole needs no second watch of its metadata.
    let inputs = || all.iter().flat_map(|r| r.row.inputs);
    inputs().filter(|i| i.held.is_some()).for_each(|input| (input.watch)(&parts.informer, input.every));
    inputs().filter(|i| i.held.is_none()).for_each(|input| (input.watch)(&parts.informer, input.every));
    tokio::select! {
        biased;
        () = stop.cancelled() => return,
        () = parts.informer.synced() => {}
    }
    let dispatcher = Arc::new(Dispatcher::of(&all));
    let dispatching = dispatcher.clone();
    let listener: Arc<Listener> =
        Arc::new(move |view: &ObjectCache, change: &Change| dispatching.on_change(view, change));
    parts.informer.listen(&listener);
    for running in &all {
        let workers = parts.workers.get(running.row.name).copied().unwrap_or(running.row.workers);
        for _ in 0..workers.max(1) {
            tasks.spawn(running.clone().work_until(stop.clone()));
        }
    }
    let full_passes = async {
        loop {
            parts.env.sleep(FULL_PASS_INTERVAL).await;
            for kind in parts.informer.read(|view| view.kinds().cloned().collect::<Vec<_>>()) {
                requeue_all(&parts.informer, &kind, |view, change| dispatcher.on_change(view, change)).await;
            }
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = full_passes => {}
    }
    drop(listener);
    // Plans in progress are cancelled at an await between two requests: every plan may be repeated.
    while tasks.join_next().await.is_some() {}
}

/// Requeues all objects of a kind in chunks; the cache's lock is released between two of them.
async fn requeue_all(informer: &Informer, kind: &Kind, look: impl Fn(&ObjectCache, &Change)) {
    let mut after: Option<Arc<ObjectKey>> = None;
    loop {
        let last = informer.read(|view| {
            let changes = view.changes_after(kind, after.as_deref(), FULL_PASS_CHUNK);
            changes.iter().for_each(|change| look(view, change));
            changes.last().map(|change| change.key.clone()).filter(|_| changes.len() == FULL_PASS_CHUNK)
        });
        let Some(last) = last else { return };
        after = Some(last);
        tokio::task::yield_now().await;
    }
}

impl<S: Send + Sync + 'static> ControllerRunner<S> {
    fn new(row: &'static Controller<S>, parts: &DriverDeps<S>, stop: &CancellationToken) -> Arc<Self> {
        let client = (parts.clients)(row.account);
        let recorder = Recorder::start(client.clone(), parts.env.clone(), row.name, stop);
        let queue = Arc::new(WorkQueue::new(parts.env.clone(), row.back_off));
        parts.metrics.watch(row.name, &queue);
        Arc::new(Self {
            row,
            queue,
            executor: Executor { api: client.into(), recorder, env: parts.env.clone() },
            informer: parts.informer.clone(),
            env: parts.env.clone(),
            metrics: parts.metrics.clone(),
            settings: parts.settings.clone(),
            reconciler_cache: RwLock::default(),
            progress_limiter: Mutex::default(),
            effect_permits: Arc::new(Semaphore::new(EFFECT_PASSES_MAX)),
            stop: stop.clone(),
        })
    }

    fn on_change(&self, keys: Keys, view: &ObjectCache, change: &Change) {
        // The caller serves all controllers: a panic must not end it. The next full pass maps the object again.
        match catch_unwind(AssertUnwindSafe(|| keys(view, change))) {
            Ok(keys) => keys.into_iter().for_each(|key| {
                self.queue.add(key);
            }),
            Err(panic) => {
                self.metrics.count_panic(self.row.name);
                let panic = panic_message(&*panic);
                tracing::error!(controller = self.row.name, key = %change.key, panic, "mapping a change to keys panicked");
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
            let next = self.queue.next().await;
            self.metrics.record_queue_time(self.row.name, next.waited);
            let key = next.key;
            let now = self.env.now();
            let Some(plan) = self.decide(&key, now, &Pass::default()) else { continue };
            if plan.effects.is_empty() {
                self.catch_panic(&key, self.perform(key.clone(), plan)).await;
                continue;
            }
            // A slow server must not hold up a worker.
            let Ok(permit) = self.effect_permits.clone().acquire_owned().await else { return };
            let running = self.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let stop = running.stop.clone();
                let effects = running.clone().run_effects(key.clone(), now, plan);
                stop.run_until_cancelled(running.catch_panic(&key, effects)).await;
            });
        }
    }

    /// Runs effects and repeats the decision until it needs no more; then performs the plan. One pass has one time.
    async fn run_effects(self: Arc<Self>, key: Arc<ObjectKey>, now: Timestamp, mut plan: Plan) {
        let mut pass = Pass::default();
        for _ in 0..EFFECT_ROUNDS_MAX {
            if plan.effects.is_empty() {
                break;
            }
            pass.scratch = plan.state.take();
            for (effect, result) in self.executor.run_effects(plan.effects).await {
                pass.record(effect, result);
            }
            let Some(next) = self.decide(&key, now, &pass) else { return };
            plan = next;
        }
        if !plan.effects.is_empty() {
            tracing::error!(controller = self.row.name, %key, "the decision requests effects without end");
            plan = Plan::nothing();
            plan.requeue_after(now, FULL_PASS_INTERVAL);
        }
        self.perform(key, plan).await;
    }

    async fn perform(self: &Arc<Self>, key: Arc<ObjectKey>, plan: Plan) {
        self.cache_state(&key, plan.state);
        let requeue_at = plan.requeue_at;
        let may_wait = plan.may_wait && !plan.actions.is_empty();
        let wait = self.progress_limiter.lock().unwrap_or_else(PoisonError::into_inner).wait(
            &key,
            may_wait,
            self.env.elapsed(),
        );
        if let Some(wait) = wait {
            self.release(&key, Some(wait), requeue_at);
            return;
        }
        if !plan.actions.is_empty() {
            tracing::debug!(controller = self.row.name, %key, actions = ?plan.actions, "performing");
        }
        let (wrote, result) = self.executor.perform(plan.actions).await;
        let seen = |view: &ObjectCache| wrote.iter().all(|w| w.is_visible(view));
        if self.informer.read(seen) {
            self.finish(&key, requeue_at, result);
        } else {
            let (running, waiting) = (self.clone(), self.clone().await_cache(key.clone(), wrote, requeue_at, result));
            tokio::spawn(async move { running.catch_panic(&key, waiting).await });
        }
    }

    fn cache_state(&self, key: &ObjectKey, state: Option<ReconcilerState>) {
        let known = self.reconciler_cache.read().unwrap_or_else(PoisonError::into_inner);
        // Most controllers cache nothing.
        if state.is_none() && known.lacks(key) {
            return;
        }
        drop(known);
        self.reconciler_cache.write().unwrap_or_else(PoisonError::into_inner).set(key, state);
    }

    /// Makes the decision; `None` if it panicked and its key was requeued.
    fn decide(&self, key: &Arc<ObjectKey>, now: Timestamp, pass: &Pass) -> Option<Plan> {
        let reconciler_cache = self.reconciler_cache.read().unwrap_or_else(PoisonError::into_inner);
        let elapsed = self.env.elapsed();
        let context = Context { now, elapsed, settings: &*self.settings, pass, reconciler_cache: &reconciler_cache };
        // A panic in one decision must not end the others.
        let plan =
            self.informer.read(|view| catch_unwind(AssertUnwindSafe(|| (self.row.reconcile)(view, key, &context))));
        drop(reconciler_cache);
        plan.map_err(|panic| self.requeue_after_panic(key, &*panic)).ok()
    }

    /// Runs a step of a pass. A panic fails the pass: its key is requeued and the worker lives on.
    async fn catch_panic(&self, key: &Arc<ObjectKey>, step: impl Future<Output = ()>) {
        if let Err(panic) = AssertUnwindSafe(step).catch_unwind().await {
            self.requeue_after_panic(key, &*panic);
        }
    }

    /// Requeues a key whose pass panicked with its back-off, as after a failure. Its cached state is dropped, as after
    /// a restart.
    fn requeue_after_panic(&self, key: &Arc<ObjectKey>, panic: &(dyn Any + Send)) {
        let controller = self.row.name;
        tracing::error!(controller, %key, panic = panic_message(panic), "the decision panicked; it is retried");
        self.metrics.count_panic(controller);
        if let Some(about) = self.informer.read(|view| self.regarding_object(view, key)) {
            self.executor.recorder.record(panic_event(about, controller));
        }
        self.cache_state(key, None);
        self.queue.add_rate_limited(key.clone());
        self.release(key, None, None);
    }

    /// A reference to the key's object, of the first input kind that has it.
    fn regarding_object(&self, view: &ObjectCache, key: &ObjectKey) -> Option<ObjectReference> {
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

    /// Waits until the cache shows the writes.
    async fn await_cache(
        self: Arc<Self>,
        key: Arc<ObjectKey>,
        wrote: Vec<PendingWrite>,
        requeue_at: Option<Timestamp>,
        result: Result<(), Failure>,
    ) {
        let shown = self.informer.await_writes(&wrote);
        if self.env.timeout(HOLD_MAX, shown).await.is_err() {
            tracing::warn!(controller = self.row.name, %key, "the cache does not show the writes of a plan");
        }
        self.finish(&key, requeue_at, result);
    }

    fn finish(&self, key: &Arc<ObjectKey>, requeue_at: Option<Timestamp>, result: Result<(), Failure>) {
        match result {
            Ok(()) => self.queue.forget(key),
            Err(failure) => {
                if failure.code == 409 {
                    tracing::debug!(controller = self.row.name, %key, %failure, "retrying");
                } else {
                    tracing::info!(controller = self.row.name, %key, %failure, "retrying");
                }
                self.queue.add_rate_limited(key.clone());
            }
        }
        self.release(key, None, requeue_at);
    }

    /// Marks a key as done and requeues it after `wait` and at `requeue_at`.
    fn release(&self, key: &Arc<ObjectKey>, wait: Option<Duration>, requeue_at: Option<Timestamp>) {
        let until =
            |at| self.env.now().until(at).ok().and_then(|span| Duration::try_from(span).ok()).unwrap_or_default();
        for wait in wait.into_iter().chain(requeue_at.map(until)) {
            self.queue.add_after(key.clone(), wait);
        }
        self.metrics.record_work_time(self.row.name, self.queue.done(key));
    }
}

/// The event about an object whose decision panicked. The text is constant, so that the recorder aggregates retries.
fn panic_event(about: ObjectReference, controller: &str) -> EventRecord {
    let message = format!(
        "{controller} panicked while it reconciled this object and retries it with back-off; its log has the panic, the \
         metric coracle_controller_panics_total counts them"
    );
    EventRecord { about, warning: true, reason: "ReconcilePanicked", message, source: None }
}

/// A panic's message, if its payload is text.
fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
