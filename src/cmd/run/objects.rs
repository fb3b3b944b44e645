//! Builds the Deployment and Service of `coracle run`, and derives failures from the statuses of its pods. Pure.

use std::path::Path;

use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

/// The field manager.
pub(super) const MANAGER: &str = "coracle-run";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Maximum length of a DNS label, the name of a Service.
const LABEL_CHARS_MAX: usize = 63;
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

/// The deployed application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct App {
    pub(super) name: String,
    /// By digest, so that each change is a new image.
    pub(super) image: String,
    port: u16,
    replicas: u16,
    /// Whether it serves HTTP.
    pub(super) serves: bool,
}

impl App {
    pub(super) fn new(name: &str, (digest, exports): (&str, &[String]), port: u16, replicas: u16) -> Self {
        let image = format!("registry.local/{name}@{digest}");
        let exports = |wanted: &str| exports.iter().any(|export| export.starts_with(wanted));
        // A plugin is served over HTTP too; a core module is a command.
        let serves = exports("wasi:http/incoming-handler@") || !exports("wasi:cli/run@") && !exports("_start");
        Self { name: name.to_owned(), image, port, replicas, serves }
    }

    pub(super) fn digest(&self) -> &str {
        self.image.split_once('@').map_or("", |(_, digest)| digest)
    }

    pub(super) fn deployment(&self) -> Value {
        let mut container = json!({"name": self.name, "image": self.image});
        if self.serves {
            container["ports"] = json!([{"containerPort": self.port, "name": "http"}]);
        }
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": self.metadata(),
            "spec": {
                "replicas": self.replicas,
                "selector": {"matchLabels": {"app": self.name}},
                "template": {"metadata": {"labels": {"app": self.name}}, "spec": {"containers": [container]}},
            },
        })
    }

    pub(super) fn service(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": self.metadata(),
            "spec": {
                "type": "NodePort",
                "selector": {"app": self.name},
                "ports": [{"name": "http", "port": self.port, "targetPort": "http"}],
            },
        })
    }

    fn metadata(&self) -> Value {
        json!({"name": self.name, "labels": {"app": self.name, (MANAGED_BY): MANAGER}})
    }

    /// Why a pod of this image can't run, if so.
    pub(super) fn permanent_failure(&self, pod: &Pod) -> Option<String> {
        let image = pod.spec.as_ref()?.containers.first()?.image.as_deref();
        let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
        let waiting = status.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().filter(|reason| PERMANENT_WAITING_REASONS.contains(reason))?;
        let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let more = match (waiting.message.as_deref(), last) {
            (_, Some(ended)) if reason == "CrashLoopBackOff" => {
                let of = ended.message.as_deref().unwrap_or(&self.name);
                format!(": it ended with code {} ({of}); see `kubectl logs deployment/{}`", ended.exit_code, self.name)
            }
            (Some(message), _) => format!(": {message}"),
            (None, _) => String::new(),
        };
        (image == Some(self.image.as_str())).then(|| format!("{reason}{more}"))
    }
}

/// The message of the newest event about one of these pods.
pub(super) fn newest_message(events: &[Event], pods: &[Pod]) -> Option<String> {
    let names: Vec<&str> = pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
    let about = |event: &&Event| event.involved_object.name.as_deref().is_some_and(|name| names.contains(&name));
    // Nodes count repetitions in one event; its last time counts.
    let newest = events.iter().filter(about).max_by_key(|event| event.last_timestamp.as_ref().map(|at| at.0))?;
    newest.message.clone()
}

/// Whether an object was created by `coracle run`.
pub(super) fn is_ours(metadata: &ObjectMeta) -> bool {
    metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|manager| manager == MANAGER)
}

/// Whether a name is a DNS label that begins with a letter (RFC 1035, as a Service's name).
pub(super) fn is_label(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    name.len() <= LABEL_CHARS_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name.chars().all(plain)
}

/// The default name for a file.
pub(super) fn name_of(file: &Path) -> Option<String> {
    let stem = file.file_stem()?.to_str()?.to_lowercase();
    let plain: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let name: String =
        plain.trim_start_matches(|c: char| !c.is_ascii_lowercase()).chars().take(LABEL_CHARS_MAX).collect();
    Some(name.trim_end_matches('-').to_owned()).filter(|name| is_label(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels() {
        for (file, name) in [
            ("target/wasm32-wasip2/release/my_app.wasm", Some("my-app")),
            ("Hello.World.wasm", Some("hello-world")),
            ("9lives.wasm", Some("lives")),
            ("_.wasm", None),
            ("ü.wasm", None),
        ] {
            assert_eq!(name_of(Path::new(file)).as_deref(), name, "{file}");
        }
        assert!(is_label("a-1") && !is_label("1a") && !is_label("a-") && !is_label("A") && !is_label(&"a".repeat(64)));
    }

    #[test]
    fn the_newest_message_is_of_a_pod_of_the_app() {
        let event = |pod: &str, at: &str, message: &str| -> Event {
            serde_json::from_value(json!({
                "metadata": {}, "involvedObject": {"kind": "Pod", "name": pod}, "lastTimestamp": at, "message": message,
            }))
            .unwrap()
        };
        let pods: Vec<Pod> = vec![serde_json::from_value(json!({"metadata": {"name": "web-1"}})).unwrap()];
        let events = [
            event("web-1", "2026-01-01T00:00:20Z", "20 s so far"),
            event("web-1", "2026-01-01T00:00:10Z", "10 s so far"),
            event("other-1", "2026-01-01T00:00:30Z", "30 s so far"),
        ];
        assert_eq!(newest_message(&events, &pods).as_deref(), Some("20 s so far"));
        assert_eq!(newest_message(&events, &[]), None);
    }

    #[test]
    fn troubles_are_of_the_newest_image() {
        let exports = vec!["wasi:http/incoming-handler@0.2.3".to_owned()];
        let app = App::new("web", ("sha256:1", &exports), 80, 2);
        assert_eq!(app.digest(), "sha256:1");
        assert!(
            app.serves && app.deployment()["spec"]["replicas"] == 2 && app.service()["spec"]["ports"][0]["port"] == 80
        );
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
        assert_eq!(app.permanent_failure(&pod(&app.image, "ErrImagePull")).unwrap(), "ErrImagePull: because");
        assert!(app.permanent_failure(&pod(&app.image, "CrashLoopBackOff")).unwrap().contains("code 3"));
        assert_eq!(app.permanent_failure(&pod(&app.image, "ContainerCreating")), None);
        assert_eq!(app.permanent_failure(&pod("registry.local/web@sha256:0", "ErrImagePull")), None);
        assert!(is_ours(&serde_json::from_value(app.deployment()["metadata"].clone()).unwrap()));
        assert!(!is_ours(&ObjectMeta::default()));
    }
}
