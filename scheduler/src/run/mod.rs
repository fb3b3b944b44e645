//! The shell: keeps the snapshot and the queue in step with the cluster, decides pod by pod, writes what was decided with
//! many writes in flight.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
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
mod elsewhere;
mod preempting;
mod settle;

use changes::PendingChanges;
use elsewhere::{Answered, Asking};
use preempting::{Nowhere, Preempted};

/// Bindings and conditions being written at once: enough to hide the server's latency, few enough not to flood it.
const WRITES_MAX: usize = 64;

/// How a scheduler behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// How it decides for the pods of each `schedulerName` that is its own.
    pub profiles: Vec<Profile>,
    /// How long a pod waits after a failure.
    pub back_off: BackOff,
    /// Where it runs, as events say it (`default-scheduler-HOST`).
    pub host: String,
    /// Who else is asked, in order.
    pub extenders: Vec<ExtenderConfig>,
    /// Its figures.
    pub metrics: Metrics,
    /// Runs plugins that are WebAssembly components; none: profiles can't have such.
    pub plugins: Option<Arc<dyn PluginHost>>,
    /// None: act at once, as the only replica.
    pub election: Option<Election>,
}

impl Config {
    /// The same with upstream's Lease and timing; `identity` must be unique per replica.
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

/// Why a scheduler ended, other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It can't start so.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// One of those that are asked can't be.
    #[error("{0}")]
    Extender(String),
    /// Plugins are WebAssembly components, and nobody is there to run them.
    #[error("profile {0:?} has plugins that are WebAssembly components, which can't be run here")]
    Plugins(String),
    /// A part of it is gone.
    #[error("the scheduler lost {0}")]
    Lost(&'static str),
    /// Another replica may act by now.
    #[error(transparent)]
    Election(#[from] LeadershipLost),
}

/// Schedules until `stop`, with a view of its own.
pub async fn run(client: Client, env: Env, config: Config, stop: CancellationToken) -> Result<(), RunError> {
    let informer = Informer::new(client.clone(), env.clone(), &stop);
    run_on(&informer, client, env, config, stop).await
}

/// Schedules until `stop`, with a view that others share. With an election: while it leads.
pub async fn run_on(
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
    // Bindings under way are tasks of the work and are aborted with it.
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
        extenders.push(Extender::new(extender).await.map_err(RunError::Extender)?);
    }
    let asking = Asking::new(extenders, &config, &env)?;
    asking.warm();
    changes::WATCHED.into_iter().for_each(|(_, _, watch)| watch(informer));
    let marks = Arc::new(PendingChanges::default());
    let listener: Arc<Listener> = {
        let marks = marks.clone();
        Arc::new(move |_, change| marks.add(&change.kind, &change.key))
    };
    informer.listen(&listener);
    // A decision on half a cluster would be wrong. What others watch beside is no matter.
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
        marks,
        done,
        results,
        writes: Arc::new(Semaphore::new(WRITES_MAX)),
        tasks: JoinSet::new(),
        asking,
        snapshot: Snapshot::default(),
        queue: queue_sort.map_or_else(Queue::default, Queue::new).backing_off(back_off),
        start: 0,
        departures: 0,
    };
    shell.work(&stop).await
}

/// What a pod's event and condition say where its decision panicked.
const DECISION_PANICKED: &str = "the scheduler panicked while it decided on this pod; its log has the panic";

/// The same of its binding.
const BINDING_PANICKED: &str = "the scheduler panicked while it bound this pod; its log has the panic";

/// How a write ended.
enum Done {
    Bound(QueuedPodInfo),
    NotBound(QueuedPodInfo, String),
    Reported,
    /// Those that were asked have answered, or why a pod can't be asked about.
    Answered(Box<Answered>),
    /// Those that go for a pod were told to, or why not all were.
    Preempted(Box<Preempted>, Result<(), String>),
}

