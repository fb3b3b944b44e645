//! Requests that wait: a Service whose workload may be scaled to zero keeps the first ones until a pod is there, and says in a
//! condition that they wait (`docs/decisions/0083-scale-to-zero.md`). Bounded in number, by Service, and in time.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Service, ServiceStatus};
use kube::Client;
use machinery_api::{ObjectKey, waiting};
use machinery_client::Kind;
use machinery_client::request::{ApiClient, PatchType};
use machinery_env::Env;
use tokio::sync::{Notify, futures::Notified};
use tokio_util::sync::CancellationToken;

/// How long a request waits: a pod that isn't there by then is not slow, it is missing.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);
/// Requests that wait at once: each holds its head and what its connection has read of its body.
const ALL_MAX: usize = 1024;
/// Of one Service, so that none takes all places of its namespace.
const EACH_MAX: usize = 256;
/// How often it is said again that requests wait.
const SAID_AGAIN: Duration = Duration::from_secs(5);
/// How soon something else is said of a Service, or the same after it could not be: clients that come and go cost no more.
const SAID_LEAST: Duration = Duration::from_secs(1);
/// What is said in a second, of all Services: who has many at zero doesn't flood the API server.
const SAID_MAX: usize = 64;
/// Of these at once.
const SAID_AT_ONCE: usize = 8;

/// Requests of one Service that wait.
#[derive(Debug, Default)]
struct Queue {
    count: AtomicUsize,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Held {
    queues: HashMap<ObjectKey, Arc<Queue>>,
    namespaces: HashMap<String, usize>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// The Services for which requests may wait.
    allowed: ArcSwap<HashSet<ObjectKey>>,
    held: Mutex<Held>,
    all: AtomicUsize,
    /// Somebody began to wait, or ended.
    told: Notify,
}

/// Why a request isn't to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// No pod is to be expected.
    Never,
    /// Too many wait.
    Full,
}

/// A request's place.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    waiting: &'a Waiting,
    service: ObjectKey,
    queue: Arc<Queue>,
}

impl Place<'_> {
    /// Until something changes about the Service: from when this is asked on.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.queue.changed.notified()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut held = self.waiting.held();
        self.waiting.all.fetch_sub(1, Ordering::Relaxed);
        if self.queue.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            held.queues.remove(&self.service);
        }
        if let Some(count) = held.namespaces.get_mut(&*self.service.namespace) {
            *count -= 1;
            if *count == 0 {
                held.namespaces.remove(&*self.service.namespace);
            }
        }
        drop(held);
        self.waiting.told.notify_one();
    }
}

impl Waiting {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For which Services requests may wait from now on.
    pub(crate) fn allow(&self, services: HashSet<ObjectKey>) {
        self.allowed.store(Arc::new(services));
        if self.all.load(Ordering::Relaxed) > 0 {
            let held = self.held();
            let ended = held.queues.iter().filter(|(service, _)| !self.may(service));
            ended.for_each(|(_, queue)| queue.changed.notify_waiters());
        }
    }

    /// Whether requests to a Service may wait.
    pub(crate) fn may(&self, service: &ObjectKey) -> bool {
        self.allowed.load().contains(service)
    }

    /// A place for a request to a Service. A namespace has as many as it leaves free: however many it wants, the next one gets
    /// half of what it got.
    pub(crate) fn enter(&self, service: &ObjectKey) -> Result<Place<'_>, NoPlace> {
        if !self.may(service) {
            return Err(NoPlace::Never);
        }
        let mut held = self.held();
        let free = ALL_MAX - self.all.load(Ordering::Relaxed);
        let queued = held.queues.get(service).map_or(0, |queue| queue.count.load(Ordering::Relaxed));
        let of_namespace = held.namespaces.get(&*service.namespace).copied().unwrap_or(0);
        if of_namespace >= free || queued >= EACH_MAX {
            return Err(NoPlace::Full);
        }
        self.all.fetch_add(1, Ordering::Relaxed);
        *held.namespaces.entry(service.namespace.clone()).or_default() += 1;
        let queue = held.queues.entry(service.clone()).or_default().clone();
        queue.count.fetch_add(1, Ordering::Relaxed);
        drop(held);
        self.told.notify_one();
        Ok(Place { waiting: self, service: service.clone(), queue })
    }

    /// A Service or its endpoints changed.
    pub(crate) fn look(&self, service: &ObjectKey) {
        if self.all.load(Ordering::Relaxed) == 0 {
            return;
        }
        if let Some(queue) = self.held().queues.get(service) {
            queue.changed.notify_waiters();
        }
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn all(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }

    fn counts(&self) -> HashMap<ObjectKey, usize> {
        let held = self.held();
        held.queues.iter().map(|(service, queue)| (service.clone(), queue.count.load(Ordering::Relaxed))).collect()
    }
}

