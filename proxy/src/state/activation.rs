//! Activation queues (scale from zero): requests to a Service whose workload may be at zero wait for its first pod. A condition
//! of the Service reports them (`docs/decisions/0083-scale-to-zero.md`). Bounded in number, by Service, and in time.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Service, ServiceStatus};
use kube::Client;
use machinery_api::ObjectKey;
use machinery_client::Kind;
use machinery_client::request::{ApiClient, PatchType};
use machinery_env::Env;
use machinery_rules::activation;
use tokio::sync::{Notify, futures::Notified};
use tokio_util::sync::CancellationToken;

/// Maximum time in a queue: a pod that isn't ready by then is missing, not slow.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);
/// Maximum queued requests: each holds its head and the body bytes that its connection has read.
const QUEUED_MAX: usize = 1024;
/// Maximum of one Service, so that none takes all slots of its namespace.
const QUEUED_PER_SERVICE_MAX: usize = 256;
/// Interval at which the condition of a Service with queued requests is refreshed.
const CONDITION_REFRESH_INTERVAL: Duration = Duration::from_secs(5);
/// Minimum interval between two condition writes of one Service, failed ones included: bounds the cost of short-lived clients.
const CONDITION_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Maximum condition writes per second, over all Services: bounds the load on the API server.
const CONDITION_WRITES_PER_SECOND_MAX: usize = 64;
/// Maximum concurrent condition writes.
const CONDITION_WRITES_IN_FLIGHT_MAX: usize = 8;

/// The queue of one Service.
#[derive(Debug, Default)]
struct ServiceQueue {
    count: AtomicUsize,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Queues {
    by_service: HashMap<ObjectKey, Arc<ServiceQueue>>,
    by_namespace: HashMap<String, usize>,
}

/// All activation queues of a data plane.
#[derive(Debug, Default)]
pub(crate) struct ActivationQueues {
    /// The Services whose workload may be scaled to zero.
    scalable: ArcSwap<HashSet<ObjectKey>>,
    /// The pods of this machine start again after a takeover: any Service may have no endpoint for a while.
    resuming: AtomicBool,
    queues: Mutex<Queues>,
    queued: AtomicUsize,
    /// Notified on enqueue and dequeue.
    count_changed: Notify,
}

/// Reason why a request isn't queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EnqueueError {
    /// The Service's workload has no autoscaler with a minimum of zero.
    NotScalable,
    /// The queue is full.
    Full,
}

/// A queued request's slot, freed on drop.
#[derive(Debug)]
pub(crate) struct Slot<'a> {
    queues: &'a ActivationQueues,
    service: ObjectKey,
    queue: Arc<ServiceQueue>,
}

impl Slot<'_> {
    /// Completes on a change of the Service that happens after this call.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.queue.changed.notified()
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut queues = self.queues.lock();
        self.queues.queued.fetch_sub(1, Ordering::Relaxed);
        if self.queue.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            queues.by_service.remove(&self.service);
        }
        if let Some(count) = queues.by_namespace.get_mut(&*self.service.namespace) {
            *count -= 1;
            if *count == 0 {
                queues.by_namespace.remove(&*self.service.namespace);
            }
        }
        drop(queues);
        self.queues.count_changed.notify_one();
    }
}

impl ActivationQueues {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the set of Services whose requests may be queued; wakes requests of removed ones.
    pub(crate) fn set_scalable_services(&self, services: HashSet<ObjectKey>) {
        self.scalable.store(Arc::new(services));
        self.wake_rejected();
    }

    /// Begins or ends the time in which the requests of all Services may be queued.
    pub(crate) fn set_resuming(&self, resuming: bool) {
        self.resuming.store(resuming, Ordering::Release);
        self.wake_rejected();
    }

    /// Wakes the requests that may not be queued any more.
    fn wake_rejected(&self) {
        if self.queued.load(Ordering::Relaxed) > 0 {
            let queues = self.lock();
            let ended = queues.by_service.iter().filter(|(service, _)| !self.may_wait(service));
            ended.for_each(|(_, queue)| queue.changed.notify_waiters());
        }
    }

