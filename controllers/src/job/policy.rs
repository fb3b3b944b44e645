//! Pod failure policy (KEP-3329), success policy (KEP-3998), and the back-off after failures.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyRule, SuccessPolicy};
use machinery_api::ObjectName;
use machinery_client::Pod;
use machinery_client::pod::ContainerStatus;

use super::index::Indexes;
use crate::pods;

/// The back-off before the first replacement of a failed pod; doubles with each consecutive failure.
const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// The maximum back-off.
const BACKOFF_MAX: Duration = Duration::from_secs(600);

/// The effect of a pod's failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Counts towards the back-off limit.
    Counts,
    /// Doesn't count.
    Ignored,
    /// Fails the index, and counts.
    FailsIndex,
    /// Fails the Job, for this reason.
    FailsJob(String),
}

/// The verdict of the Job's policy on a failed pod; other pods have none.
pub(super) fn verdict(job: &Job, pod: &Pod) -> Verdict {
    let policy = job.spec.as_ref().and_then(|spec| spec.pod_failure_policy.as_ref());
    let Some(policy) = policy.filter(|_| pods::phase(pod) == "Failed") else { return Verdict::Counts };
    for (at, rule) in policy.rules.iter().enumerate() {
        let Some(why) = matches(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignored,
            "FailIndex" => Verdict::FailsIndex,
            "FailJob" => Verdict::FailsJob(format!("{why} matching FailJob rule at index {at}")),
            _ => Verdict::Counts,
        };
    }
    Verdict::Counts
}

fn matches<'a>(rule: &PodFailurePolicyRule, pod: &'a Pod) -> Option<String> {
    let name = || {
        let part = |part: &'a Option<String>| part.as_deref().unwrap_or_default();
        ObjectName::new(part(&pod.metadata.namespace), part(&pod.metadata.name))
    };
    let status = pod.status.as_ref()?;
    if let Some(codes) = &rule.on_exit_codes {
        let all = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
        let mut named =
            all.filter(|container| codes.container_name.as_ref().is_none_or(|name| *name == container.name));
        return named.find_map(|container| {
            let code = exit_code(container).filter(|code| *code != 0)?;
            let listed = codes.values.contains(&code);
            let hit = if codes.operator == "In" { listed } else { !listed };
            hit.then(|| format!("Container {} for pod {} failed with exit code {code}", container.name, name()))
        });
    }
    let patterns = rule.on_pod_conditions.iter().flatten();
    patterns.into_iter().find_map(|pattern| {
        let mut conditions = status.conditions.iter().flatten();
        let wanted = pattern.status.as_deref().unwrap_or("True");
        let hit = conditions.any(|condition| condition.type_ == pattern.type_ && condition.status == wanted);
        hit.then(|| format!("Pod {} has condition {}", name(), pattern.type_))
    })
}

fn exit_code(container: &ContainerStatus) -> Option<i32> {
    container.state.as_ref()?.terminated.as_ref().map(|ended| ended.exit_code)
}

/// The first rule of the success policy that is met, in upstream's text.
pub(super) fn success(policy: &SuccessPolicy, succeeded: &Indexes, completions: i32) -> Option<String> {
    let met = policy.rules.iter().position(|rule| {
        let listed = rule.succeeded_indexes.as_deref().map(|text| Indexes::parse(text, completions));
        match (listed, rule.succeeded_count) {
            (Some(listed), Some(count)) => listed.common(succeeded) >= count,
            (Some(listed), None) => listed.common(succeeded) >= listed.len(),
            (None, Some(count)) => succeeded.len() >= count,
            (None, None) => false,
        }
    })?;
    Some(format!("Matched rules at index {met}"))
}

/// The back-off after `failures` consecutive failures.
pub(super) fn backoff(failures: u32) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    BACKOFF_FIRST.saturating_mul(2u32.saturating_pow(failures - 1)).min(BACKOFF_MAX)
}

/// Consecutive failures of a Job's pods, deleted pods included: the memory between passes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Failures {
    job_uid: String,
    in_a_row: u32,
    last: Option<Timestamp>,
    last_success: Option<Timestamp>,
    /// The uids of existing failed pods that are counted.
    counted: BTreeSet<String>,
}

impl Failures {
    /// Counts the failures since the last success. As upstream, ignored failures count here.
    pub(super) fn next<'a>(
        before: Option<&Self>,
        job_uid: &str,
        succeeded: impl Iterator<Item = &'a Pod>,
        failed: impl Iterator<Item = &'a Pod>,
    ) -> Self {
        let fresh = || Self { job_uid: job_uid.to_owned(), ..Self::default() };
        let mut now = before.filter(|before| before.job_uid == job_uid).cloned().unwrap_or_else(fresh);
        let last_success = succeeded.map(finished_at).max();
        let mut counted = std::mem::take(&mut now.counted);
        if last_success > now.last_success {
            (now.last_success, now.in_a_row, now.last) = (last_success, 0, None);
            counted.clear();
        }
        for pod in failed {
            let (uid, at) = (pod.metadata.uid.clone().unwrap_or_default(), finished_at(pod));
            if now.last_success.is_none_or(|success| at > success) && !counted.contains(&uid) {
                now.in_a_row = now.in_a_row.saturating_add(1);
                now.last = now.last.max(Some(at));
            }
            now.counted.insert(uid);
        }
        now
    }

    /// The end of the back-off.
    pub(super) fn wait_until(&self) -> Option<Timestamp> {
        Some(self.last?.saturating_add(backoff(self.in_a_row)).unwrap_or(Timestamp::MAX))
    }

    /// Whether there are no failures to remember.
    pub(super) fn is_empty(&self) -> bool {
        self.in_a_row == 0
    }
}

