//! The shell: keeps the snapshot and the queue in step with the cluster, decides pod by pod, writes what was decided with
//! many writes in flight.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, ObjectReference, Service};
use kube::Client;
use machinery_api::ObjectKey;
use machinery_client::election::{self, Election, LeadershipLost};
use machinery_client::events::Recorder;
use machinery_client::informer::Listener;
use machinery_client::request::ApiClient;
use machinery_client::{EventRecord, Informer, Kind, Pod, Typed};
use machinery_env::Env;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bind::{Report, bind, condition, report};
use crate::decide::{Decision, decide};
use crate::metrics::{Metrics, Outcome};
use crate::node::NodeFacts;
use crate::plugins::{Event, PreBindPatch, Profile, ProfileError};
use crate::pod::PodInfo;
use crate::queue::{Queue, QueuedPodInfo};
use crate::snapshot::Snapshot;

/// Bindings and conditions being written at once: enough to hide the server's latency, few enough not to flood it.
const WRITES_MAX: usize = 64;

/// How a scheduler behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// How it decides for the pods of each `schedulerName` that is its own.
    pub profiles: Vec<Profile>,
    /// Names this process in events (`default-scheduler-HOST`).
    pub instance: String,
    /// Its figures.
    pub metrics: Metrics,
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
            instance: "default-scheduler".into(),
            metrics: Metrics::default(),
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
    informer.watch::<Pod>();
    informer.watch::<Node>();
    informer.watch::<Service>();
    informer.watch::<Namespace>();
    let marks = Arc::new(PendingChanges::default());
    let listener: Arc<Listener> = {
        let marks = marks.clone();
        Arc::new(move |_, change| marks.add(&change.kind, &change.key))
    };
    informer.listen(&listener);
    // A decision on half a cluster would be wrong. What others watch beside is no matter.
    let needed = [Kind::of::<Pod>(), Kind::of::<Node>(), Kind::of::<Service>(), Kind::of::<Namespace>()];
    tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        () = informer.until(|view| needed.iter().all(|kind| view.synced(kind))) => {}
    }
    let recorder = |name: &str| Recorder::start_series(client.clone(), env.clone(), name, &config.instance, &stop);
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
        snapshot: Snapshot::default(),
        queue: queue_sort.map_or_else(Queue::default, Queue::new),
        start: 0,
    };
    shell.work(&stop).await
}

/// What of the cluster changed and was not looked at yet: coalesced, so never more than there are objects.
#[derive(Default)]
struct PendingChanges {
    keys: Mutex<BTreeSet<(WatchedKind, Arc<ObjectKey>)>>,
    changed: Notify,
}

// In this order: a pod is placed when its node is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum WatchedKind {
    Namespace,
    Node,
    Service,
    Pod,
}

