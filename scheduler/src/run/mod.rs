//! The shell: keeps snapshot and queue up to date with the cluster, decides pod by pod, and writes the decisions with
//! many writes in flight.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use machinery_api::ObjectKey;
use machinery_client::election::{self, Election, LeadershipLost};
use machinery_client::events::Recorder;
use machinery_client::informer::Listener;
use machinery_client::request::ApiClient;
use machinery_client::{EventRecord, Informer, Pod};
use machinery_env::Env;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bind::{Report, bind, condition, pre_bind, report, until_bound};
use crate::decide::{Decision, Nomination, decide_with};
use crate::extender::client::Extender;
use crate::extender::{ExtenderConfig, Verdicts};
use crate::metrics::{Metrics, Outcome};
use crate::plugins::{Point, PreBindPatch, Profile, ProfileError};
use crate::pod::PodInfo;
use crate::queue::{BackOff, Queue, QueuedPodInfo};
use crate::snapshot::Snapshot;
use crate::wasm::PluginHost;

mod changes;
mod extenders;
mod preempting;
mod settle;

use changes::PendingChanges;
use extenders::{ExtenderQueue, ExtenderReply};
use preempting::{PendingPreemption, UnschedulablePod};

/// The in-flight limit of writes: enough to hide the server's latency, few enough not to flood it.
const WRITES_MAX: usize = 64;

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
    let lead = |leading| {
        let work = act(informer, client.clone(), env.clone(), config, leading);
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
    let extender_queue = ExtenderQueue::new(extenders, &config, &env)?;
    extender_queue.warm();
    changes::WATCHED.into_iter().for_each(|(_, _, watch)| watch(informer));
    let pending_changes = Arc::new(PendingChanges::default());
    let listener: Arc<Listener> = {
        let pending_changes = pending_changes.clone();
        Arc::new(move |_, change| pending_changes.add(&change.kind, &change.key))
    };
    informer.listen(&listener);
    // A decision on a partial snapshot would be wrong. Kinds that only others watch don't matter.
    let needed = changes::WATCHED.map(|(kind, ..)| kind());
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
    let (done, results) = mpsc::channel(WRITES_MAX);
    let shell = Scheduler {
        informer: informer.clone(),
        client: client.into(),
        env,
        config,
        events,
        pending_changes,
        done,
        results,
        writes: Arc::new(Semaphore::new(WRITES_MAX)),
        tasks: JoinSet::new(),
        extender_queue,
        snapshot: Snapshot::default(),
        queue: queue_sort.map_or_else(Queue::default, Queue::new).with_back_off(back_off),
        start: 0,
        departures: 0,
    };
    shell.run_loop(&stop).await
}

/// The message of a pod's event and condition after a panic in its decision.
const DECISION_PANICKED: &str = "the scheduler panicked while it decided on this pod; its log has the panic";

/// The same after a panic in its binding.
const BINDING_PANICKED: &str = "the scheduler panicked while it bound this pod; its log has the panic";

/// The result of a task.
enum TaskResult {
    Bound(QueuedPodInfo),
    BindingFailed(QueuedPodInfo, String),
    Reported,
    /// The answers of extenders and WebAssembly plugins, or the error.
    Reply(Box<ExtenderReply>),
    /// The victims of a preemption were deleted, or the first error.
    Preempted(Box<PendingPreemption>, Result<(), String>),
}

struct Scheduler {
    informer: Arc<Informer>,
    client: ApiClient,
    env: Env,
    config: Config,
    /// By profile: events name the pod's scheduler.
    events: Vec<Recorder>,
    pending_changes: Arc<PendingChanges>,
    done: mpsc::Sender<TaskResult>,
    results: mpsc::Receiver<TaskResult>,
    writes: Arc<Semaphore>,
    /// The tasks in flight; they end with the scheduler.
    tasks: JoinSet<()>,
    extender_queue: ExtenderQueue,
    snapshot: Snapshot,
    queue: Queue,
    /// The first node of the next decision in the snapshot's order.
    start: usize,
    /// The number of events that freed resources: a pod left or a node changed.
    departures: u64,
}