/// The Services of an autoscaler whose workload may have no pod, while it isn't switched off.
pub(crate) fn services_of(hpa: &HorizontalPodAutoscaler) -> Vec<ObjectKey> {
    let namespace = hpa.metadata.namespace.as_deref().unwrap_or_default();
    let mut conditions = hpa.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let off = conditions.any(|one| one.type_ == "ScalingActive" && one.reason.as_deref() == Some("ScalingDisabled"));
    if hpa.spec.min_replicas != Some(0) || off {
        return Vec::new();
    }
    let described = hpa.spec.metrics.iter().flatten().filter_map(|metric| {
        let of = &metric.object.as_ref()?.described_object;
        let core = of.api_version.as_deref().is_none_or(|version| version.is_empty() || version == "v1");
        (core && of.kind == "Service").then(|| ObjectKey::new(namespace, &*of.name))
    });
    described.collect()
}

/// What was said of a Service.
#[derive(Debug, Clone, Copy)]
struct Said {
    at: Duration,
    waits: bool,
    /// When it is said again, while it is so.
    again: Duration,
}

/// What is to be said now: of which Services, and how many wait (0: none does any more). What is new comes first, then what was
/// said longest ago.
fn due(counts: &HashMap<ObjectKey, usize>, said: &HashMap<ObjectKey, Said>, now: Duration) -> Vec<(ObjectKey, usize)> {
    let rested = |said: &Said| now.saturating_sub(said.at) >= SAID_LEAST;
    let again = |service: &ObjectKey| match said.get(service) {
        None => true,
        Some(said) if said.waits => now >= said.again,
        Some(said) => rested(said),
    };
    let wait = counts.iter().filter(|(service, _)| again(service)).map(|(service, count)| (service.clone(), *count));
    let gone = said.iter().filter(|(service, said)| said.waits && rested(said) && !counts.contains_key(*service));
    let mut all: Vec<(ObjectKey, usize)> = wait.chain(gone.map(|(service, _)| (service.clone(), 0))).collect();
    all.sort_by_cached_key(|(service, _)| (said.get(service).map(|said| said.at), service.clone()));
    all
}

/// How much was said in this second.
#[derive(Debug, Default)]
struct Pace {
    since: Duration,
    count: usize,
}

impl Pace {
    /// What may still be said.
    fn left(&mut self, now: Duration) -> usize {
        if now.saturating_sub(self.since) >= Duration::from_secs(1) {
            *self = Self { since: now, count: 0 };
        }
        SAID_MAX - self.count
    }
}

fn condition(count: usize, now: Timestamp) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition {
    let (status, reason, message) = match count {
        0 => ("False", waiting::SERVED, "no request waits for an endpoint".to_owned()),
        count => ("True", waiting::WAITING, waiting::message(count)),
    };
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition {
        type_: waiting::CONDITION.into(),
        status: status.into(),
        reason: reason.into(),
        message,
        last_transition_time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            Timestamp::from_second(now.as_second()).unwrap_or(now),
        ),
        observed_generation: None,
    }
}

/// Says that requests to a Service wait, or that none does any more.
async fn say(api: &ApiClient, env: &Env, service: &ObjectKey, count: usize) -> bool {
    let status = ServiceStatus { conditions: Some(vec![condition(count, env.now())]), ..Default::default() };
    let patch = machinery_client::value_of(&Service { status: Some(status), ..Service::default() });
    let kind = Kind::of::<Service>();
    let patched = api.patch::<Service>(&kind, service, Some("status"), PatchType::Strategic, &patch);
    match tokio::time::timeout(SAID_AGAIN, patched).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            tracing::debug!(%service, %error, "that requests wait could not be said; it is said again");
            false
        }
        Err(_) => false,
    }
}