impl PendingChanges {
    fn add(&self, kind: &Kind, key: &Arc<ObjectKey>) {
        let known = [
            (Kind::of::<Namespace>(), WatchedKind::Namespace),
            (Kind::of::<Node>(), WatchedKind::Node),
            (Kind::of::<Service>(), WatchedKind::Service),
            (Kind::of::<Pod>(), WatchedKind::Pod),
        ];
        let Some((_, what)) = known.into_iter().find(|(known, _)| known == kind) else { return };
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).insert((what, key.clone()));
        self.changed.notify_one();
    }

    fn take(&self) -> BTreeSet<(WatchedKind, Arc<ObjectKey>)> {
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How a write ended.
enum Done {
    Bound(QueuedPodInfo),
    NotBound(QueuedPodInfo, String),
    Reported,
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
    snapshot: Snapshot,
    queue: Queue,
    /// Where the next decision begins in the order of nodes.
    start: usize,
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
            if let Ok(permit) = self.writes.clone().try_acquire_owned()
                && let Some(waiting) = self.queue.pop(now)
            {
                self.schedule(waiting, permit);
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

    // --- the cluster's changes -------------------------------------------------------------------------------------

    fn look<K: Typed, R>(&self, key: &ObjectKey, read: impl Fn(&K) -> R) -> Option<R> {
        let object = self.informer.read(|view| view.get_arc::<K>(key));
        object.as_deref().map(read)
    }

    fn catch_up(&mut self) {
        for (what, key) in self.marks.take() {
            match what {
                WatchedKind::Namespace => {
                    let labels = self.look(&key, |n: &Namespace| n.metadata.labels.clone().unwrap_or_default());
                    if self.snapshot.set_namespace(&key.name, labels) {
                        self.happened(|_| Event::Namespace);
                    }
                }
                WatchedKind::Node => match self.look(&key, NodeFacts::of) {
                    Some(facts) => {
                        let name = facts.name.clone();
                        if let Some(change) = self.snapshot.set_node(facts) {
                            self.happened(|snapshot| match snapshot.node(&name) {
                                Some(node) => Event::Node(node, change),
                                None => Event::NodeGone,
                            });
                        }
                    }
                    None => {
                        if self.snapshot.remove_node(&key.name) {
                            self.happened(|_| Event::NodeGone);
                        }
                    }
                },
                WatchedKind::Service => {
                    let selector = |service: &Service| service.spec.as_ref().and_then(|spec| spec.selector.clone());
                    match self.look(&key, selector).flatten() {
                        Some(selector) => self.snapshot.services.insert((*key).clone(), selector),
                        None => self.snapshot.services.remove(&key),
                    };
                }
                WatchedKind::Pod => self.pod_changed(&key),
            }
        }
    }

    /// Tells the queue, if anybody in it waits for help.
    fn happened(&mut self, event: impl for<'a> FnOnce(&'a Snapshot) -> Event<'a>) {
        if self.queue.depth().unschedulable > 0 {
            let (event, profiles) = (event(&self.snapshot), &self.config.profiles);
            self.queue.happened(self.env.elapsed(), |pod, refused_by| {
                let profile = profile_of(profiles, pod).map(|at| &profiles[at]);
                profile.is_some_and(|profile| profile.may_fit_after(&event, pod, refused_by))
            });
        }
    }

    fn pod_changed(&mut self, key: &Arc<ObjectKey>) {
        // Under the view's own key, which is there anyway.
        let Some(pod) = self.look(key, |pod| PodInfo { key: key.clone(), ..PodInfo::of(pod) }) else {
            self.queue.remove(key);
            self.leave(key);
            return;
        };
        let placed = self.snapshot.placed(key).map(|(placed, assumed)| (placed.clone(), assumed));
        let same = placed.as_ref().is_some_and(|(placed, _)| placed.uid == pod.uid);
        if let Some(node) = pod.node.clone() {
            self.queue.remove(key);
            if pod.ended {
                self.leave(key);
                return;
            }
            match placed {
                Some((placed, false)) if *placed == pod => {}
                Some((placed, _)) if same && placed.node == pod.node && placed.wants.requests == pod.wants.requests => {
                    let moved = placed.labels != pod.labels || placed.terminating != pod.terminating;
                    let pod = Arc::new(pod);
                    self.snapshot.put_pod(pod.clone(), &node, false);
                    if moved {
                        self.happened(|_| Event::PodPlaced(pod));
                    }
                }
                _ => {
                    self.leave(key);
                    let pod = Arc::new(pod);
                    self.snapshot.put_pod(pod.clone(), &node, false);
                    self.happened(|_| Event::PodPlaced(pod));
                }
            }
            return;
        }
        let profile = profile_of(&self.config.profiles, &pod).map(|at| &self.config.profiles[at]);
        let ours = profile.is_some_and(|profile| profile.admits_to_queue(&pod)) && !pod.terminating && !pod.ended;
        if !ours {
            self.queue.remove(key);
            self.leave(key);
            return;
        }
        match placed {
            // Assumed, and the view has not caught up with the binding.
            Some((_, true)) if same => {}
            placed => {
                if placed.is_some() {
                    self.leave(key);
                }
                self.queue.put(Arc::new(pod), self.env.elapsed());
            }
        }
    }

    /// A pod takes no room any more, if it did.
    fn leave(&mut self, key: &ObjectKey) {
        if let Some((pod, node)) = self.snapshot.take_pod(key) {
            self.happened(|snapshot| Event::PodGone(pod, snapshot.node(&node)));
        }
    }

    // --- decisions and their writes --------------------------------------------------------------------------------

    fn schedule(&mut self, waiting: QueuedPodInfo, permit: OwnedSemaphorePermit) {
        let Some(at) = profile_of(&self.config.profiles, &waiting.pod) else { return };
        let profile = &self.config.profiles[at];
        let begun = self.env.elapsed();
        let seed = self.env.random_u64();
        let decision = decide(&self.snapshot, &waiting.pod, profile, self.start, seed);
        let took = self.env.elapsed().saturating_sub(begun);
        match decision {
            Decision::Node { name, tried } => {
                self.config.metrics.tried(&profile.scheduler_name, Outcome::Scheduled, took);
                self.start = (self.start + tried).checked_rem(self.snapshot.node_count()).unwrap_or(0);
                let assumed = PodInfo { node: Some(name.as_str().into()), ..(*waiting.pod).clone() };
                self.snapshot.put_pod(Arc::new(assumed), &name, true);
                match reserve(&mut self.snapshot, profile, &waiting.pod, &name) {
                    Ok(first) => self.bind(waiting, at, name, first, permit),
                    Err(why) => self.not_bound(&waiting, why, Some(permit)),
                }
            }
            Decision::Nowhere { message, refused_by, nominated } => {
                self.config.metrics.tried(&profile.scheduler_name, Outcome::Unschedulable, took);
                self.queue.failed(&waiting, Some(refused_by), self.env.elapsed());
                self.tell(&waiting, "Unschedulable", message, nominated, Some(permit));
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
        self.tasks.spawn(async move {
            let pod = &waiting.pod;
            let result = match bind(&client, first, &pod.key, &pod.uid, &node).await {
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

    /// Writes the event and the condition that say why a pod has no node, and which one it may get.
    fn tell(
        &mut self,
        waiting: &QueuedPodInfo,
        reason: &'static str,
        message: String,
        nominated: Option<String>,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let pod = waiting.pod.clone();
        let Some(profile) = profile_of(&self.config.profiles, &pod) else { return };
        let about = self.reference(&pod);
        let note =
            EventRecord { about, warning: true, reason: "FailedScheduling", message: message.clone(), source: None };
        self.events[profile].record_action(note, "Scheduling");
        let now = self.env.now();
        let wanted = self.look(&pod.key, |known: &Pod| {
            let conditions = known.status.as_ref().and_then(|status| status.conditions.as_ref());
            let present = conditions.into_iter().flatten().find(|condition| condition.type_ == "PodScheduled");
            condition(present, known.metadata.generation, reason, &message, now)
        });
        let told = Report { condition: wanted.flatten(), nominated };
        if told == Report::default() {
            return;
        }
        let (client, done) = (self.client.clone(), self.done.clone());
        self.tasks.spawn(async move {
            if let Err(error) = report(&client, &pod.key, &pod.uid, told).await {
                tracing::debug!(pod = %pod.key, %error, "a condition was not written; the next try writes it");
            }
            drop(permit);
            let _ = done.send(Done::Reported).await;
        });
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Reported => {}
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
            self.tell(waiting, "SchedulerError", why, None, permit);
        }
    }
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
    for (plugin, _) in &profile.plugins {
        if let Some(reserve) = &plugin.reserve {
            let name = plugin.name;
            (reserve.reserve)(snapshot, pod, node).map_err(|why| format!("running Reserve plugin {name:?}: {why}"))?;
        }
    }
    let plugins = profile.plugins.iter().filter_map(|(plugin, _)| Some((plugin.name, plugin.pre_bind?)));
    let patches =
        plugins.flat_map(|(name, pre_bind)| pre_bind(snapshot, pod, node).into_iter().map(move |p| (name, p)));
    Ok(patches.collect())
}

/// Gives back, the last that set aside first.
fn unreserve(snapshot: &mut Snapshot, profile: &Profile, pod: &PodInfo, node: &str) {
    for reserve in profile.plugins.iter().rev().filter_map(|(plugin, _)| plugin.reserve.as_ref()) {
        (reserve.unreserve)(snapshot, pod, node);
    }
}
