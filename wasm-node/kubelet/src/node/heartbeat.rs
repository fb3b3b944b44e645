//! Registers a Node and keeps its status: what the API shows of the Node is compared with what holds, so that whatever
//! others write into it (that the node is silent, that it is gone) is mended. Goes on through outages of the API.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use machinery_api::ObjectKey;
use machinery_client::request::{ApiClient, PatchType, status_code};
use machinery_client::{Kind, Object, Reflector, ReflectorEvent, ReflectorEvents, typed, version_of};
use machinery_env::Env;
use serde_json::json;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::pressure::{Pressures, Shortage};
use super::register::{self, Capacity, Health, Observation, labels, node, status};
use super::{NodeConfig, NodeReady};
use crate::pod::node_facts::NodeFacts;

/// Before a failed request is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the machine is observed (upstream's), and how often at most a status is mended that others write over.
const OBSERVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long that may take before the node goes on with what it knew: a disk that doesn't answer holds up no heartbeat.
const OBSERVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a report may take (upstream's).
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Observes the machine. May block.
pub(super) type Observe = dyn Fn() -> Observation + Send + Sync;

/// What was reported last.
struct Reported {
    health: Health,
    /// What the API then showed of it.
    shown: Option<NodeStatus>,
    at: Duration,
}

async fn in_time<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    tokio::time::timeout(REPORT_TIMEOUT, request).await.unwrap_or_else(|_| {
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
    /// An observation that has not come back yet.
    observing: Option<JoinHandle<Observation>>,
    /// What there is too little of, told at each observation.
    shortages: watch::Sender<Vec<Shortage>>,
    pressures: Pressures,
    networked: bool,
    health: Health,
    /// The Node's newest state that is known; none where there is none.
    known: Option<Node>,
    /// The uid of the Node, for its Lease.
    uid: watch::Sender<Option<String>>,
    /// What of the Node decides on pods.
    facts: watch::Sender<NodeFacts>,
    /// The block of addresses that its pods have.
    cidr: Option<String>,
    reported: Option<Reported>,
    /// When what others have written is mended at the earliest.
    mends_from: Duration,
    events: ReflectorEvents,
}

const NODE: Kind = Kind::of::<Node>();

impl NodeStatusManager {
    /// `uid` is told which Node is this agent's, as soon as there is one; `shortages` what each observation finds.
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
            reported: None,
            mends_from: Duration::ZERO,
            events,
        }
    }

    fn key(&self) -> ObjectKey {
        ObjectKey::new("", self.config.name.clone())
    }

    /// What pods see of the Node, as it is now.
    pub(super) fn facts(&self) -> watch::Receiver<NodeFacts> {
        self.facts.subscribe()
    }

    fn learn(&mut self, node: Option<Node>) {
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
    }

    /// Takes in what the watch shows. An answer to a request of our own may be ahead of it.
    fn take(&mut self, event: ReflectorEvent) {
        let version = |node: Option<&Node>| node.map_or(0, |node| version_of(&node.metadata));
        let node = |object: &Arc<dyn Object>| typed::<Node>(&**object).cloned();
        match event {
            // What was made since the list was read is made once more: that changes nothing.
            ReflectorEvent::Replaced(objects, _) if objects.is_empty() => self.learn(None),
            ReflectorEvent::Replaced(objects, _) => {
                objects.into_iter().for_each(|object| self.take(ReflectorEvent::Applied(object)));
            }
            ReflectorEvent::Applied(object) => {
                if let Some(node) = node(&object).filter(|node| version(Some(node)) >= version(self.known.as_ref())) {
                    self.learn(Some(node));
                }
            }
            ReflectorEvent::Deleted(object) => {
                if self.known.as_ref().is_some_and(|known| known.metadata.uid == object.metadata().uid) {
                    self.learn(None);
                }
            }
            ReflectorEvent::Progress(_) => {}
            ReflectorEvent::Interrupted(error) => {
                tracing::debug!(node = self.config.name, error, "the node cannot be watched, trying again");
            }
        }
    }

    /// Makes the Node be there with its labels, and with the addresses that its pods have where it was there before.
    async fn try_register(&mut self) -> Result<(), kube::Error> {
        let wanted = node(&self.config, self.cidr.as_deref());
        let made: Result<Node, _> = self.requests.create(&NODE, "", &wanted).await;
        let node = match made {
            Err(error) if status_code(&error) == 409 => {
                let patch = json!({"metadata": {"labels": labels(&self.config)}});
                self.requests.patch(&NODE, &self.key(), None, PatchType::Merge, &patch).await?
            }
            made => made?,
        };
        self.learn(Some(node));
        self.reported = None;
        Ok(())
    }

    fn assigned(&self) -> Option<String> {
        let spec = self.known.as_ref().and_then(|node| node.spec.as_ref());
        let assigned = spec.and_then(|spec| spec.pod_cidr.clone()).filter(|cidr| !cidr.is_empty());
        assigned.or_else(|| self.config.pod_cidr.clone())
    }

    /// Registers, and waits for a block of addresses.
    pub(super) async fn register(&mut self) -> String {
        self.observe().await;
        loop {
            if self.known.is_none()
                && let Err(error) = in_time(self.try_register()).await
            {
                tracing::warn!(node = self.config.name, %error, "the node cannot be registered yet, trying again");
            }
            if let Some(cidr) = self.known.is_some().then(|| self.assigned()).flatten() {
                self.cidr = Some(cidr.clone());
                return cidr;
            }
            if let Err(error) = self.beat().await {
                tracing::debug!(node = self.config.name, %error, "the status cannot be reported, trying again");
            }
            tokio::select! {
                event = self.events.next() => self.take(event),
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// From now on pods can be run.
    pub(super) fn beat_ready(&mut self, capacity: Capacity) {
        self.config.capacity = capacity;
        self.networked = true;
    }

    /// Keeps the status until `stop`.
    pub(super) async fn run(self, ready: oneshot::Sender<NodeReady>, kubelet: SocketAddr, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep(ready, kubelet) => {}
        }
    }

    async fn keep(mut self, ready: oneshot::Sender<NodeReady>, kubelet: SocketAddr) {
        let mut ready = Some(ready);
        let (shutdown, mut shutting_down) = (self.config.shutdown.clone(), false);
        let (mut observe_at, mut retry_at) = (Duration::ZERO, Duration::ZERO);
        loop {
            if self.env.elapsed() >= observe_at {
                self.observe().await;
                observe_at = self.env.elapsed() + OBSERVE_INTERVAL;
            }
            if self.env.elapsed() >= retry_at {
                match self.beat().await {
                    Ok(()) => {
                        if let Some(ready) = ready.take() {
                            // Whoever waited may have gone.
                            let _ = ready.send(NodeReady { kubelet });
                        }
                    }
                    Err(error) => {
                        tracing::warn!(node = self.config.name, %error, "the status cannot be reported, trying again");
                        retry_at = self.env.elapsed() + RETRY;
                    }
                }
            }
            let now = self.env.elapsed();
            let wakes = [Some(observe_at), Some(retry_at), Some(self.mends_from).filter(|_| self.differs())];
            let next = wakes.into_iter().flatten().filter(|at| *at > now).min().unwrap_or(observe_at);
            tokio::select! {
                event = self.events.next() => self.take(event),
                () = shutdown.begun(), if !shutting_down => shutting_down = true,
                () = tokio::time::sleep(next.saturating_sub(now)) => {}
            }
        }
    }

    /// Registers and reports where that is due.
    async fn beat(&mut self) -> Result<(), kube::Error> {
        if self.known.is_none() {
            in_time(self.try_register()).await?;
        }
        if !self.due() {
            return Ok(());
        }
        let reported = in_time(self.report()).await;
        if reported.as_ref().is_err_and(|error| status_code(error) == 404) {
            self.learn(None);
        }
        reported
    }

    async fn observe(&mut self) {
        let observing = self.observing.get_or_insert_with(|| {
            let observe = self.observe.clone();
            tokio::task::spawn_blocking(move || observe())
        });
        match tokio::time::timeout(OBSERVE_TIMEOUT, observing).await {
            Ok(observed) => {
                self.observing = None;
                match observed {
                    Ok(Observation { images, shortages }) => {
                        let now = self.env.elapsed();
                        self.pressures.observed(&shortages, now);
                        self.health = Health {
                            networked: self.networked,
                            shutting_down: self.config.shutdown.has_begun(),
                            short: self.pressures.held(now),
                            images,
                        };
                        self.shortages.send_replace(shortages);
                    }
                    Err(error) => tracing::error!(%error, "observing the machine broke a promise of its own"),
                }
            }
            Err(_) => tracing::warn!(
                node = self.config.name,
                folder = %self.config.data_dir.display(),
                "the disk of the node's folder does not answer: its status is as it was",
            ),
        }
    }

    /// The API shows another status than the one that it took from us.
    fn differs(&self) -> bool {
        let reported = self.reported.as_ref();
        reported.is_some_and(|reported| register::own(self.known.as_ref()) != reported.shown)
    }

    fn health_now(&self) -> Health {
        let shutting_down = self.config.shutdown.has_begun();
        Health { networked: self.networked, shutting_down, ..self.health.clone() }
    }

    fn due(&self) -> bool {
        let Some(reported) = &self.reported else { return true };
        let now = self.env.elapsed();
        self.health_now() != reported.health
            || now.saturating_sub(reported.at) >= self.config.status_interval
            || (self.differs() && now >= self.mends_from)
    }

    async fn report(&mut self) -> Result<(), kube::Error> {
        let (now, mends) = (self.env.elapsed(), self.differs());
        let health = self.health_now();
        let patch = status(&self.config, self.port, &health, self.known.as_ref(), self.env.now());
        let (key, how) = (self.key(), PatchType::Strategic);
        let node: Node = self.requests.patch(&NODE, &key, Some("status"), how, &patch).await?;
        self.reported = Some(Reported { health, shown: register::own(Some(&node)), at: now });
        if mends {
            // With a short lease a node that was late is soon well again.
            self.mends_from = now + OBSERVE_INTERVAL.min(self.config.lease_duration / 2);
        }
        self.learn(Some(node));
        Ok(())
    }
}
