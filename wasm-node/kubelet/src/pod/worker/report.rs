//! A worker's writes to the API: the status that follows from the state, and the last delete. What the API shows
//! decides whether there is anything to write, not what was written once: others write into the status too.

use machinery_client::request::{ApiClient, PatchType};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::*;
use crate::pod::state::HOLD_MAX;

const POD: Kind = Kind::of::<Pod>();
/// The status of a pod of so many containers is projected whenever something happens.
const PROJECTED_AT_ONCE_MAX: usize = 32;
/// That of a larger one takes no more than one part of so many of its worker's time.
const PROJECTED_PART: u32 = 20;

/// What the API holds of the pod's status, as far as this worker knows. Pure.
#[derive(Debug, Default)]
pub(super) struct Api {
    /// What was written last.
    said: Option<Arc<Resting<PodStatus>>>,
    /// The version that this write led to: older states that the watch shows say nothing of it.
    version: u64,
    /// The watch has shown that version or a newer one.
    shown: bool,
    /// What is said is not to be compared with what is shown.
    left: bool,
    /// When what others have overwritten is written again at the earliest, by the monotonic clock.
    mends_from: Duration,
    /// It is known that they have.
    overwritten: bool,
}

impl Api {
    /// The watch shows a state of the pod.
    pub(super) fn saw(&mut self, version: u64) {
        self.shown |= version >= self.version;
    }

    /// `status` was taken, as `version`; `newest` is the newest one that the watch has shown.
    pub(super) fn took(&mut self, status: Arc<Resting<PodStatus>>, version: u64, newest: u64, elapsed: Duration) {
        if self.said.as_ref().is_some_and(|said| said.same(&status)) {
            self.mends_from = elapsed + MEND_INTERVAL;
        }
        *self =
            Self { said: Some(status), version, shown: newest >= version, left: false, overwritten: false, ..*self };
    }

    /// Nothing is to be written until another status is wanted than this one.
    pub(super) fn leave(&mut self, status: Arc<Resting<PodStatus>>) {
        self.said = Some(status);
        self.left = true;
    }

    /// Whether `wanted` is to be written, where the watch shows `shows`.
    pub(super) fn dirty(&self, wanted: &Arc<Resting<PodStatus>>, shows: Option<&PodStatus>) -> bool {
        match &self.said {
            Some(said) if self.left || !self.shown => !said.same(wanted),
            _ => !shows.is_some_and(|shows| status::shows(shows, &wanted.get())),
        }
    }

    /// What [`Self::dirty`] has said: where others have overwritten what is said, whoever acts on what they wrote gets time to
    /// (as of the kubelet, which looks for such each ten seconds): a DaemonSet's controller replaces a pod that was failed by hand.
    pub(super) fn found(&mut self, dirty: bool, wanted: &Arc<Resting<PodStatus>>, elapsed: Duration) {
        let overwritten = dirty && self.said.as_ref().is_some_and(|said| said.same(wanted));
        if overwritten && !self.overwritten {
            self.mends_from = self.mends_from.max(elapsed + MEND_FIRST);
        }
        self.overwritten = overwritten;
    }

    /// How long to wait before that.
    pub(super) fn waits(&self, wanted: &Arc<Resting<PodStatus>>, elapsed: Duration) -> Option<Duration> {
        let mends = || self.said.as_ref().is_some_and(|said| said.same(wanted));
        Some(self.mends_from.saturating_sub(elapsed)).filter(|wait| !wait.is_zero() && mends())
    }
}

machinery_client::read_wire! { Versioned }

/// What a write's answer is read for: the object's version.
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

impl Worker {
    /// Sees what the status should be now, or later where the pod has so many containers that this takes its time.
    pub(super) fn project(&mut self) {
        let began = self.node.parts.env.elapsed();
        self.stale = self.projects_from.is_some_and(|from| began < from);
        if self.stale {
            return;
        }
        self.project_now();
        if self.state.cells.len() > PROJECTED_AT_ONCE_MAX {
            let ended = self.node.parts.env.elapsed();
            self.projects_from = Some(ended + ended.saturating_sub(began) * PROJECTED_PART);
        }
    }

    fn project_now(&mut self) {
        let facts = status::Facts { host_ip: self.node.identity.internal_ip, pod_ip: self.ip.or(self.last_ip()) };
        let before = self.wanted.get();
        let own = self.first_conditions.take().or_else(|| before.conditions.clone()).unwrap_or_default();
        let pod = self.pod();
        let others = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let known: Vec<PodCondition> = own
            .iter()
            .cloned()
            .chain(others.into_iter().filter(|other| own.iter().all(|own| own.type_ != other.type_)))
            .collect();
        let mut wanted = match &self.told_before {
            Some(told) => PodStatus { observed_generation: pod.metadata.generation, ..(*told.get()).clone() },
            None => status::project(&self.state, pod, &self.rules, &facts, &known, self.now()),
        };
        if let Some(conditions) = &mut wanted.conditions
            && pod.status.iter().any(|s| s.conditions.iter().flatten().any(|c| c.type_ == "PodScheduled"))
        {
            // The scheduler has written it; it stays as it is.
            conditions.retain(|condition| condition.type_ != "PodScheduled");
        }
        self.show_resize(&mut wanted, &known);
        if wanted != *before {
            if self.state.ready() && !self.was_ready {
                self.was_ready = true;
                self.node.pods.totals.started(self.node.parts.env.elapsed().saturating_sub(self.taken_up));
            }
            let wanted: Arc<Resting<PodStatus>> = Arc::new(wanted.into());
            self.view.change(|seen| seen.status = wanted.clone());
            self.wanted = wanted;
            self.dirty = None;
        }
    }