    /// Whether a Service's requests may be queued.
    pub(crate) fn may_wait(&self, service: &ObjectKey) -> bool {
        self.resuming.load(Ordering::Acquire) || self.scalable.load().contains(service)
    }

    /// Enqueues a request to a Service. A namespace gets at most as many slots as it leaves free: with any demand, the next
    /// namespace gets half of what it got.
    pub(crate) fn enqueue(&self, service: &ObjectKey) -> Result<Slot<'_>, EnqueueError> {
        if !self.may_wait(service) {
            return Err(EnqueueError::NotScalable);
        }
        let mut queues = self.lock();
        let free = QUEUED_MAX - self.queued.load(Ordering::Relaxed);
        let queued = queues.by_service.get(service).map_or(0, |queue| queue.count.load(Ordering::Relaxed));
        let of_namespace = queues.by_namespace.get(&*service.namespace).copied().unwrap_or(0);
        if of_namespace >= free || queued >= QUEUED_PER_SERVICE_MAX {
            return Err(EnqueueError::Full);
        }
        self.queued.fetch_add(1, Ordering::Relaxed);
        *queues.by_namespace.entry(service.namespace.clone()).or_default() += 1;
        let queue = queues.by_service.entry(service.clone()).or_default().clone();
        queue.count.fetch_add(1, Ordering::Relaxed);
        drop(queues);
        self.count_changed.notify_one();
        Ok(Slot { queues: self, service: service.clone(), queue })
    }

    /// Wakes a Service's requests after a change of the Service or its endpoints.
    pub(crate) fn notify_service_changed(&self, service: &ObjectKey) {
        if self.queued.load(Ordering::Relaxed) == 0 {
            return;
        }
        if let Some(queue) = self.lock().by_service.get(service) {
            queue.changed.notify_waiters();
        }
    }

    /// The number of queued requests.
    #[cfg(test)]
    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// The queued requests of Services whose workload may be scaled to zero: their autoscalers need the numbers.
    fn counts(&self) -> HashMap<ObjectKey, usize> {
        let (queues, scalable) = (self.lock(), self.scalable.load());
        queues
            .by_service
            .iter()
            .filter(|(service, _)| scalable.contains(*service))
            .map(|(service, queue)| (service.clone(), queue.count.load(Ordering::Relaxed)))
            .collect()
    }
}

/// The Services of an autoscaler with a minimum of zero replicas whose scaling isn't disabled.
pub(crate) fn scalable_services(hpa: &HorizontalPodAutoscaler) -> Vec<ObjectKey> {
    let namespace = hpa.metadata.namespace.as_deref().unwrap_or_default();
    let mut conditions = hpa.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let disabled =
        conditions.any(|one| one.type_ == "ScalingActive" && one.reason.as_deref() == Some("ScalingDisabled"));
    if hpa.spec.min_replicas != Some(0) || disabled {
        return Vec::new();
    }
    let described = hpa.spec.metrics.iter().flatten().filter_map(|metric| {
        let of = &metric.object.as_ref()?.described_object;
        let core = of.api_version.as_deref().is_none_or(|version| version.is_empty() || version == "v1");
        (core && of.kind == "Service").then(|| ObjectKey::new(namespace, &*of.name))
    });
    described.collect()
}

/// The last condition write of a Service.
#[derive(Debug, Clone, Copy)]
struct WrittenCondition {
    at: Duration,
    has_queued: bool,
    /// Time of the next refresh while requests are queued.
    refresh_at: Duration,
}

/// The conditions to write now: Services and their number of queued requests (0: none any more). Services without a previous
/// write come first, then the longest unwritten.
fn due_conditions(
    counts: &HashMap<ObjectKey, usize>,
    last: &HashMap<ObjectKey, WrittenCondition>,
    now: Duration,
) -> Vec<(ObjectKey, usize)> {
    let interval_elapsed = |last: &WrittenCondition| now.saturating_sub(last.at) >= CONDITION_INTERVAL_MIN;
    let again = |service: &ObjectKey| match last.get(service) {
        None => true,
        Some(last) if last.has_queued => now >= last.refresh_at,
        Some(last) => interval_elapsed(last),
    };
    let wait = counts.iter().filter(|(service, _)| again(service)).map(|(service, count)| (service.clone(), *count));
    let gone = last
        .iter()
        .filter(|(service, last)| last.has_queued && interval_elapsed(last) && !counts.contains_key(*service));
    let mut due: Vec<(ObjectKey, usize)> = wait.chain(gone.map(|(service, _)| (service.clone(), 0))).collect();
    due.sort_by_cached_key(|(service, _)| (last.get(service).map(|last| last.at), service.clone()));
    due
}

