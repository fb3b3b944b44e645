//! The shell: keeps snapshot and queue up to date with the cluster, and performs the actions of each pod's
//! [`SchedulingCycle`] with many writes in flight. The results of the operations are the events of the cycles, and come
//! back through one channel.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kube::Client;
use machinery_api::ObjectKey;
use machinery_client::Informer;
use machinery_client::election::{self, Election, LeadershipLost, Term};
use machinery_client::events::Recorder;
use machinery_client::informer::Listener;
use machinery_client::request::ApiClient;
use machinery_env::Env;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::configuration::Configuration;
use crate::cycle::{Action, CycleContext, Event, SchedulingCycle};
use crate::extender::ExtenderConfig;
use crate::extender::client::Extender;
use crate::metrics::Metrics;
use crate::plugins::{Profile, ProfileError};
use crate::pod::PodInfo;
use crate::queue::{BackOff, Queue};
use crate::snapshot::Snapshot;
use crate::wasm::PluginHost;

mod calls;
mod changes;
mod operations;
mod victims;

use calls::CallQueue;
use changes::PendingChanges;

/// The in-flight limit of writes: enough to hide the server's latency, few enough not to flood it.
const WRITES_MAX: usize = 64;

/// The message of a pod's event and condition after a panic in an operation of its cycle.
const OPERATION_PANICKED: &str = "the scheduler panicked in an operation for this pod; its log has the panic";

/// The configuration of a scheduler.
#[derive(Debug, Clone)]
pub struct Config {
    /// One profile per `schedulerName`.
    pub profiles: Vec<Profile>,
    /// The back-off of a pod after a failure.
    pub back_off: BackOff,
    /// The host name, as part of the reporting instance of events (`default-scheduler-HOST`).
    pub host: String,
    /// The extenders, in order.
    pub extenders: Vec<ExtenderConfig>,
    pub metrics: Metrics,
    /// Runs WebAssembly plugins; none: profiles can't have any.
    pub plugins: Option<Arc<dyn PluginHost>>,
    /// None: act at once, as the only replica.
    pub election: Option<Election>,
}

impl Config {
    /// The configuration of a file on the machine `host`, with the plugins of the process.
    #[must_use]
    pub fn of(configuration: Configuration, plugins: Option<Arc<dyn PluginHost>>, host: String) -> Self {
        let Configuration { profiles, back_off, extenders, of_process: _ } = configuration;
        Self { profiles, back_off, extenders, plugins, host, ..Self::default() }
    }

    /// With upstream's Lease and timing; `identity` must be unique per replica.
    #[must_use]
    pub fn elected(self, identity: &str) -> Self {
        let election = Election::new(ObjectKey::new("kube-system", "kube-scheduler"), identity);
        Self { election: Some(election), ..self }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            profiles: vec![Profile::default()],
            back_off: BackOff::default(),
            host: "localhost".into(),
            extenders: Vec::new(),
            metrics: Metrics::default(),
            plugins: None,
            election: None,
        }
    }
}

/// The error that ended a scheduler.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A profile is invalid.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// An extender's configuration is invalid.
    #[error("{0}")]
    Extender(String),
    /// A profile has WebAssembly plugins, and there is no host for them.
    #[error("profile {0:?} has plugins that are WebAssembly components, which can't be run here")]
    Plugins(String),
    /// A part of the scheduler ended.
    #[error("the scheduler lost {0}")]
    Lost(&'static str),
    /// Another replica may act now.
    #[error(transparent)]
    Election(#[from] LeadershipLost),
}

/// Schedules until `stop`, with its own informer.
pub async fn run(client: Client, env: Env, config: Config, stop: CancellationToken) -> Result<(), RunError> {
    let informer = Informer::new(client.clone(), env.clone(), &stop);
    run_on(&informer, client, env, config, stop).await
}

/// Schedules until `stop`, with a shared informer. With an election: only while it leads.
pub fn run_on(
    informer: &Arc<Informer>,
    client: Client,
    env: Env,
    config: Config,
    stop: CancellationToken,
) -> BoxFuture<'_, Result<(), RunError>> {
    // Boxed, so that the scheduler is compiled here and not again in the program's crate.
    Box::pin(run_elected(informer, client, env, config, stop))
}

async fn run_elected(
    informer: &Arc<Informer>,
    client: Client,
    env: Env,
    config: Config,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let Some(election) = config.election.clone() else { return act(informer, client, env, config, stop).await };
    let mut result = Ok(());
    let lead = |term: Term| {
        let work = act(informer, term.client(&client), env.clone(), config, term.ended);
        let result = &mut result;
        async move { *result = work.await }
    };
    // Bindings in flight are tasks of the work and are aborted with it.
    election::run(client.clone(), env.clone(), election, stop, lead).await?;
    result
}