    /// The address stays in the status of a pod that has ended.
    pub(super) fn last_ip(&self) -> Option<IpAddr> {
        self.wanted.get().pod_ip.as_deref()?.parse().ok()
    }

    /// Whether the status is to be written. Asked at every turn, and found out once for each change of what it is found by.
    pub(super) fn dirty(&mut self) -> bool {
        if self.shown == Shown::Mirror(None) {
            return false;
        }
        if let Some(dirty) = self.dirty {
            return dirty;
        }
        let dirty = self.api.dirty(&self.wanted, self.pod().status.as_ref());
        self.api.found(dirty, &self.wanted, self.node.parts.env.elapsed());
        self.dirty = Some(dirty);
        dirty
    }

    /// How long what is to be written can wait, as it would be overtaken or overwritten at once.
    pub(super) fn settles_in(&self) -> Option<Duration> {
        let settles = self.state.settles_at().map(|at| Duration::try_from(at.duration_since(self.now())));
        let settles = settles.and_then(Result::ok).filter(|wait| !wait.is_zero() && *wait <= HOLD_MAX);
        settles.max(self.api.waits(&self.wanted, self.node.parts.env.elapsed()))
    }

    pub(super) fn write_status(&self) -> Write {
        let (requests, wanted, key) = (self.requests(), self.wanted.clone(), self.key());
        let mut patch = status::patch(self.pod(), &wanted.get());
        if let Shown::Mirror(uid) = &self.shown {
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

    /// Takes in a write's answer: how long to wait before the next one, if it failed.
    pub(super) fn took(
        &mut self,
        status: Option<Arc<Resting<PodStatus>>>,
        result: Result<u64, kube::Error>,
    ) -> Option<Duration> {
        self.dirty = None;
        self.failures = if result.is_ok() { 0 } else { self.failures.saturating_add(1) };
        let code = match &result {
            Err(kube::Error::Api(answer)) => answer.code,
            _ => 0,
        };
        let gone = code == 404 || code == 409;
        if result.is_ok() || refused(code) {
            // The API has it, or will not take it: what was held back for it waits for nothing any more.
            self.release();
        }
        match (status, result) {
            (Some(status), Ok(version)) => {
                self.api.took(status, version, version_of(&self.pod().metadata), self.node.parts.env.elapsed());
            }
            (None, Ok(_)) => self.delete = false,
            (None, Err(_)) if gone => self.delete = false,
            (Some(status), Err(error)) => {
                tracing::debug!(pod = self.rules.pod, %error, "the status cannot be written");
                if gone {
                    // It was deleted, or another has its name: the watch says so soon.
                    self.api.leave(status);
                } else if code == 413 {
                    // The same would be refused again: the next one is tried, and nothing waits for this one.
                    self.api.leave(status);
                    if !std::mem::replace(&mut self.too_large, true) {
                        let message =
                            "The pod's status is larger than the API takes, and is not shown: use fewer containers";
                        self.note(true, "StatusTooLarge", message.into(), None);
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

/// Whether an answer with that code says that the same request will not be taken later either.
fn refused(code: u16) -> bool {
    (400..500).contains(&code) && code != 408 && code != 429
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: &str) -> Arc<Resting<PodStatus>> {
        Arc::new(PodStatus { phase: Some(phase.into()), ..PodStatus::default() }.into())
    }

    #[test]
    fn what_others_overwrite_is_written_again_and_not_over_and_over() {
        let (ours, theirs) = (status("Running"), status("Failed"));
        let second = Duration::from_secs;
        let mut api = Api::default();
        assert!(api.dirty(&ours, None) && api.dirty(&ours, Some(&theirs.get())), "never written");
        api.took(ours.clone(), 7, 6, second(1));
        assert!(!api.dirty(&ours, Some(&theirs.get())), "the watch shows what was there before our write");
        api.saw(7);
        assert!(!api.dirty(&ours, Some(&ours.get())));
        api.saw(8);
        assert!(api.dirty(&ours, Some(&theirs.get())), "another one has written");
        api.found(true, &ours, second(2));
        api.found(true, &ours, second(4));
        assert_eq!(api.waits(&ours, second(4)), Some(second(3)), "from when it was found");
        assert_eq!(api.waits(&ours, second(7)), None);
        api.took(ours.clone(), 9, 8, second(7));
        api.saw(10);
        assert!(api.dirty(&ours, Some(&theirs.get())));
        api.found(true, &ours, second(8));
        assert_eq!(api.waits(&ours, second(8)), Some(second(9)), "the second time later");
        assert_eq!(api.waits(&theirs, second(8)), None, "a change of our own waits for nothing");
        assert_eq!(api.waits(&ours, second(17)), None);
    }

    #[test]
    fn a_watch_that_is_ahead_of_our_write_is_believed() {
        let mut api = Api::default();
        api.took(status("Running"), 7, 9, Duration::ZERO);
        assert!(api.dirty(&status("Running"), Some(&status("Failed").get())));
    }

    #[test]
    fn what_is_left_alone_stays_so_until_something_else_is_wanted() {
        let mut api = Api::default();
        api.leave(status("Failed"));
        api.saw(100);
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
        let codes = [403, 422, 400, 404].map(refused);
        assert_eq!((codes, [0, 408, 429, 500, 503, 200].map(refused)), ([true; 4], [false; 6]));
    }
}
