//! A worker's writes to the API: the status and the final delete. The API's current status decides whether a write is
//! needed, not the last write: others write into the status too.

use machinery_client::request::{ApiClient, PatchType};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::*;
use crate::pod::state::HOLD_MAX;

const POD: Kind = Kind::of::<Pod>();
/// The status of a pod with at most this many containers is projected on every event.
const PROJECTED_AT_ONCE_MAX: usize = 32;
/// The projection of a larger pod takes at most this fraction (1/20) of its worker's time.
const PROJECTED_PART: u32 = 20;

/// The pod's status in the API, as far as this worker has observed it. Pure.
#[derive(Debug, Default)]
pub(super) struct ReportedStatus {
    /// The last written status.
    written: Option<Arc<Compressed<PodStatus>>>,
    /// The version after that write. Older states from the watch don't contain it.
    version: u64,
    /// The watch has delivered that version or a newer one.
    observed: bool,
    /// The written status isn't compared with the API's.
    suppressed: bool,
    /// The earliest monotonic time at which a foreign overwrite is repaired.
    repair_from: Duration,
    /// A foreign overwrite was detected.
    overwritten: bool,
}

impl ReportedStatus {
    /// The watch delivered a state of the pod.
    pub(super) fn observe(&mut self, version: u64) {
        self.observed |= version >= self.version;
    }

    /// `status` was accepted as `version`; `newest` is the newest version from the watch.
    pub(super) fn record_write(
        &mut self,
        status: Arc<Compressed<PodStatus>>,
        version: u64,
        newest: u64,
        elapsed: Duration,
    ) {
        if self.written.as_ref().is_some_and(|written| written.same(&status)) {
            self.repair_from = elapsed + REPAIR_INTERVAL;
        }
        *self = Self {
            written: Some(status),
            version,
            observed: newest >= version,
            suppressed: false,
            overwritten: false,
            ..*self
        };
    }

    /// Suppresses writes until the wanted status differs from this one.
    pub(super) fn suppress_writes(&mut self, status: Arc<Compressed<PodStatus>>) {
        self.written = Some(status);
        self.suppressed = true;
    }

    /// Whether `wanted` has to be written, given the status that the watch `shows`.
    pub(super) fn dirty(&self, wanted: &Arc<Compressed<PodStatus>>, shows: Option<&PodStatus>) -> bool {
        match &self.written {
            Some(written) if self.suppressed || !self.observed => !written.same(wanted),
            _ => !shows.is_some_and(|shows| status::shows(shows, &wanted.get())),
        }
    }

    /// Records the result of [`Self::dirty`]. After a foreign overwrite, controllers get time to react to it, as the
    /// kubelet reconciles every 10 s: the DaemonSet controller replaces a pod that was failed by hand.
    pub(super) fn record_overwrite(&mut self, dirty: bool, wanted: &Arc<Compressed<PodStatus>>, elapsed: Duration) {
        let overwritten = dirty && self.written.as_ref().is_some_and(|written| written.same(wanted));
        if overwritten && !self.overwritten {
            self.repair_from = self.repair_from.max(elapsed + REPAIR_FIRST);
        }
        self.overwritten = overwritten;
    }

    /// The remaining delay before an overwritten status is repaired.
    pub(super) fn repair_delay(&self, wanted: &Arc<Compressed<PodStatus>>, elapsed: Duration) -> Option<Duration> {
        let is_written = || self.written.as_ref().is_some_and(|written| written.same(wanted));
        Some(self.repair_from.saturating_sub(elapsed)).filter(|wait| !wait.is_zero() && is_written())
    }
}

machinery_client::read_wire! { Versioned }

/// The part of a write's response that is read: the object's version.
#[derive(Debug, Default, Deserialize)]
struct Versioned {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: Option<String>,
}

impl Versioned {
    fn version(&self) -> u64 {
        self.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
    }
}

impl PodWorker {
    /// Projects the status, or defers this if the projection of a large pod would take too much time.
    pub(super) fn project(&mut self) {
        let began = self.node.parts.env.elapsed();
        self.stale = self.next_projection_at.is_some_and(|from| began < from);
        if self.stale {
            return;
        }
        self.project_now();
        if self.state.machines().len() > PROJECTED_AT_ONCE_MAX {
            let ended = self.node.parts.env.elapsed();
            self.next_projection_at = Some(ended + ended.saturating_sub(began) * PROJECTED_PART);
        }
    }