async fn act(
    informer: &Arc<Informer>,
    client: Client,
    env: Env,
    config: Config,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let queue_sort = Profile::queue_sort(&config.profiles)?.queue_sort;
    let back_off = config.back_off;
    let mut extenders = Vec::with_capacity(config.extenders.len());
    for extender in config.extenders.clone() {
        extenders.push(Extender::new(extender, env.clone()).await.map_err(RunError::Extender)?);
    }
    let calls = CallQueue::new(extenders, &config, &env)?;
    calls.preload();
    changes::WATCHED.iter().for_each(|row| (row.watch)(informer));
    let pending_changes = Arc::new(PendingChanges::default());
    let listener: Arc<Listener> = {
        let pending_changes = pending_changes.clone();
        Arc::new(move |_, change| pending_changes.add(&change.kind, &change.key))
    };
    informer.listen(&listener);
    // A decision on a partial snapshot would be wrong. Kinds that only others watch don't matter.
    let needed = changes::WATCHED.map(|row| (row.kind)());
    tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        () = informer.until(|view| needed.iter().all(|kind| view.synced(kind))) => {}
    }
    let recorder = |name: &str| {
        let instance = format!("{name}-{}", config.host);
        Recorder::start_series(client.clone(), env.clone(), name, &instance, &stop)
    };
    let events = config.profiles.iter().map(|profile| recorder(&profile.scheduler_name)).collect();
    let (sender, completions) = mpsc::channel(WRITES_MAX);
    let shell = Scheduler {
        informer: informer.clone(),
        client: client.into(),
        env,
        config,
        events,
        pending_changes,
        sender,
        completions,
        writes: Arc::new(Semaphore::new(WRITES_MAX)),
        tasks: JoinSet::new(),
        calls,
        snapshot: Snapshot::default(),
        queue: queue_sort.map_or_else(Queue::default, Queue::new).with_back_off(back_off),
        next_start: 0,
        departures: 0,
        actions: Vec::new(),
    };
    shell.run_loop(&stop).await
}

struct Scheduler {
    informer: Arc<Informer>,
    client: ApiClient,
    env: Env,
    config: Config,
    /// By profile: events name the pod's scheduler.
    events: Vec<Recorder>,
    pending_changes: Arc<PendingChanges>,
    /// Operations send their cycle and its next event here.
    sender: mpsc::Sender<(SchedulingCycle, Event)>,
    completions: mpsc::Receiver<(SchedulingCycle, Event)>,
    /// The write permits.
    writes: Arc<Semaphore>,
    /// The operations in flight; they end with the scheduler.
    tasks: JoinSet<()>,
    calls: CallQueue,
    snapshot: Snapshot,
    queue: Queue,
    /// The first node of the next decision in the snapshot's order.
    next_start: usize,
    /// The number of events that freed resources: a pod left or a node changed.
    departures: u64,
    /// The buffer for the actions of a step.
    actions: Vec<Action>,
}

/// The result of one action.
enum Performed {
    /// The action is complete.
    Done(SchedulingCycle),
    /// The operation is complete, with its result.
    Completed(SchedulingCycle, Event),
    /// The operation is in flight, and owns the cycle.
    InFlight,
}

