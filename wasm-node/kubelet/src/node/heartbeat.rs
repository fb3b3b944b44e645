//! Registers a Node and keeps its status. The status in the API is compared with the actual one, so that foreign writes
//! (such as NotReady by the node controller) and deletions are repaired. Continues through API outages.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use machinery_api::ObjectKey;
use machinery_client::request::{ApiClient, BackOff, PatchType, status_code};
use machinery_client::{Kind, Object, Reflector, ReflectorEvent, ReflectorEvents, typed, version_of};
use machinery_env::Env;
use serde_json::json;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::lease::is_reported;
use super::pressure::{Pressures, Shortage};
use super::register::{self, Capacity, Health, Observation, labels, node, status};
use super::{NodeConfig, NodeError, NodeReady};
use crate::checkpoint::record::NodeRecord;
use crate::checkpoint::{API_WAIT, Checkpoint};
use crate::pod::addresses::Addresses;
use crate::pod::node_facts::NodeFacts;

/// The delay before a failed request is retried, and the largest one if the API refuses the request: an API that is
/// unavailable is tried each second, so that the node is Ready soon after.
const RETRY: Duration = Duration::from_secs(1);
const REFUSED_RETRY_MAX: Duration = Duration::from_secs(10);
/// The time without a pod CIDR after which a node warns, and the interval of the next warnings. A controller needs less
/// than a second.
const CIDR_LATE: Duration = Duration::from_secs(5);
const CIDR_WARNING_INTERVAL: Duration = Duration::from_mins(1);
/// The interval of machine observations (upstream's), and the minimum interval between repairs of an overwritten status.
const OBSERVE_INTERVAL: Duration = Duration::from_secs(10);
/// The timeout of an observation; the previous one stays valid, so that an unresponsive disk delays no heartbeat.
const OBSERVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The timeout of a status report (upstream's).
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Observes the machine. May block.
pub(super) type Observe = dyn Fn() -> Observation + Send + Sync;

/// The last report.
struct LastReport {
    health: Health,
    /// The Node's own part in the API after that report.
    status: Option<NodeStatus>,
    at: Duration,
}

async fn with_timeout<T>(env: Env, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    env.timeout(REPORT_TIMEOUT, request).await.unwrap_or_else(|_| {
        let late = format!("no answer within {} s", REPORT_TIMEOUT.as_secs());
        Err(kube::Error::Service(late.into()))
    })
}

pub(super) struct NodeStatusManager {
    config: NodeConfig,
    requests: ApiClient,
    env: Env,
    port: u16,
    observe: Arc<Observe>,
    /// The observation in progress.
    observing: Option<JoinHandle<Observation>>,
    /// The shortages of each observation.
    shortages: watch::Sender<Vec<Shortage>>,
    pressures: Pressures,
    networked: bool,
    health: Health,
    /// The newest known state of the Node; `None` if it doesn't exist.
    known: Option<Node>,
    /// The uid of the Node, for its Lease.
    uid: watch::Sender<Option<String>>,
    /// The Node's admission facts.
    facts: watch::Sender<NodeFacts>,
    /// The pod CIDR.
    cidr: Option<String>,
    checkpoint: Checkpoint,
    /// The pod CIDR is that of the checkpoint or of a deleted Node, and the API hasn't confirmed it.
    restored: bool,
    reported: Option<LastReport>,
    /// The earliest time of the next repair.
    repair_from: Duration,
    failures: Failures,
    events: ReflectorEvents,
}

/// The failures in a row to register or to report.
pub(super) struct Failures {
    number: u32,
    refusals: BackOff,
}

impl Failures {
    pub(super) fn new() -> Self {
        Self { number: 0, refusals: BackOff::new(RETRY, REFUSED_RETRY_MAX) }
    }

    /// Counts a failure: the wait before the next try, and whether it is logged.
    pub(super) fn add(&mut self, env: &Env, code: u16) -> (Duration, bool) {
        self.number = self.number.saturating_add(1);
        let wait = if (400..500).contains(&code) { self.refusals.next(env) } else { RETRY };
        (wait, is_reported(self.number))
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new();
    }
}

const NODE: Kind = Kind::of::<Node>();

impl NodeStatusManager {
    /// `uid` receives the uid of this agent's Node once it exists; `shortages` the result of each observation.
    pub(super) fn new(
        config: &NodeConfig,
        client: kube::Client,
        env: &Env,
        port: u16,
        observe: Arc<Observe>,
        uid: watch::Sender<Option<String>>,
        shortages: watch::Sender<Vec<Shortage>>,
    ) -> Self {
        let reflector = Reflector::of::<Node>(client.clone(), env.clone());
        let events = reflector.selecting(format!("metadata.name={}", config.name)).events();
        Self {
            config: config.clone(),
            requests: client.clone().into(),
            env: env.clone(),
            port,
            observe,
            observing: None,
            shortages,
            pressures: Pressures::default(),
            networked: false,
            health: Health::default(),
            known: None,
            uid,
            facts: watch::Sender::new(register::facts(config)),
            cidr: None,
            checkpoint: Checkpoint::default(),
            restored: false,
            reported: None,
            repair_from: Duration::ZERO,
            failures: Failures::new(),
            events,
        }
    }

    fn key(&self) -> ObjectKey {
        ObjectKey::new("", self.config.name.clone())
    }

    /// The Node's admission facts.
    pub(super) fn facts(&self) -> watch::Receiver<NodeFacts> {
        self.facts.subscribe()
    }

    fn set_known(&mut self, node: Option<Node>) {
        if let Some(facts) = node.as_ref().map(NodeFacts::of) {
            self.facts.send_if_modified(|known| {
                let new = *known != facts;
                *known = facts;
                new
            });
        }
        let uid = node.as_ref().and_then(|node| node.metadata.uid.clone());
        if uid.is_some() {
            self.uid.send_if_modified(|known| {
                let new = *known != uid;
                *known = uid;
                new
            });
        }
        self.known = node;
        self.record();
    }

    /// Records the Node in this checkpoint.
    pub(super) fn set_checkpoint(&mut self, checkpoint: Checkpoint) {
        self.checkpoint = checkpoint;
    }

    fn record(&self) {
        let uid = self.known.as_ref().and_then(|node| node.metadata.uid.as_deref());
        if let (Some(uid), Some(cidr)) = (uid, self.cidr.clone().or_else(|| self.assigned_cidr())) {
            let NodeFacts { name, labels, taints } = self.facts.borrow().clone();
            let (uid, origin) = (uid.to_owned(), uid.to_owned());
            self.checkpoint.set_node(NodeRecord { name, uid, origin, pod_cidr: cidr, labels, taints });
        }
    }

    /// Handles a watch event, which may be older than the response to an own request.
    fn handle_event(&mut self, event: ReflectorEvent) {
        let version = |node: Option<&Node>| node.map_or(0, |node| version_of(&node.metadata));
        let node = |object: &Arc<dyn Object>| typed::<Node>(&**object).cloned();
        match event {
            // A Node that was created after the list was read is registered again, which has no effect.
            ReflectorEvent::Replaced(objects, _) if objects.is_empty() => self.set_known(None),
            ReflectorEvent::Replaced(objects, _) => {
                objects.into_iter().for_each(|object| self.handle_event(ReflectorEvent::Applied(object)));
            }
            ReflectorEvent::Applied(object) => {
                if let Some(node) = node(&object).filter(|node| version(Some(node)) >= version(self.known.as_ref())) {
                    self.set_known(Some(node));
                }
            }
            ReflectorEvent::Deleted(object) => {
                if self.known.as_ref().is_some_and(|known| known.metadata.uid == object.metadata().uid) {
                    self.set_known(None);
                }
            }
            ReflectorEvent::Progress(_) => {}
            ReflectorEvent::Interrupted(error) => {
                tracing::debug!(node = self.config.name, error, "the node cannot be watched, trying again");
            }
        }
    }

    /// Creates the Node with its labels, or updates the labels; a recreated Node keeps its pod CIDR, unless the API refuses
    /// it.
    async fn try_register(&mut self) -> Result<(), kube::Error> {
        let wanted = node(&self.config, self.cidr.as_deref());
        let mut created: Result<Node, _> = self.requests.create(&NODE, "", &wanted).await;
        if let (Err(error), Some(cidr)) = (&created, &self.cidr)
            && status_code(error) == 403
        {
            tracing::warn!(node = self.config.name, cidr, %error, "the node's range of pod addresses is refused: it gets another one");
            let without = node(&self.config, None);
            created = self.requests.create(&NODE, "", &without).await;
            self.restored = true;
        }
        let node = match created {
            Err(error) if status_code(&error) == 409 => {
                let patch = json!({"metadata": {"labels": labels(&self.config), "annotations": register::annotations(&self.config)}});
                self.requests.patch(&NODE, &self.key(), None, PatchType::Merge, &patch).await?
            }
            created => created?,
        };
        self.set_known(Some(node));
        self.reported = None;
        Ok(())
    }

    fn assigned_cidr(&self) -> Option<String> {
        let spec = self.known.as_ref().and_then(|node| node.spec.as_ref());
        let assigned = spec.and_then(|spec| spec.pod_cidr.clone()).filter(|cidr| !cidr.is_empty());
        assigned.or_else(|| self.config.pod_cidr.clone())
    }

    /// Registers the Node, and returns its pod CIDR. If the API doesn't answer in time, the Node is that of the
    /// checkpoint, and the second value is false.
    pub(super) async fn register_or_restore(&mut self) -> (String, bool) {
        self.observe().await;
        let usable = |node: &NodeRecord| Addresses::new(&node.pod_cidr).is_ok();
        let Some(node) = self.checkpoint.node().filter(usable) else { return (self.register().await, true) };
        let env = self.env.clone();
        match env.timeout(API_WAIT, self.register()).await {
            Ok(cidr) => (cidr, true),
            // The API has answered.
            Err(_) if self.known.is_some() => (self.register().await, true),
            Err(_) => (self.restore(&node), false),
        }
    }

    /// Continues as the Node of the checkpoint. Returns its pod CIDR.
    fn restore(&mut self, node: &NodeRecord) -> String {
        tracing::warn!(
            node = self.config.name,
            "the API server does not answer: the node runs the pods of its checkpoint"
        );
        let NodeRecord { name, labels, taints, .. } = node.clone();
        self.facts.send_replace(NodeFacts { name, labels, taints });
        // The Lease is renewed as soon as the API answers.
        self.uid.send_replace(Some(node.uid.clone()));
        (self.cidr, self.restored) = (Some(node.pod_cidr.clone()), true);
        node.pod_cidr.clone()
    }

    /// Registers the Node, and waits for its pod CIDR.
    async fn register(&mut self) -> String {
        let mut warn_at = self.env.elapsed() + CIDR_LATE;
        loop {
            let mut wait = RETRY;
            if self.known.is_none() {
                match with_timeout(self.env.clone(), self.try_register()).await {
                    Ok(()) => self.failures.reset(),
                    Err(error) => {
                        let (pause, is_logged) = self.failures.add(&self.env, status_code(&error));
                        wait = pause;
                        if is_logged {
                            tracing::warn!(node = self.config.name, %error, "the node cannot be registered yet, trying again");
                        }
                    }
                }
            }
            if let Some(cidr) = self.known.is_some().then(|| self.assigned_cidr()).flatten() {
                self.cidr = Some(cidr.clone());
                self.record();
                return cidr;
            }
            if self.known.is_some() && self.env.elapsed() >= warn_at {
                warn_at = self.env.elapsed() + CIDR_WARNING_INTERVAL;
                tracing::warn!(
                    node = self.config.name,
                    "the node has no range for its pods (spec.podCIDR) and cannot start: either the cluster has no free range \
                     left, so that it has as many nodes as --cluster-cidr and --node-cidr-mask-size allow, or no controller \
                     manager assigns ranges",
                );
            }
            if self.known.is_some()
                && let Err(error) = self.sync().await
            {
                tracing::debug!(node = self.config.name, %error, "the status cannot be reported, trying again");
            }
            tokio::select! {
                event = self.events.next() => self.handle_event(event),
                () = self.env.sleep(wait) => {}
            }
        }
    }

    /// Marks the network as ready: pods can run from now on.
    pub(super) fn set_network_ready(&mut self, capacity: Capacity) {
        self.config.capacity = capacity;
        self.networked = true;
    }

    /// Keeps the status until `stop`.
    ///
    /// # Errors
    /// [`NodeError::CidrChanged`]
    pub(super) async fn run(
        self,
        ready: oneshot::Sender<NodeReady>,
        kubelet: SocketAddr,
        stop: CancellationToken,
    ) -> Result<(), NodeError> {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            failed = self.keep_status(ready, kubelet) => Err(failed),
        }
    }

    /// The Node's pod CIDR, if the one of the checkpoint is used and differs.
    fn other_cidr(&self) -> Option<String> {
        let spec = self.known.as_ref().filter(|_| self.restored).and_then(|node| node.spec.as_ref());
        let assigned = spec.and_then(|spec| spec.pod_cidr.clone()).filter(|cidr| !cidr.is_empty());
        assigned.filter(|assigned| self.cidr.as_ref() != Some(assigned))
    }

    /// Ends the use of a pod CIDR that isn't the Node's.
    fn confirm_cidr(&mut self) -> Result<(), NodeError> {
        let Some(assigned) = self.other_cidr() else { return Ok(()) };
        let used = self.cidr.clone().unwrap_or_default();
        // The next start uses the new one, also without an API server.
        self.cidr = Some(assigned.clone());
        self.record();
        Err(NodeError::CidrChanged { name: self.config.name.clone(), used, assigned })
    }

    /// Returns only if the node can't go on.
    async fn keep_status(mut self, ready: oneshot::Sender<NodeReady>, kubelet: SocketAddr) -> NodeError {
        let mut ready = Some(ready);
        let (shutdown, mut shutting_down) = (self.config.shutdown.clone(), false);
        let (mut observe_at, mut retry_at) = (Duration::ZERO, Duration::ZERO);
        loop {
            if self.env.elapsed() >= observe_at {
                self.observe().await;
                observe_at = self.env.elapsed() + OBSERVE_INTERVAL;
            }
            if self.env.elapsed() >= retry_at {
                match self.sync().await {
                    Ok(()) => {
                        self.failures.reset();
                        if let Err(changed) = self.confirm_cidr() {
                            return changed;
                        }
                        if self.has_network()
                            && let Some(ready) = ready.take()
                        {
                            // The receiver may be gone.
                            let _ = ready.send(NodeReady { kubelet });
                        }
                    }
                    Err(error) => {
                        let (wait, is_logged) = self.failures.add(&self.env, status_code(&error));
                        if is_logged {
                            tracing::warn!(node = self.config.name, %error, "the status cannot be reported, trying again");
                        }
                        retry_at = self.env.elapsed() + wait;
                    }
                }
            }
            let now = self.env.elapsed();
            let wakes = [Some(observe_at), Some(retry_at), Some(self.repair_from).filter(|_| self.is_overwritten())];
            let next = wakes.into_iter().flatten().filter(|at| *at > now).min().unwrap_or(observe_at);
            tokio::select! {
                event = self.events.next() => self.handle_event(event),
                () = shutdown.started(), if !shutting_down => shutting_down = true,
                () = self.env.sleep(next.saturating_sub(now)) => {}
            }
        }
    }

    /// Registers and reports, if that is due.
    async fn sync(&mut self) -> Result<(), kube::Error> {
        if self.known.is_none() {
            with_timeout(self.env.clone(), self.try_register()).await?;
        }
        if self.other_cidr().is_some() || !self.is_report_due() {
            return Ok(());
        }
        let reported = with_timeout(self.env.clone(), self.report()).await;
        if reported.as_ref().is_err_and(|error| status_code(error) == 404) {
            self.set_known(None);
        }
        reported
    }

    async fn observe(&mut self) {
        let observing = self.observing.get_or_insert_with(|| {
            let observe = self.observe.clone();
            tokio::task::spawn_blocking(move || observe())
        });
        match self.env.timeout(OBSERVE_TIMEOUT, observing).await {
            Ok(observed) => {
                self.observing = None;
                match observed {
                    Ok(Observation { images, shortages }) => {
                        let now = self.env.elapsed();
                        self.pressures.observe(&shortages, now);
                        self.health = Health {
                            networked: self.networked,
                            shutting_down: self.config.shutdown.has_begun(),
                            pressures: self.pressures.active(now),
                            images,
                        };
                        self.shortages.send_replace(shortages);
                    }
                    Err(error) => tracing::error!(%error, "the observation of the machine failed"),
                }
            }
            Err(_) => tracing::warn!(
                node = self.config.name,
                folder = %self.config.data_dir.display(),
                "the disk of the node's folder does not respond: the node's status is unchanged",
            ),
        }
    }

    /// Whether the API's status differs from the last accepted one.
    fn is_overwritten(&self) -> bool {
        let reported = self.reported.as_ref();
        reported.is_some_and(|reported| register::own(self.known.as_ref()) != reported.status)
    }

    /// Whether pods can run, as far as the API has not refused their addresses.
    fn has_network(&self) -> bool {
        self.networked && !(self.restored && self.assigned_cidr().is_none())
    }

    fn health_now(&self) -> Health {
        let shutting_down = self.config.shutdown.has_begun();
        Health { networked: self.has_network(), shutting_down, ..self.health.clone() }
    }

    fn is_report_due(&self) -> bool {
        let Some(reported) = &self.reported else { return true };
        let now = self.env.elapsed();
        self.health_now() != reported.health
            || now.saturating_sub(reported.at) >= self.config.status_interval
            || (self.is_overwritten() && now >= self.repair_from)
    }

    async fn report(&mut self) -> Result<(), kube::Error> {
        let (now, repairs) = (self.env.elapsed(), self.is_overwritten());
        let health = self.health_now();
        let patch = status(&self.config, self.port, &health, self.known.as_ref(), self.env.now());
        let (key, how) = (self.key(), PatchType::Strategic);
        let node: Node = self.requests.patch(&NODE, &key, Some("status"), how, &patch).await?;
        self.reported = Some(LastReport { health, status: register::own(Some(&node)), at: now });
        if repairs {
            // With a short lease, a late node becomes Ready again soon.
            self.repair_from = now + OBSERVE_INTERVAL.min(self.config.lease_duration / 2);
        }
        self.set_known(Some(node));
        Ok(())
    }
}