/// Counts condition writes within one second.
#[derive(Debug, Default)]
struct WriteRate {
    since: Duration,
    count: usize,
}

impl WriteRate {
    /// Writes left in this second.
    fn remaining(&mut self, now: Duration) -> usize {
        if now.saturating_sub(self.since) >= Duration::from_secs(1) {
            *self = Self { since: now, count: 0 };
        }
        CONDITION_WRITES_PER_SECOND_MAX - self.count
    }
}

fn condition(count: usize, now: Timestamp) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition {
    let (status, reason, message) = match count {
        0 => ("False", activation::REASON_SERVED, "no request waits for an endpoint".to_owned()),
        count => ("True", activation::REASON_NO_ENDPOINT, activation::message(count)),
    };
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition {
        type_: activation::CONDITION.into(),
        status: status.into(),
        reason: reason.into(),
        message,
        last_transition_time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            Timestamp::from_second(now.as_second()).unwrap_or(now),
        ),
        observed_generation: None,
    }
}

/// Patches the Service's condition; returns whether it was written.
async fn patch_condition(api: &ApiClient, env: &Env, service: &ObjectKey, count: usize) -> bool {
    let status = ServiceStatus { conditions: Some(vec![condition(count, env.now())]), ..Default::default() };
    let patch = machinery_client::value_of(&Service { status: Some(status), ..Service::default() });
    let kind = Kind::of::<Service>();
    let patched = api.patch::<Service>(&kind, service, Some("status"), PatchType::Strategic, &patch);
    match env.timeout(CONDITION_REFRESH_INTERVAL, patched).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            tracing::debug!(%service, %error, "cannot write the condition of queued requests; retrying");
            false
        }
        Err(_) => false,
    }
}