impl Scheduler {
    async fn run_loop(mut self, stop: &CancellationToken) -> Result<(), RunError> {
        loop {
            while let Ok((cycle, event)) = self.completions.try_recv() {
                self.advance(cycle, event, None);
            }
            while self.tasks.try_join_next().is_some() {}
            self.apply_changes();
            let now = self.env.elapsed();
            self.start_calls();
            if let Ok(permit) = self.writes.clone().try_acquire_owned()
                && let Some(cycle) = self.next_cycle(now)
            {
                self.advance(cycle, Event::WritePermit, Some(permit));
                // Other tasks of this thread run between decisions.
                tokio::task::yield_now().await;
                if stop.is_cancelled() {
                    return Ok(());
                }
                continue;
            }
            self.config.metrics.waiting(self.queue.depth());
            // Without a free write permit, a pod that becomes active has to wait anyway.
            let free = self.writes.available_permits() > 0;
            let wait = self.queue.next_at().filter(|_| free).map(|at| at.saturating_sub(now));
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = self.pending_changes.changed.notified() => {}
                completion = self.completions.recv() => {
                    let (cycle, event) = completion.ok_or(RunError::Lost("its writers"))?;
                    self.advance(cycle, event, None);
                }
                () = self.env.sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => {}
            }
        }
    }

    /// The next cycle for a write permit. Cycles with the results of their calls come before the queue.
    fn next_cycle(&mut self, now: Duration) -> Option<SchedulingCycle> {
        if let Some(cycle) = self.calls.replied.pop_front() {
            return Some(cycle);
        }
        loop {
            let queued = self.queue.pop(now)?;
            if let Some(profile) = profile_of(&self.config.profiles, &queued.pod) {
                return Some(SchedulingCycle::new(queued, profile));
            }
        }
    }

    /// Applies an event to a cycle and performs the actions, until an operation is in flight or the cycle ends. The
    /// operation takes the permit; without an operation, the permit is free again.
    fn advance(&mut self, cycle: SchedulingCycle, event: Event, mut permit: Option<OwnedSemaphorePermit>) {
        let mut actions = std::mem::take(&mut self.actions);
        let mut completion = Some((cycle, event));
        while let Some((cycle, event)) = completion.take() {
            let mut cycle = cycle.step(event, self.context(), &mut actions);
            for action in actions.drain(..) {
                match self.perform(action, cycle, &mut permit) {
                    Performed::Done(same) => cycle = same,
                    Performed::Completed(cycle, event) => {
                        completion = Some((cycle, event));
                        break;
                    }
                    Performed::InFlight => break,
                }
            }
        }
        self.actions = actions;
    }

    fn context(&self) -> CycleContext<'_> {
        CycleContext {
            profiles: &self.config.profiles,
            extenders: &self.config.extenders,
            snapshot: &self.snapshot,
            queue: &self.queue,
            next_start: self.next_start,
            departures: self.departures,
        }
    }

    fn perform(
        &mut self,
        action: Action,
        cycle: SchedulingCycle,
        permit: &mut Option<OwnedSemaphorePermit>,
    ) -> Performed {
        match action {
            Action::ObserveAttempt { outcome, took } => {
                self.config.metrics.tried(&self.config.profiles[cycle.profile].scheduler_name, outcome, took);
            }
            Action::ObserveBound => {
                let took = self.env.elapsed().saturating_sub(cycle.queued.since);
                self.config.metrics.bound(cycle.queued.attempts, took);
            }
            Action::ObservePreemption { victims } => self.config.metrics.preempted(victims),
            Action::RecordPluginFailures(failed) => self.record_plugin_failures(&cycle, &failed),
            Action::ClearNomination => drop(self.snapshot.nominated.clear(&cycle.queued.pod.key)),
            Action::Nominate { node, displaced } => self.nominate(&cycle, &node, &displaced),
            Action::Forget { node } => self.forget(&cycle, &node),
            Action::Requeue(refused_by) => self.queue.failed(&cycle.queued, refused_by, self.env.elapsed()),
            Action::Activate => self.queue.activate(&cycle.queued.pod.key, self.env.elapsed()),
            Action::WaitForCallPermit => {
                self.calls.enqueue(cycle);
                return Performed::InFlight;
            }
            Action::WaitForWritePermit => {
                self.calls.replied.push_back(cycle);
                return Performed::InFlight;
            }
            Action::CallExtenders { start } => return self.call_extenders(cycle, start, permit.take()),
            Action::SelectVictims { candidates } => return self.select_victims(cycle, candidates),
            Action::Decide { start, verdicts } => {
                let event = self.decide(&cycle, start, verdicts.as_ref());
                return Performed::Completed(cycle, event);
            }
            Action::Assume { node, next_start } => {
                self.next_start = next_start;
                let event = self.assume(&cycle, &node);
                return Performed::Completed(cycle, event);
            }
            Action::Bind { node, patches } => return self.bind(cycle, node, patches, permit.take()),
            Action::Report(failure) => return self.report_failure(cycle, failure, permit.take()),
            Action::Preempt(preemption) => return self.preempt(cycle, preemption, permit.take()),
        }
        Performed::Done(cycle)
    }

    /// Starts the operation of a cycle. Its event comes back through the channel; a panic is the failure of this cycle
    /// alone.
    fn spawn(&mut self, cycle: SchedulingCycle, operation: impl Future<Output = Event> + Send + 'static) -> Performed {
        let sender = self.sender.clone();
        self.tasks.spawn(async move {
            let event = AssertUnwindSafe(operation).catch_unwind().await;
            let event = event.unwrap_or_else(|_| Event::Failed(OPERATION_PANICKED.to_owned()));
            let _ = sender.send((cycle, event)).await;
        });
        Performed::InFlight
    }
}

/// The index of the profile for a pod.
fn profile_of(profiles: &[Profile], pod: &PodInfo) -> Option<usize> {
    profiles.iter().position(|profile| profile.scheduler_name == pod.requirements.scheduler)
}