/// Says for which Services requests wait, until `stop`.
pub(crate) async fn tell(waiting: &Waiting, client: Client, env: &Env, stop: &CancellationToken) {
    let api = ApiClient::from(client);
    let (mut said, mut pace) = (HashMap::<ObjectKey, Said>::new(), Pace::default());
    loop {
        let (counts, now) = (waiting.counts(), env.elapsed());
        said.retain(|_, said| said.waits || now.saturating_sub(said.at) < SAID_LEAST);
        let mut due = due(&counts, &said, now);
        due.truncate(pace.left(now));
        pace.count += due.len();
        let (api, slow) = (&api, pace.count >= SAID_MAX);
        let told = futures::stream::iter(due).map(|(service, count)| async move {
            let told = say(api, env, &service, count).await;
            (service, count > 0, told)
        });
        let told: Vec<_> = told.buffer_unordered(SAID_AT_ONCE).collect().await;
        for (service, waits, told) in told {
            // What couldn't be said of a Service that is gone isn't said again.
            let again = now + if told { SAID_AGAIN } else { SAID_LEAST };
            said.insert(service, Said { at: now, waits, again });
        }
        let again = async {
            if said.is_empty() && !slow {
                std::future::pending().await
            } else {
                tokio::time::sleep(SAID_LEAST).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = waiting.told.notified(), if !slow => {}
            () = again => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("a", name)
    }

    #[test]
    fn places_are_bounded_and_shared() {
        let waiting = Waiting::default();
        assert_eq!(waiting.enter(&key("web")).unwrap_err(), NoPlace::Never, "nobody said that it may be at zero");
        let other = ObjectKey::new("b", "web");
        waiting.allow((0..9).map(|n| key(&format!("s{n}"))).chain([other.clone()]).collect());
        let full: Vec<_> = (0..EACH_MAX + 5).filter_map(|_| waiting.enter(&key("s0")).ok()).collect();
        assert_eq!(full.len(), EACH_MAX);
        let enter = |n: usize| waiting.enter(&key(&format!("s{}", n % 8 + 1))).ok();
        let greedy: Vec<_> = (0..ALL_MAX * 2).filter_map(enter).collect();
        assert_eq!(full.len() + greedy.len(), ALL_MAX / 2, "a namespace leaves as much as it has");
        let others: Vec<_> = (0..ALL_MAX).filter_map(|_| waiting.enter(&other).ok()).collect();
        assert_eq!(others.len(), ALL_MAX / 4);
        drop(full);
        assert!(waiting.enter(&key("s0")).is_ok());
        drop((greedy, others));
        assert_eq!((waiting.counts().len(), waiting.all.load(Ordering::Relaxed)), (0, 0));
        assert!(waiting.held().namespaces.is_empty());
    }

    #[tokio::test]
    async fn who_may_not_wait_any_more_is_woken() {
        let waiting = Waiting::default();
        waiting.allow([key("web"), key("other")].into());
        let (web, other) = (waiting.enter(&key("web")).unwrap(), waiting.enter(&key("other")).unwrap());
        let mut changed = (Box::pin(web.changed()), Box::pin(other.changed()));
        assert!(!changed.0.as_mut().enable() && !changed.1.as_mut().enable());
        waiting.allow([key("other")].into());
        changed.0.await;
        assert!(!changed.1.as_mut().enable(), "the other one isn't");
    }

    #[test]
    fn it_is_said_at_once_again_and_when_it_is_over() {
        let s = Duration::from_secs;
        let said = |at: u64, waits| Said { at: s(at), waits, again: s(at) + SAID_AGAIN };
        let counts: HashMap<_, _> = ["new", "old", "older", "fresh", "back", "soon"].map(|name| (key(name), 2)).into();
        let known = [
            (key("old"), said(5, true)),
            (key("older"), said(4, true)),
            (key("fresh"), said(9, true)),
            (key("gone"), said(8, true)),
            (key("just"), said(10, true)),
            (key("back"), said(9, false)),
            (key("soon"), said(10, false)),
        ];
        let now: Vec<_> =
            due(&counts, &known.into(), s(10)).into_iter().map(|(key, count)| (key.name, count)).collect();
        let wanted = [("new", 2), ("older", 2), ("old", 2), ("gone", 0), ("back", 2)];
        assert_eq!(now, wanted.map(|(name, count)| (name.to_owned(), count)));
    }

    #[test]
    fn no_more_is_said_in_a_second() {
        let mut pace = Pace::default();
        assert_eq!(pace.left(Duration::ZERO), SAID_MAX);
        pace.count += SAID_MAX;
        assert_eq!(pace.left(Duration::from_millis(999)), 0);
        assert_eq!(pace.left(Duration::from_secs(1)), SAID_MAX);
    }

    #[test]
    fn only_services_of_autoscalers_to_zero_may_wait() {
        let hpa = |least: i32, reason: &str| {
            let object = json!({"describedObject": {"kind": "Service", "name": "web"}, "metric": {"name": "m"}, "target": {"type": "Value"}});
            let hpa = json!({"metadata": {"namespace": "a", "name": "h"},
                "spec": {"minReplicas": least, "maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "web"},
                    "metrics": [{"type": "Object", "object": object}]},
                "status": {"desiredReplicas": 0, "conditions": [{"type": "ScalingActive", "status": "True", "reason": reason}]}});
            services_of(&serde_json::from_value(hpa).unwrap())
        };
        assert_eq!(hpa(0, "ValidMetricFound"), [key("web")]);
        assert!(hpa(1, "ValidMetricFound").is_empty() && hpa(0, "ScalingDisabled").is_empty());
    }
}