    fn project_now(&mut self) {
        let facts = status::Facts { host_ip: self.node.identity.internal_ip, pod_ip: self.ip.or(self.last_ip()) };
        let before = self.desired_status.get();
        let own = self.first_conditions.take().or_else(|| before.conditions.clone()).unwrap_or_default();
        let pod = self.pod();
        let others = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let known: Vec<PodCondition> = own
            .iter()
            .cloned()
            .chain(others.into_iter().filter(|other| own.iter().all(|own| own.type_ != other.type_)))
            .collect();
        let mut wanted = match &self.final_status_before_restart {
            Some(last) => PodStatus { observed_generation: pod.metadata.generation, ..(*last.get()).clone() },
            None => status::project(&self.state, pod, &self.rules, &facts, &known, self.now()),
        };
        if let Some(conditions) = &mut wanted.conditions
            && pod.status.iter().any(|s| s.conditions.iter().flatten().any(|c| c.type_ == "PodScheduled"))
        {
            // The scheduler has written this condition, and it stays unchanged.
            conditions.retain(|condition| condition.type_ != "PodScheduled");
        }
        self.add_resize_status(&mut wanted, &known);
        if wanted != *before {
            if self.state.ready() && !self.was_ready {
                self.was_ready = true;
                self.node.pods.totals.started(self.node.parts.env.elapsed().saturating_sub(self.adopted_at));
            }
            let wanted: Arc<Compressed<PodStatus>> = Arc::new(wanted.into());
            self.view.update(|snapshot| snapshot.status = wanted.clone());
            self.desired_status = wanted;
            self.dirty = None;
        }
    }

    /// The status of an ended pod keeps its address.
    pub(super) fn last_ip(&self) -> Option<IpAddr> {
        self.desired_status.get().pod_ip.as_deref()?.parse().ok()
    }

    /// Whether the status has to be written. Called on every loop turn, and computed once per change of its inputs.
    pub(super) fn dirty(&mut self) -> bool {
        if self.status_target == StatusTarget::Mirror(None) {
            return false;
        }
        if let Some(dirty) = self.dirty {
            return dirty;
        }
        let dirty = self.reported.dirty(&self.desired_status, self.pod().status.as_ref());
        self.reported.record_overwrite(dirty, &self.desired_status, self.node.parts.env.elapsed());
        self.dirty = Some(dirty);
        dirty
    }

    /// How long a write can be delayed, as it would be superseded or overwritten at once.
    pub(super) fn settle_delay(&self) -> Option<Duration> {
        let settle = self.state.settles_at().map(|at| Duration::try_from(at.duration_since(self.now())));
        let settle = settle.and_then(Result::ok).filter(|wait| !wait.is_zero() && *wait <= HOLD_MAX);
        settle.max(self.reported.repair_delay(&self.desired_status, self.node.parts.env.elapsed()))
    }

    pub(super) fn write_status(&self) -> Write {
        let (requests, wanted, key) = (self.requests(), self.desired_status.clone(), self.key());
        let mut patch = status::patch(self.pod(), &wanted.get());
        if let StatusTarget::Mirror(uid) = &self.status_target {
            patch["metadata"]["uid"] = serde_json::json!(uid);
        }
        Box::pin(async move {
            let answer = requests.patch(&POD, &key, Some("status"), PatchType::Strategic, &patch).await;
            (Some(wanted), answer.map(|answer: Versioned| answer.version()))
        })
    }