struct Scheduler {
    informer: Arc<Informer>,
    client: ApiClient,
    env: Env,
    config: Config,
    /// By profile: events name the scheduler that pods asked for.
    events: Vec<Recorder>,
    marks: Arc<PendingChanges>,
    done: mpsc::Sender<Done>,
    results: mpsc::Receiver<Done>,
    writes: Arc<Semaphore>,
    /// The writes under way; they end with the scheduler.
    tasks: JoinSet<()>,
    asking: Asking,
    snapshot: Snapshot,
    queue: Queue,
    /// Where the next decision begins in the order of nodes.
    start: usize,
    /// How often room was made: a pod left or a node came.
    departures: u64,
}

impl Scheduler {
    async fn work(mut self, stop: &CancellationToken) -> Result<(), RunError> {
        loop {
            while let Ok(done) = self.results.try_recv() {
                self.finish(done);
            }
            while self.tasks.try_join_next().is_some() {}
            self.catch_up();
            let now = self.env.elapsed();
            self.ask_next();
            if let Ok(permit) = self.writes.clone().try_acquire_owned()
                && let Some(next) = self.next(now)
            {
                match next {
                    Next::New(waiting) => self.schedule(waiting, permit),
                    Next::Answered(answered) => self.answered(*answered, permit),
                }
                // Others of this thread get their turn between decisions.
                tokio::task::yield_now().await;
                if stop.is_cancelled() {
                    return Ok(());
                }
                continue;
            }
            self.config.metrics.waiting(self.queue.depth());
            // With no write free, what becomes active has to wait for one anyway.
            let free = self.writes.available_permits() > 0;
            let wait = self.queue.next_at().filter(|_| free).map(|at| at.saturating_sub(now));
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = self.marks.changed.notified() => {}
                done = self.results.recv() => self.finish(done.ok_or(RunError::Lost("its writers"))?),
                () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => {}
            }
        }
    }

    // --- decisions and their writes --------------------------------------------------------------------------------

    /// Those about which others have answered go before the rest.
    fn next(&mut self, now: Duration) -> Option<Next> {
        let answered = self.asking.answered.pop_front().map(Next::Answered);
        answered.or_else(|| self.queue.pop(now).map(Next::New))
    }

    fn schedule(&mut self, waiting: QueuedPodInfo, permit: OwnedSemaphorePermit) {
        let Some(profile) = profile_of(&self.config.profiles, &waiting.pod) else { return };
        if self.asking.concerns(profile, &waiting.pod) {
            // It waits for others' answers without a place that writes need.
            self.asking.wait(profile, waiting);
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
        // A bug that one pod meets must not end the scheduler: the pod is tried again with its back-off.
        let decided = AssertUnwindSafe(|| decide_with(&self.snapshot, &waiting.pod, profile, start, seed, verdicts));
        let Ok(decision) = catch_unwind(decided) else {
            tracing::error!(pod = %waiting.pod.key, "the decision panicked; it is retried");
            return self.not_bound(&waiting, DECISION_PANICKED.to_owned(), Some(permit));
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
                    Err(why) => self.not_bound(&waiting, why, Some(permit)),
                }
            }
            Decision::Nowhere { message, refused_by, nomination, victims, candidates } => {
                self.config.metrics.tried(&profile.scheduler_name, Outcome::Unschedulable, took);
                let nowhere = Nowhere { waiting, message, refused_by, nomination, victims };
                if self.asking.concerns_preemption(at, &nowhere, &candidates) {
                    self.ask_about_victims(at, nowhere, candidates);
                } else {
                    self.goes_nowhere(nowhere, permit);
                }
            }
        }
    }

    /// Writes what comes before the binding, and the binding.
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
        let binder = self.asking.binder(&waiting.pod);
        let informer = self.informer.clone();
        self.tasks.spawn(async move {
            let (pod, mut permit) = (&waiting.pod, Some(permit));
            let written = async {
                pre_bind(&client, first).await?;
                if pod.claims.is_some() {
                    // Volumes take their time to be made, and others are bound meanwhile.
                    permit = None;
                    until_bound(&informer, pod, &node).await?;
                }
                match elsewhere::bind(binder, pod, &node).await {
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
                    Done::Bound(waiting)
                }
                Err(why) => Done::NotBound(waiting, why),
            };
            drop(permit);
            let _ = done.send(result).await;
        });
    }

    /// A pod as events refer to it, with the newest version that is known.
    fn reference(&self, pod: &PodInfo) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(pod.key.namespace.clone()),
            name: Some(pod.key.name.clone()),
            uid: Some(pod.uid.to_string()),
            resource_version: self.look(&pod.key, |known: &Pod| known.metadata.resource_version.clone()).flatten(),
            field_path: None,
        }
    }

    /// Records the event that says why a pod has no node, and returns what is to be written into its status.
    fn report_of(&self, pod: &PodInfo, told: Told) -> Option<Report> {
        let Told { reason, message, nomination } = told;
        let profile = profile_of(&self.config.profiles, pod)?;
        let about = self.reference(pod);
        let note =
            EventRecord { about, warning: true, reason: "FailedScheduling", message: message.clone(), source: None };
        self.events[profile].record_action(note, "Scheduling");
        let now = self.env.now();
        let report = self.look(&pod.key, |known: &Pod| {
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

    /// Writes the event and the status that say why a pod has no node, and which one it may get.
    fn tell(&mut self, waiting: &QueuedPodInfo, told: Told, permit: Option<OwnedSemaphorePermit>) {
        let pod = waiting.pod.clone();
        let Some(written) = self.report_of(&pod, told) else { return };
        let (client, done) = (self.client.clone(), self.done.clone());
        self.tasks.spawn(async move {
            if let Err(error) = report(&client, &pod.key, &pod.uid, written).await {
                tracing::debug!(pod = %pod.key, %error, "a condition was not written; the next try writes it");
            }
            drop(permit);
            let _ = done.send(Done::Reported).await;
        });
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Reported => {}
            Done::Answered(answered) => self.asking.answered.push_back(answered),
            Done::Preempted(preempted, result) => self.has_preempted(*preempted, result),
            Done::Bound(waiting) => {
                let took = self.env.elapsed().saturating_sub(waiting.since);
                self.config.metrics.bound(waiting.attempts, took);
            }
            Done::NotBound(waiting, why) => self.not_bound(&waiting, why, None),
        }
    }

    /// A pod that was given a node doesn't come there: it gives back what it took, and is tried again later.
    fn not_bound(&mut self, waiting: &QueuedPodInfo, why: String, permit: Option<OwnedSemaphorePermit>) {
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
            self.leave(key);
        }
        self.queue.failed(waiting, None, self.env.elapsed());
        tracing::info!(pod = %key, %why, "a binding failed");
        if self.queue.get(key).is_some() {
            let told = Told { reason: "SchedulerError", message: why, nomination: Nomination::Clear };
            self.tell(waiting, told, permit);
        }
    }
}

/// What is decided next.
enum Next {
    New(QueuedPodInfo),
    Answered(Box<Answered>),
}

/// What is said of a pod that has no node.
struct Told {
    reason: &'static str,
    message: String,
    nomination: Nomination,
}

/// The number of the profile that decides for a pod.
fn profile_of(profiles: &[Profile], pod: &PodInfo) -> Option<usize> {
    profiles.iter().position(|profile| profile.scheduler_name == pod.wants.scheduler)
}

/// Sets aside what the plugins want for the pod, and returns what they have written before the binding, each with its
/// plugin's name; or says why it can't be.
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

/// Gives back, the last that set aside first.
fn unreserve(snapshot: &mut Snapshot, profile: &Profile, pod: &PodInfo, node: &str) {
    let reserves: Vec<_> = profile.at(Point::Reserve).filter_map(|(plugin, _)| plugin.reserve.as_ref()).collect();
    for reserve in reserves.into_iter().rev() {
        (reserve.unreserve)(snapshot, pod, node);
    }
}
