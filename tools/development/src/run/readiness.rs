//! Workloads of `coracle run` and their readiness, from their objects as JSON. Pure.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Pod};
use machinery_api::ObjectKey;
use machinery_client::Kind;
use serde::Deserialize as _;
use serde_json::Value;

use crate::rollout::is_rolled_out;

/// Waiting reasons of a container that don't resolve by themselves.
const PERMANENT_WAITING_REASONS: [&str; 8] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "RegistryUnavailable",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
];

/// An object with pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) kind: Kind,
    pub(super) key: ObjectKey,
    /// Label selector of its pods; empty for a Pod.
    pub(super) selector: String,
    /// Images of its pod template's containers.
    pub(super) images: Vec<String>,
}

impl Workload {
    /// The workload that an object describes; `None` for other kinds.
    pub(super) fn of(kind: &Kind, key: &ObjectKey, object: &Value) -> Option<Self> {
        let (template, selector) = match (&*kind.group, &*kind.kind) {
            ("", "Pod") => (object, String::new()),
            ("batch", "Job") => (&object["spec"]["template"], format!("job-name={}", key.name)),
            ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") => {
                let labels = object["spec"]["selector"]["matchLabels"].as_object()?;
                let labels =
                    labels.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()));
                (&object["spec"]["template"], labels.collect::<Vec<_>>().join(","))
            }
            _ => return None,
        };
        let containers = template["spec"]["containers"].as_array().into_iter().flatten();
        let images = containers.filter_map(|container| container["image"].as_str().map(str::to_owned)).collect();
        Some(Self { kind: kind.clone(), key: key.clone(), selector, images })
    }

    /// As kubectl names it: `deployment/web`.
    pub(super) fn label(&self) -> String {
        format!("{}/{}", self.kind.kind.to_lowercase(), self.key.name)
    }

    /// Whether the rollout is complete, by the rules of `kubectl rollout status`, without old pods.
    ///
    /// # Errors
    /// It has failed.
    pub(super) fn is_ready(&self, object: &Value) -> Result<bool, String> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let number = |of: &Value, name: &str, default: i64| of[name].as_i64().unwrap_or(default);
        let observed = number(status, "observedGeneration", 0) >= number(&object["metadata"], "generation", 0);
        let wanted = number(spec, "replicas", 1);
        Ok(match &*self.kind.kind {
            "Deployment" => Deployment::deserialize(object).is_ok_and(|deployment| is_rolled_out(&deployment)),
            "StatefulSet" => {
                let updates = spec["updateStrategy"]["type"] != "OnDelete"
                    && number(&spec["updateStrategy"]["rollingUpdate"], "partition", 0) == 0;
                let updated = !updates || number(status, "updatedReplicas", 0) == wanted;
                observed && updated && number(status, "availableReplicas", 0) == wanted
            }
            "DaemonSet" => {
                let nodes = number(status, "desiredNumberScheduled", 0);
                let all = ["updatedNumberScheduled", "numberAvailable"];
                observed && all.iter().all(|name| number(status, name, 0) == nodes)
            }
            "ReplicaSet" => observed && number(status, "availableReplicas", 0) == wanted,
            "Job" => {
                if let Some(failed) = true_condition(status, "Failed") {
                    return Err(failed["message"].as_str().unwrap_or("it has failed").to_owned());
                }
                true_condition(status, "Complete").is_some() || number(status, "ready", 0) > 0
            }
            "Pod" if status["phase"] == "Failed" => {
                return Err(status["message"].as_str().unwrap_or("it has failed").to_owned());
            }
            _ => status["phase"] == "Succeeded" || true_condition(status, "Ready").is_some(),
        })
    }

    /// Why a pod of these images can't run, if so. Pods of an earlier revision are ignored.
    pub(super) fn permanent_failure(&self, pod: &Pod) -> Option<String> {
        let containers = &pod.spec.as_ref()?.containers;
        let is_current = containers.iter().map(|container| container.image.as_ref()).eq(self.images.iter().map(Some));
        if !is_current {
            return None;
        }
        pod.status.as_ref()?.container_statuses.as_ref()?.iter().find_map(|status| {
            let waiting = status.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.as_deref().filter(|reason| PERMANENT_WAITING_REASONS.contains(reason))?;
            let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
            let more = match (waiting.message.as_deref(), last) {
                (_, Some(ended)) if reason == "CrashLoopBackOff" => {
                    let of = ended.message.as_deref().unwrap_or(&status.name);
                    format!(": it ended with code {} ({of}); see `kubectl logs {}`", ended.exit_code, self.label())
                }
                (Some(message), _) => format!(": {message}"),
                (None, _) => String::new(),
            };
            Some(format!("{reason}{more}"))
        })
    }
}