    pub(super) fn write_delete(&self) -> Write {
        let (requests, key) = (self.requests(), self.key());
        let options = serde_json::json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
            "preconditions": {"uid": self.pod().metadata.uid},
        });
        Box::pin(async move {
            let answer = requests.delete(&POD, &key, &options).await;
            (None, answer.map(|_: IgnoredAny| 0))
        })
    }

    pub(super) fn requests(&self) -> ApiClient {
        self.node.client.clone().into()
    }

    fn key(&self) -> ObjectKey {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let metadata = &self.pod().metadata;
        ObjectKey::new(text(&metadata.namespace), text(&metadata.name))
    }

    /// Handles the result of a write. Returns the delay before the next one, if it failed.
    pub(super) fn handle_write_result(
        &mut self,
        status: Option<Arc<Compressed<PodStatus>>>,
        result: Result<u64, kube::Error>,
    ) -> Option<Duration> {
        self.dirty = None;
        self.failures = if result.is_ok() { 0 } else { self.failures.saturating_add(1) };
        let code = match &result {
            Err(kube::Error::Api(answer)) => answer.code,
            _ => 0,
        };
        let gone = code == 404 || code == 409;
        if result.is_ok() || is_rejected(code) {
            // The API has the status or will never accept it: held actions need not wait any longer.
            self.perform_held();
        }
        match (status, result) {
            (Some(status), Ok(version)) => {
                self.reported.record_write(
                    status,
                    version,
                    version_of(&self.pod().metadata),
                    self.node.parts.env.elapsed(),
                );
            }
            (None, Ok(_)) => self.delete_pending = false,
            (None, Err(_)) if gone => self.delete_pending = false,
            (Some(status), Err(error)) => {
                tracing::debug!(pod = self.rules.pod, %error, "the status cannot be written");
                if gone {
                    // The pod was deleted, or another one has its name; a watch event follows soon.
                    self.reported.suppress_writes(status);
                } else if code == 413 {
                    // A retry would be rejected again, so only a different status is written, and nothing waits for this one.
                    self.reported.suppress_writes(status);
                    if !std::mem::replace(&mut self.too_large, true) {
                        let message =
                            "The pod's status is larger than the API takes, and is not shown: use fewer containers";
                        self.record_event(true, "StatusTooLarge", message.into(), None);
                    }
                } else {
                    return Some(self.retry_after());
                }
            }
            (None, Err(error)) => {
                tracing::debug!(pod = self.rules.pod, %error, "the pod cannot be deleted");
                return Some(self.retry_after());
            }
        }
        None
    }

    pub(super) fn retry_after(&self) -> Duration {
        let wait = WRITE_RETRY_FIRST.saturating_mul(1 << self.failures.min(10)).min(WRITE_RETRY_MAX);
        wait + Duration::from_millis(self.node.parts.env.below(1000))
    }
}

/// Whether a response with that code means that a retry is pointless.
fn is_rejected(code: u16) -> bool {
    (400..500).contains(&code) && code != 408 && code != 429
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: &str) -> Arc<Compressed<PodStatus>> {
        Arc::new(PodStatus { phase: Some(phase.into()), ..PodStatus::default() }.into())
    }

    #[test]
    fn what_others_overwrite_is_written_again_and_not_over_and_over() {
        let (ours, theirs) = (status("Running"), status("Failed"));
        let second = Duration::from_secs;
        let mut api = ReportedStatus::default();
        assert!(api.dirty(&ours, None) && api.dirty(&ours, Some(&theirs.get())), "never written");
        api.record_write(ours.clone(), 7, 6, second(1));
        assert!(!api.dirty(&ours, Some(&theirs.get())), "the watch shows what was there before our write");
        api.observe(7);
        assert!(!api.dirty(&ours, Some(&ours.get())));
        api.observe(8);
        assert!(api.dirty(&ours, Some(&theirs.get())), "another one has written");
        api.record_overwrite(true, &ours, second(2));
        api.record_overwrite(true, &ours, second(4));
        assert_eq!(api.repair_delay(&ours, second(4)), Some(second(3)), "from when it was found");
        assert_eq!(api.repair_delay(&ours, second(7)), None);
        api.record_write(ours.clone(), 9, 8, second(7));
        api.observe(10);
        assert!(api.dirty(&ours, Some(&theirs.get())));
        api.record_overwrite(true, &ours, second(8));
        assert_eq!(api.repair_delay(&ours, second(8)), Some(second(9)), "the second time later");
        assert_eq!(api.repair_delay(&theirs, second(8)), None, "a change of our own waits for nothing");
        assert_eq!(api.repair_delay(&ours, second(17)), None);
    }

    #[test]
    fn a_watch_that_is_ahead_of_our_write_is_believed() {
        let mut api = ReportedStatus::default();
        api.record_write(status("Running"), 7, 9, Duration::ZERO);
        assert!(api.dirty(&status("Running"), Some(&status("Failed").get())));
    }

    #[test]
    fn what_is_left_alone_stays_so_until_something_else_is_wanted() {
        let mut api = ReportedStatus::default();
        api.suppress_writes(status("Failed"));
        api.observe(100);
        assert!(!api.dirty(&status("Failed"), Some(&status("Running").get())));
        assert!(api.dirty(&status("Succeeded"), Some(&status("Running").get())));
    }

    #[test]
    fn an_answers_version_is_read() {
        let answer = r#"{"kind": "Pod", "metadata": {"name": "p", "resourceVersion": "12"}, "spec": {"a": [1]}}"#;
        let version = |answer: &str| serde_json::from_str::<Versioned>(answer).unwrap().version();
        assert_eq!((version(answer), version("{}")), (12, 0));
    }

    #[test]
    fn what_is_refused_for_good() {
        let codes = [403, 422, 400, 404].map(is_rejected);
        assert_eq!((codes, [0, 408, 429, 500, 503, 200].map(is_rejected)), ([true; 4], [false; 6]));
    }
}