impl Scheduler {
    async fn run_loop(mut self, stop: &CancellationToken) -> Result<(), RunError> {
        loop {
            while let Ok(done) = self.results.try_recv() {
                self.handle_result(done);
            }
            while self.tasks.try_join_next().is_some() {}
            self.apply_changes();
            let now = self.env.elapsed();
            self.send_next();
            if let Ok(permit) = self.writes.clone().try_acquire_owned()
                && let Some(next) = self.next_decision(now)
            {
                match next {
                    NextDecision::Queued(waiting) => self.schedule(waiting, permit),
                    NextDecision::Reply(reply) => self.continue_decision(*reply, permit),
                }
                // Other tasks of this thread run between decisions.
                tokio::task::yield_now().await;
                if stop.is_cancelled() {
                    return Ok(());
                }
                continue;
            }
            self.config.metrics.waiting(self.queue.depth());
            // Without a free write slot, a pod that becomes active has to wait anyway.
            let free = self.writes.available_permits() > 0;
            let wait = self.queue.next_at().filter(|_| free).map(|at| at.saturating_sub(now));
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = self.pending_changes.changed.notified() => {}
                done = self.results.recv() => self.handle_result(done.ok_or(RunError::Lost("its writers"))?),
                () = self.env.sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => {}
            }
        }
    }

    // --- decisions and their writes --------------------------------------------------------------------------------

    /// Decisions with complete answers come before the queue.
    fn next_decision(&mut self, now: Duration) -> Option<NextDecision> {
        let reply = self.extender_queue.replies.pop_front().map(NextDecision::Reply);
        reply.or_else(|| self.queue.pop(now).map(NextDecision::Queued))
    }

    fn schedule(&mut self, waiting: QueuedPodInfo, permit: OwnedSemaphorePermit) {
        let Some(profile) = profile_of(&self.config.profiles, &waiting.pod) else { return };
        if self.extender_queue.applies_to(profile, &waiting.pod) {
            // The pod waits for the answers without a write slot.
            self.extender_queue.enqueue(profile, waiting);
            return;
        }
        self.decide(waiting, self.start, None, permit);
    }

    fn decide(
        &mut self,
        waiting: QueuedPodInfo,
        start: usize,
        verdicts: Option<&Verdicts>,
        permit: OwnedSemaphorePermit,
    ) {
        let Some(at) = profile_of(&self.config.profiles, &waiting.pod) else { return };
        let profile = &self.config.profiles[at];
        let begun = self.env.elapsed();
        let seed = self.env.random_u64();
        // A bug that one pod triggers must not end the scheduler: the pod is retried after its back-off.
        let decided = AssertUnwindSafe(|| decide_with(&self.snapshot, &waiting.pod, profile, start, seed, verdicts));
        let Ok(decision) = catch_unwind(decided) else {
            tracing::error!(pod = %waiting.pod.key, "the decision panicked; it is retried");
            return self.undo_binding(&waiting, DECISION_PANICKED.to_owned(), Some(permit));
        };
        let took = self.env.elapsed().saturating_sub(begun);
        match decision {
            Decision::Node { name, tried } => {
                self.snapshot.nominated.clear(&waiting.pod.key);
                self.config.metrics.tried(&profile.scheduler_name, Outcome::Scheduled, took);
                self.start = (start + tried).checked_rem(self.snapshot.node_count()).unwrap_or(0);
                let assumed = PodInfo { node: Some(name.as_str().into()), ..(*waiting.pod).clone() };
                self.snapshot.put_pod(Arc::new(assumed), &name, true);
                match reserve(&mut self.snapshot, profile, &waiting.pod, &name) {
                    Ok(first) => self.bind(waiting, at, name, first, permit),
                    Err(why) => self.undo_binding(&waiting, why, Some(permit)),
                }
            }
            Decision::Unschedulable { message, refused_by, nomination, victims, candidates } => {
                self.config.metrics.tried(&profile.scheduler_name, Outcome::Unschedulable, took);
                let unschedulable = UnschedulablePod { waiting, message, refused_by, nomination, victims };
                if self.extender_queue.applies_to_preemption(at, &unschedulable, &candidates) {
                    self.send_preemption_requests(at, unschedulable, candidates);
                } else {
                    self.mark_unschedulable(unschedulable, permit);
                }
            }
        }
    }

    /// Writes the `PreBind` patches, and the binding.
    fn bind(
        &mut self,
        waiting: QueuedPodInfo,
        profile: usize,
        node: String,
        first: Vec<(&'static str, PreBindPatch)>,
        permit: OwnedSemaphorePermit,
    ) {
        let (client, done) = (self.client.clone(), self.done.clone());
        let events = self.events[profile].clone();
        let about = self.reference(&waiting.pod);
        let binder = self.extender_queue.binder(&waiting.pod);
        let (informer, env) = (self.informer.clone(), self.env.clone());
        self.tasks.spawn(async move {
            let (pod, mut permit) = (&waiting.pod, Some(permit));
            let written = async {
                pre_bind(&client, first).await?;
                if pod.claims.is_some() {
                    // Provisioning takes time, and other pods are bound meanwhile.
                    permit = None;
                    until_bound(&env, &informer, pod, &node).await?;
                }
                match extenders::bind_with_extender(binder, pod, &node).await {
                    Some(bound) => bound,
                    None => bind(&client, &pod.key, &pod.uid, &node).await,
                }
            };
            let written = AssertUnwindSafe(written).catch_unwind().await;
            let result = match written.unwrap_or_else(|_| Err(BINDING_PANICKED.to_owned())) {
                Ok(()) => {
                    let note = format!("Successfully assigned {} to {node}", pod.key);
                    let note = EventRecord { about, warning: false, reason: "Scheduled", message: note, source: None };
                    events.record_action(note, "Binding");
                    TaskResult::Bound(waiting)
                }
                Err(why) => TaskResult::BindingFailed(waiting, why),
            };
            drop(permit);
            let _ = done.send(result).await;
        });
    }

    /// An object reference for events, with the newest known resource version.
    fn reference(&self, pod: &PodInfo) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(pod.key.namespace.clone()),
            name: Some(pod.key.name.clone()),
            uid: Some(pod.uid.to_string()),
            resource_version: self
                .read_object(&pod.key, |known: &Pod| known.metadata.resource_version.clone())
                .flatten(),
            field_path: None,
        }
    }

    /// Records the `FailedScheduling` event of a pod, and returns the status to write.
    fn record_failure(&self, pod: &PodInfo, event: SchedulingEvent) -> Option<Report> {
        let SchedulingEvent { reason, message, nomination } = event;
        let profile = profile_of(&self.config.profiles, pod)?;
        let about = self.reference(pod);
        let note =
            EventRecord { about, warning: true, reason: "FailedScheduling", message: message.clone(), source: None };
        self.events[profile].record_action(note, "Scheduling");
        let now = self.env.now();
        let report = self.read_object(&pod.key, |known: &Pod| {
            let status = known.status.as_ref();
            let conditions = status.and_then(|status| status.conditions.as_ref());
            let present =
                conditions.into_iter().flat_map(|all| all.iter()).find(|condition| condition.type_ == "PodScheduled");
            let condition = condition(present, known.metadata.generation, reason, &message, now);
            let is = status.and_then(|status| status.nominated_node_name.as_deref()).unwrap_or_default();
            let nominated = match &nomination {
                Nomination::Keep => None,
                Nomination::Clear => Some(String::new()),
                Nomination::Node(name) => Some(name.clone()),
            };
            Report { condition, nominated: nominated.filter(|name| name != is) }
        });
        report.filter(|report| *report != Report::default())
    }

    /// Writes the event and the status of an unscheduled pod, with its nomination.
    fn report_failure(
        &mut self,
        waiting: &QueuedPodInfo,
        event: SchedulingEvent,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let pod = waiting.pod.clone();
        let Some(written) = self.record_failure(&pod, event) else { return };
        let (client, done) = (self.client.clone(), self.done.clone());
        self.tasks.spawn(async move {
            if let Err(error) = report(&client, &pod.key, &pod.uid, written).await {
                tracing::debug!(pod = %pod.key, %error, "a condition was not written; the next try writes it");
            }
            drop(permit);
            let _ = done.send(TaskResult::Reported).await;
        });
    }

    fn handle_result(&mut self, done: TaskResult) {
        match done {
            TaskResult::Reported => {}
            TaskResult::Reply(reply) => self.extender_queue.replies.push_back(reply),
            TaskResult::Preempted(preempted, result) => self.finish_preemption(*preempted, result),
            TaskResult::Bound(waiting) => {
                let took = self.env.elapsed().saturating_sub(waiting.since);
                self.config.metrics.bound(waiting.attempts, took);
            }
            TaskResult::BindingFailed(waiting, why) => self.undo_binding(&waiting, why, None),
        }
    }

    /// A binding failed: undoes reservations, removes the assumed pod, and requeues it.
    fn undo_binding(&mut self, waiting: &QueuedPodInfo, why: String, permit: Option<OwnedSemaphorePermit>) {
        let key = &waiting.pod.key;
        let placed = self.snapshot.placed(key).filter(|(pod, assumed)| *assumed && pod.uid == waiting.pod.uid);
        let node = placed.and_then(|(pod, _)| pod.node.clone());
        if let Some(at) = profile_of(&self.config.profiles, &waiting.pod) {
            let profile = &self.config.profiles[at];
            self.config.metrics.tried(&profile.scheduler_name, Outcome::Error, Duration::ZERO);
            if let Some(node) = &node {
                unreserve(&mut self.snapshot, profile, &waiting.pod, node);
            }
        }
        if node.is_some() {
            self.remove_placed(key);
        }
        self.queue.failed(waiting, None, self.env.elapsed());
        tracing::info!(pod = %key, %why, "a binding failed");
        if self.queue.get(key).is_some() {
            let event = SchedulingEvent { reason: "SchedulerError", message: why, nomination: Nomination::Clear };
            self.report_failure(waiting, event, permit);
        }
    }
}