fn true_condition<'a>(status: &'a Value, wanted: &str) -> Option<&'a Value> {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.find(|condition| condition["type"] == wanted && condition["status"] == "True")
}

/// The newest message about one of these pods that says what it waits for: a pull, a compilation or a warning.
pub(super) fn newest_message(events: &[Event], pods: &[Pod]) -> Option<String> {
    let uids: Vec<&str> = pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
    let about = |event: &&Event| {
        event.involved_object.uid.as_deref().is_some_and(|uid| uids.contains(&uid))
            && (matches!(event.reason.as_deref(), Some("Compiling" | "Pulling"))
                || event.type_.as_deref() == Some("Warning"))
    };
    // Nodes count repetitions in one event; its last time counts.
    let newest = events.iter().filter(about).max_by_key(|event| event.last_timestamp.as_ref().map(|at| at.0))?;
    newest.message.clone()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
    use k8s_openapi::api::batch::v1::Job;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn workload(kind: &Kind, object: &Value) -> Option<Workload> {
        Workload::of(kind, &ObjectKey::new("default", "web"), object)
    }

    fn template() -> Value {
        json!({"spec": {"containers": [{"name": "web", "image": "registry.local/web@sha256:1"}]}})
    }

    #[test]
    fn readiness_is_that_of_rollout_status() {
        let selector = json!({"matchLabels": {"app": "web"}});
        let spec = json!({"replicas": 2, "selector": selector, "template": template()});
        let ready = |kind: Kind, spec: &Value, status: Value| {
            let object = json!({"metadata": {"generation": 3}, "spec": spec, "status": status});
            workload(&kind, &object).unwrap().is_ready(&object)
        };
        let deployment = Kind::of::<Deployment>;
        let all = |replicas: i64, observed: i64| json!({"observedGeneration": observed, "replicas": replicas, "updatedReplicas": 2, "availableReplicas": 2});
        assert_eq!(ready(deployment(), &spec, all(2, 3)), Ok(true));
        assert_eq!(ready(deployment(), &spec, all(3, 3)), Ok(false), "an old pod");
        assert_eq!(ready(deployment(), &spec, all(2, 2)), Ok(false), "an older generation");
        assert_eq!(ready(deployment(), &spec, Value::Null), Ok(false));
        assert_eq!(ready(Kind::of::<StatefulSet>(), &spec, all(2, 3)), Ok(true));
        let behind = json!({"observedGeneration": 3, "updatedReplicas": 1, "availableReplicas": 2});
        assert_eq!(ready(Kind::of::<StatefulSet>(), &spec, behind.clone()), Ok(false));
        let mut by_hand = spec.clone();
        by_hand["updateStrategy"] = json!({"type": "OnDelete"});
        assert_eq!(ready(Kind::of::<StatefulSet>(), &by_hand, behind), Ok(true));
        let daemons = |available: i64| {
            json!({"observedGeneration": 3, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2,
                   "numberAvailable": available})
        };
        assert_eq!(ready(Kind::of::<DaemonSet>(), &spec, daemons(2)), Ok(true));
        assert_eq!(ready(Kind::of::<DaemonSet>(), &spec, daemons(1)), Ok(false));
        let condition = |of: &str| json!({"conditions": [{"type": of, "status": "True", "message": "why"}]});
        assert_eq!(ready(Kind::of::<Job>(), &spec, condition("Complete")), Ok(true));
        assert_eq!(ready(Kind::of::<Job>(), &spec, json!({"ready": 1})), Ok(true));
        assert_eq!(ready(Kind::of::<Job>(), &spec, json!({"active": 1})), Ok(false));
        assert_eq!(ready(Kind::of::<Job>(), &spec, condition("Failed")), Err("why".into()));
        assert_eq!(ready(Kind::of::<Pod>(), &spec, condition("Ready")), Ok(true));
        assert_eq!(ready(Kind::of::<Pod>(), &spec, json!({"phase": "Succeeded"})), Ok(true));
        assert!(ready(Kind::of::<Pod>(), &spec, json!({"phase": "Failed"})).is_err());
        assert_eq!(workload(&Kind::of::<ConfigMap>(), &json!({})), None);
    }

    #[test]
    fn failures_are_of_the_wanted_images() {
        let object = json!({"spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template()}});
        let web = workload(&Kind::of::<Deployment>(), &object).unwrap();
        assert_eq!((web.label().as_str(), web.selector.as_str()), ("deployment/web", "app=web"));
        let pod = |image: &str, reason: &str| -> Pod {
            let last = json!({"terminated": {"exitCode": 3}});
            serde_json::from_value(json!({
                "metadata": {},
                "spec": {"containers": [{"name": "web", "image": image}]},
                "status": {"containerStatuses": [{
                    "name": "web", "image": image, "imageID": "", "ready": false, "restartCount": 1, "lastState": last,
                    "state": {"waiting": {"reason": reason, "message": "because"}},
                }]},
            }))
            .unwrap()
        };
        let image = &web.images[0];
        assert_eq!(web.permanent_failure(&pod(image, "ErrImagePull")).unwrap(), "ErrImagePull: because");
        let crashed = web.permanent_failure(&pod(image, "CrashLoopBackOff")).unwrap();
        assert!(crashed.contains("code 3") && crashed.contains("kubectl logs deployment/web"), "{crashed}");
        assert_eq!(web.permanent_failure(&pod(image, "ContainerCreating")), None);
        assert_eq!(web.permanent_failure(&pod("registry.local/web@sha256:0", "ErrImagePull")), None);
    }

    #[test]
    fn the_newest_message_is_of_a_pod_of_the_app() {
        let event = |uid: &str, at: &str, reason: &str, message: &str| -> Event {
            let kind = if reason == "FailedMount" { "Warning" } else { "Normal" };
            serde_json::from_value(json!({
                "metadata": {}, "involvedObject": {"kind": "Pod", "uid": uid}, "lastTimestamp": at, "message": message,
                "reason": reason, "type": kind,
            }))
            .unwrap()
        };
        let pods: Vec<Pod> = vec![serde_json::from_value(json!({"metadata": {"uid": "u1"}})).unwrap()];
        let mut events = vec![
            event("u1", "2026-01-01T00:00:20Z", "Compiling", "20 s so far"),
            event("u1", "2026-01-01T00:00:10Z", "Compiling", "10 s so far"),
            event("u2", "2026-01-01T00:00:30Z", "Compiling", "30 s so far"),
            event("u1", "2026-01-01T00:00:40Z", "Scheduled", "assigned"),
        ];
        assert_eq!(newest_message(&events, &pods).as_deref(), Some("20 s so far"));
        events.push(event("u1", "2026-01-01T00:00:50Z", "FailedMount", "no such claim"));
        assert_eq!(newest_message(&events, &pods).as_deref(), Some("no such claim"));
        assert_eq!(newest_message(&events, &[]), None);
    }
}