/// When a pod ended, from its status; for a deleted pod without an end, when its deletion was requested: its
/// `deletionTimestamp` is the end of the grace period.
pub(super) fn finished_at(pod: &Pod) -> Timestamp {
    let status = pod.status.as_ref();
    let ended = all_ended_at(pod);
    let not_ready = || {
        let conditions = status?.conditions.as_ref()?;
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "False")?;
        ready.last_transition_time.as_ref().map(|at| at.0)
    };
    let deleted = || {
        let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or(0));
        pod.metadata.deletion_timestamp.as_ref().map(|at| at.0.saturating_sub(grace).unwrap_or(at.0))
    };
    let created = || pod.metadata.creation_timestamp.as_ref().map(|at| at.0);
    ended.or_else(not_ready).or_else(deleted).or_else(created).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// When the last container or sidecar ended; none while one of them runs.
fn all_ended_at(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let is_sidecar = |container: &&ContainerStatus| {
        let mut init = pod.spec.iter().flat_map(|spec| spec.shape.init_containers.iter().flatten());
        init.any(|init| init.name.as_ref() == Some(&container.name) && init.restart_policy.as_deref() == Some("Always"))
    };
    let sidecars = status.init_container_statuses.iter().flatten().filter(is_sidecar);
    let ends = status
        .container_statuses
        .iter()
        .flatten()
        .chain(sidecars)
        .map(|container| container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|at| at.0));
    ends.collect::<Option<Vec<_>>>()?.into_iter().max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_pod_ends_with_its_last_container_or_at_the_request_of_its_deletion() {
        let pod = |metadata: &Value, containers: &Value, sidecars: &Value| -> Pod {
            let init = json!([{"name": "side", "restartPolicy": "Always"}, {"name": "once"}]);
            let spec = json!({"containers": [], "initContainers": init});
            let status = json!({"containerStatuses": containers, "initContainerStatuses": sidecars});
            serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
        };
        let container = |name: &str, at: Option<&str>| {
            let state = at.map_or(
                json!({"running": {}}),
                |at| json!({"terminated": {"exitCode": 1, "finishedAt": format!("2026-01-01T00:00:{at}Z")}}),
            );
            json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state})
        };
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let deleted = json!({"creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-01T00:00:40Z",
            "deletionGracePeriodSeconds": 30});
        let (ended, running) = (container("a", Some("20")), container("b", None));
        for (containers, sidecars, wanted) in [
            (json!([]), json!([]), 10),
            (json!([running]), json!([]), 10),
            (json!([ended, running]), json!([]), 10),
            (json!([ended]), json!([container("once", Some("55"))]), 20),
            (json!([ended]), json!([container("side", Some("25"))]), 25),
            (json!([ended]), json!([container("side", None)]), 10),
        ] {
            let at = finished_at(&pod(&deleted, &containers, &sidecars));
            assert_eq!(at.as_second() - start.as_second(), wanted, "{containers} {sidecars}");
        }
        let created = json!({"creationTimestamp": "2026-01-01T00:00:05Z"});
        assert_eq!(finished_at(&pod(&created, &json!([]), &json!([]))).as_second() - start.as_second(), 5);
    }

    fn job(rules: Value) -> Job {
        serde_json::from_value(json!({"metadata": {}, "spec": {"template": {}, "podFailurePolicy": {"rules": rules}}}))
            .unwrap()
    }

    fn failed(code: i32) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "sum-x", "namespace": "default"}, "status": {"phase": "Failed",
            "conditions": [{"type": "DisruptionTarget", "status": "True"}],
            "containerStatuses": [{"name": "sum", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": code}}}]}}))
        .unwrap()
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let exit = |action: &str, operator: &str, codes: &[i32]| json!({"action": action, "onExitCodes": {"operator": operator, "values": codes}});
        let rules =
            job(json!([exit("Ignore", "In", &[1]), exit("FailJob", "In", &[42]), exit("FailIndex", "NotIn", &[7])]));
        assert_eq!(verdict(&rules, &failed(1)), Verdict::Ignored);
        assert_eq!(
            verdict(&rules, &failed(42)),
            Verdict::FailsJob(
                "Container sum for pod default/sum-x failed with exit code 42 matching FailJob rule at index 1".into()
            )
        );
        assert_eq!(verdict(&rules, &failed(3)), Verdict::FailsIndex);
        assert_eq!(verdict(&rules, &failed(7)), Verdict::Counts);
        let rules =
            job(json!([{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]));
        assert_eq!(verdict(&rules, &failed(7)), Verdict::Ignored);
    }

    #[test]
    fn waits_double_up_to_ten_minutes() {
        let seconds: Vec<u64> = [0, 1, 2, 3, 7, 40].map(|n| backoff(n).as_secs()).to_vec();
        assert_eq!(seconds, [0, 10, 20, 40, 600, 600]);
    }
}