/// The next decision.
enum NextDecision {
    Queued(QueuedPodInfo),
    Reply(Box<ExtenderReply>),
}

/// The event and condition of a pod that was not scheduled.
struct SchedulingEvent {
    reason: &'static str,
    message: String,
    nomination: Nomination,
}

/// The index of the profile for a pod.
fn profile_of(profiles: &[Profile], pod: &PodInfo) -> Option<usize> {
    profiles.iter().position(|profile| profile.scheduler_name == pod.requirements.scheduler)
}

/// Runs the `Reserve` plugins, and returns the `PreBind` patches, each with its plugin's name; or the reason why a
/// reservation failed.
fn reserve(
    snapshot: &mut Snapshot,
    profile: &Profile,
    pod: &PodInfo,
    node: &str,
) -> Result<Vec<(&'static str, PreBindPatch)>, String> {
    for (plugin, _) in profile.at(Point::Reserve) {
        if let Some(reserve) = &plugin.reserve {
            let name = plugin.name;
            (reserve.reserve)(snapshot, pod, node).map_err(|why| format!("running Reserve plugin {name:?}: {why}"))?;
        }
    }
    let plugins = profile.at(Point::PreBind).filter_map(|(plugin, _)| Some((plugin.name, plugin.pre_bind?)));
    let patches =
        plugins.flat_map(|(name, pre_bind)| pre_bind(snapshot, pod, node).into_iter().map(move |p| (name, p)));
    Ok(patches.collect())
}

/// Undoes the reservations, in reverse order.
fn unreserve(snapshot: &mut Snapshot, profile: &Profile, pod: &PodInfo, node: &str) {
    let reserves: Vec<_> = profile.at(Point::Reserve).filter_map(|(plugin, _)| plugin.reserve.as_ref()).collect();
    for reserve in reserves.into_iter().rev() {
        (reserve.unreserve)(snapshot, pod, node);
    }
}
