//! Requests that wait: a Service whose workload may be scaled to zero keeps the first ones until a pod is there, and says in a
//! condition that they wait (`docs/decisions/0083-scale-to-zero.md`). Bounded in number, by Service, and in time.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use machinery_api::{ObjectKey, waiting};
use machinery_client::Kind;
use machinery_client::request::{ApiClient, PatchType};
use machinery_env::Env;
use tokio::sync::{Notify, futures::Notified};
use tokio_util::sync::CancellationToken;

/// How long a request waits: a pod that isn't there by then is not slow, it is missing.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);
/// How often who waits looks again, where endpoints are there that don't take requests yet.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Requests that wait at once: each holds its head and what its connection has read of its body.
const ALL_MAX: usize = 1024;
/// Of one Service, so that none takes all places.
const EACH_MAX: usize = 256;
/// How often it is said again that requests wait.
const SAID_AGAIN: Duration = Duration::from_secs(5);

/// Requests of one Service that wait.
#[derive(Debug, Default)]
struct Queue {
    count: AtomicUsize,
    changed: Notify,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// The Services for which requests may wait.
    allowed: ArcSwap<HashSet<ObjectKey>>,
    queues: Mutex<HashMap<ObjectKey, Arc<Queue>>>,
    all: AtomicUsize,
    /// Somebody began to wait, or ended.
    told: Notify,
}

/// A request's place.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    waiting: &'a Waiting,
    service: ObjectKey,
    queue: Arc<Queue>,
}

impl Place<'_> {
    /// Until something changes about the Service's endpoints: from when this is asked on.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.queue.changed.notified()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queues = self.waiting.queues();
        self.waiting.all.fetch_sub(1, Ordering::Relaxed);
        if self.queue.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            queues.remove(&self.service);
        }
        drop(queues);
        self.waiting.told.notify_one();
    }
}

impl Waiting {
    fn queues(&self) -> MutexGuard<'_, HashMap<ObjectKey, Arc<Queue>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For which Services requests may wait from now on.
    pub(crate) fn allow(&self, services: HashSet<ObjectKey>) {
        self.allowed.store(Arc::new(services));
    }

    /// A place for a request to a Service; none where it isn't to wait, or too many do.
    pub(crate) fn enter(&self, service: &ObjectKey) -> Option<Place<'_>> {
        if !self.allowed.load().contains(service) {
            return None;
        }
        let mut queues = self.queues();
        if self.all.load(Ordering::Relaxed) >= ALL_MAX {
            return None;
        }
        let queue = queues.entry(service.clone()).or_default().clone();
        if queue.count.load(Ordering::Relaxed) >= EACH_MAX {
            return None;
        }
        self.all.fetch_add(1, Ordering::Relaxed);
        queue.count.fetch_add(1, Ordering::Relaxed);
        drop(queues);
        self.told.notify_one();
        Some(Place { waiting: self, service: service.clone(), queue })
    }

    /// The endpoints of a Service changed.
    pub(crate) fn look(&self, service: &ObjectKey) {
        if self.all.load(Ordering::Relaxed) == 0 {
            return;
        }
        if let Some(queue) = self.queues().get(service) {
            queue.changed.notify_waiters();
        }
    }

    fn counts(&self) -> HashMap<ObjectKey, usize> {
        let queues = self.queues();
        queues.iter().map(|(service, queue)| (service.clone(), queue.count.load(Ordering::Relaxed))).collect()
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

/// What is to be said now: of which Services, and how many wait (0: none does any more).
fn due(
    counts: &HashMap<ObjectKey, usize>,
    said: &HashMap<ObjectKey, Duration>,
    now: Duration,
) -> Vec<(ObjectKey, usize)> {
    let again = |service: &ObjectKey| said.get(service).is_none_or(|at| now.saturating_sub(*at) >= SAID_AGAIN);
    let wait = counts.iter().filter(|(service, _)| again(service)).map(|(service, count)| (service.clone(), *count));
    let gone: BTreeSet<&ObjectKey> = said.keys().filter(|service| !counts.contains_key(*service)).collect();
    wait.chain(gone.into_iter().map(|service| (service.clone(), 0))).collect()
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

/// Says for which Services requests wait, until `stop`.
pub(crate) async fn tell(waiting: &Waiting, client: Client, env: &Env, stop: &CancellationToken) {
    let api = ApiClient::from(client);
    let mut said: HashMap<ObjectKey, Duration> = HashMap::new();
    loop {
        let (counts, now) = (waiting.counts(), env.elapsed());
        for (service, count) in due(&counts, &said, now) {
            let service_status = k8s_openapi::api::core::v1::ServiceStatus {
                conditions: Some(vec![condition(count, env.now())]),
                ..Default::default()
            };
            let patch = Service { status: Some(service_status), ..Service::default() };
            let patch = machinery_client::value_of(&patch);
            let patched = api
                .patch::<Service>(&Kind::of::<Service>(), &service, Some("status"), PatchType::Strategic, &patch)
                .await;
            if let Err(error) = patched {
                tracing::debug!(%service, %error, "that requests wait could not be said; it is said again");
            }
            if count == 0 {
                said.remove(&service)
            } else {
                said.insert(service, now)
            };
        }
        let again = async {
            if said.is_empty() {
                std::future::pending().await
            } else {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = waiting.told.notified() => {}
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
        assert!(waiting.enter(&key("web")).is_none(), "nobody said that it may be at zero");
        waiting.allow((0..9).map(|n| key(&format!("s{n}"))).collect());
        let full: Vec<_> = (0..EACH_MAX + 5).filter_map(|_| waiting.enter(&key("s0"))).collect();
        assert_eq!(full.len(), EACH_MAX);
        let others: Vec<_> = (0..ALL_MAX * 2).filter_map(|n| waiting.enter(&key(&format!("s{}", n % 8 + 1)))).collect();
        assert_eq!(full.len() + others.len(), ALL_MAX);
        drop(full);
        assert!(waiting.enter(&key("s0")).is_some());
        drop(others);
        assert_eq!((waiting.counts().len(), waiting.all.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn it_is_said_at_once_again_and_when_it_is_over() {
        let s = Duration::from_secs;
        let counts: HashMap<_, _> = [(key("new"), 2), (key("old"), 1), (key("fresh"), 1)].into();
        let said: HashMap<_, _> = [(key("old"), s(0)), (key("fresh"), s(9)), (key("gone"), s(9))].into();
        let mut now: Vec<_> = due(&counts, &said, s(10)).into_iter().map(|(key, count)| (key.name, count)).collect();
        now.sort();
        assert_eq!(now, [("gone".to_owned(), 0), ("new".to_owned(), 2), ("old".to_owned(), 1)]);
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