/// Keeps the conditions of Services with queued requests up to date until `stop`.
pub(crate) async fn write_conditions(queues: &ActivationQueues, client: Client, env: &Env, stop: &CancellationToken) {
    let api = ApiClient::from(client);
    let (mut last, mut rate) = (HashMap::<ObjectKey, WrittenCondition>::new(), WriteRate::default());
    loop {
        let (counts, now) = (queues.counts(), env.elapsed());
        last.retain(|_, last| last.has_queued || now.saturating_sub(last.at) < CONDITION_INTERVAL_MIN);
        let mut due = due_conditions(&counts, &last, now);
        due.truncate(rate.remaining(now));
        rate.count += due.len();
        let (api, slow) = (&api, rate.count >= CONDITION_WRITES_PER_SECOND_MAX);
        let writes = futures::stream::iter(due).map(|(service, count)| async move {
            let written = patch_condition(api, env, &service, count).await;
            (service, count > 0, written)
        });
        let writes: Vec<_> = writes.buffer_unordered(CONDITION_WRITES_IN_FLIGHT_MAX).collect().await;
        for (service, has_queued, succeeded) in writes {
            // A failed write to a deleted Service is not retried.
            let refresh_at = now + if succeeded { CONDITION_REFRESH_INTERVAL } else { CONDITION_INTERVAL_MIN };
            last.insert(service, WrittenCondition { at: now, has_queued, refresh_at });
        }
        let again = async {
            if last.is_empty() && !slow {
                std::future::pending().await
            } else {
                env.sleep(CONDITION_INTERVAL_MIN).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = queues.count_changed.notified(), if !slow => {}
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
        let waiting = ActivationQueues::default();
        assert_eq!(
            waiting.enqueue(&key("web")).unwrap_err(),
            EnqueueError::NotScalable,
            "nobody said that it may be at zero"
        );
        let other = ObjectKey::new("b", "web");
        waiting.set_scalable_services((0..9).map(|n| key(&format!("s{n}"))).chain([other.clone()]).collect());
        let full: Vec<_> = (0..QUEUED_PER_SERVICE_MAX + 5).filter_map(|_| waiting.enqueue(&key("s0")).ok()).collect();
        assert_eq!(full.len(), QUEUED_PER_SERVICE_MAX);
        let enqueue = |n: usize| waiting.enqueue(&key(&format!("s{}", n % 8 + 1))).ok();
        let greedy: Vec<_> = (0..QUEUED_MAX * 2).filter_map(enqueue).collect();
        assert_eq!(full.len() + greedy.len(), QUEUED_MAX / 2, "a namespace leaves as much as it has");
        let others: Vec<_> = (0..QUEUED_MAX).filter_map(|_| waiting.enqueue(&other).ok()).collect();
        assert_eq!(others.len(), QUEUED_MAX / 4);
        drop(full);
        assert!(waiting.enqueue(&key("s0")).is_ok());
        drop((greedy, others));
        assert_eq!((waiting.counts().len(), waiting.queued.load(Ordering::Relaxed)), (0, 0));
        assert!(waiting.lock().by_namespace.is_empty());
    }

    #[tokio::test]
    async fn requests_that_may_no_longer_wait_are_woken() {
        let waiting = ActivationQueues::default();
        waiting.set_scalable_services([key("web"), key("other")].into());
        let (web, other) = (waiting.enqueue(&key("web")).unwrap(), waiting.enqueue(&key("other")).unwrap());
        let mut changed = (Box::pin(web.changed()), Box::pin(other.changed()));
        assert!(!changed.0.as_mut().enable() && !changed.1.as_mut().enable());
        waiting.set_scalable_services([key("other")].into());
        changed.0.await;
        assert!(!changed.1.as_mut().enable(), "the other one isn't");
    }

    #[test]
    fn the_condition_is_written_at_once_refreshed_and_cleared() {
        let s = Duration::from_secs;
        let last = |at: u64, has_queued| WrittenCondition {
            at: s(at),
            has_queued,
            refresh_at: s(at) + CONDITION_REFRESH_INTERVAL,
        };
        let counts: HashMap<_, _> = ["new", "old", "older", "fresh", "back", "soon"].map(|name| (key(name), 2)).into();
        let known = [
            (key("old"), last(5, true)),
            (key("older"), last(4, true)),
            (key("fresh"), last(9, true)),
            (key("gone"), last(8, true)),
            (key("just"), last(10, true)),
            (key("back"), last(9, false)),
            (key("soon"), last(10, false)),
        ];
        let now: Vec<_> =
            due_conditions(&counts, &known.into(), s(10)).into_iter().map(|(key, count)| (key.name, count)).collect();
        let wanted = [("new", 2), ("older", 2), ("old", 2), ("gone", 0), ("back", 2)];
        assert_eq!(now, wanted.map(|(name, count)| (name.to_owned(), count)));
    }

    #[test]
    fn condition_writes_per_second_are_bounded() {
        let mut rate = WriteRate::default();
        assert_eq!(rate.remaining(Duration::ZERO), CONDITION_WRITES_PER_SECOND_MAX);
        rate.count += CONDITION_WRITES_PER_SECOND_MAX;
        assert_eq!(rate.remaining(Duration::from_millis(999)), 0);
        assert_eq!(rate.remaining(Duration::from_secs(1)), CONDITION_WRITES_PER_SECOND_MAX);
    }

    #[test]
    fn only_services_of_autoscalers_to_zero_may_wait() {
        let hpa = |least: i32, reason: &str| {
            let object = json!({"describedObject": {"kind": "Service", "name": "web"}, "metric": {"name": "m"}, "target": {"type": "Value"}});
            let hpa = json!({"metadata": {"namespace": "a", "name": "h"},
                "spec": {"minReplicas": least, "maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "web"},
                    "metrics": [{"type": "Object", "object": object}]},
                "status": {"desiredReplicas": 0, "conditions": [{"type": "ScalingActive", "status": "True", "reason": reason}]}});
            scalable_services(&serde_json::from_value(hpa).unwrap())
        };
        assert_eq!(hpa(0, "ValidMetricFound"), [key("web")]);
        assert!(hpa(1, "ValidMetricFound").is_empty() && hpa(0, "ScalingDisabled").is_empty());
    }
}
