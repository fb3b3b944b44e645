//! Builds the Deployment and Service of `coracle run`. Pure.

use std::ops::RangeInclusive;
use std::path::Path;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::settings::PodFlags;

/// The field manager.
pub(super) const MANAGER: &str = "coracle-run";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Annotation of objects that end with the session that has made them.
pub(super) const SESSION: &str = "coracle.dev/run";
const DEV: &str = "dev";
/// Prefix of annotations such as that of `kubectl rollout restart`.
const KUBECTL: &str = "kubectl.kubernetes.io/";
/// The default range of NodePorts.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// Maximum length of a DNS label, the name of a Service.
const LABEL_CHARS_MAX: usize = 63;
/// Flags of the Deployment and the Service.
#[derive(Debug, Clone)]
pub(super) struct AppFlags {
    pub(super) port: u16,
    pub(super) replicas: u16,
    /// Whether the objects are those of a `--dev` session.
    pub(super) dev: bool,
    /// Arguments of the module.
    pub(super) arguments: Vec<String>,
    pub(super) pod: PodFlags,
}

/// The deployed application.
#[derive(Debug, Clone)]
pub(super) struct App {
    pub(super) name: String,
    pub(super) namespace: String,
    /// By digest, so that each change is a new image.
    pub(super) image: String,
    flags: AppFlags,
    /// Whether it serves HTTP.
    pub(super) serves: bool,
}

impl App {
    pub(super) fn new(name: &str, namespace: &str, (digest, exports): (&str, &[String]), flags: &AppFlags) -> Self {
        let image = format!("registry.local/{name}@{digest}");
        let exports = |wanted: &str| exports.iter().any(|export| export.starts_with(wanted));
        // A plugin is served over HTTP too; a core module is a command.
        let serves = exports("wasi:http/incoming-handler@") || !exports("wasi:cli/run@") && !exports("_start");
        Self { name: name.to_owned(), namespace: namespace.to_owned(), image, flags: flags.clone(), serves }
    }

    pub(super) fn digest(&self) -> &str {
        self.image.split_once('@').map_or("", |(_, digest)| digest)
    }

    pub(super) fn deployment(&self) -> Value {
        let AppFlags { port, replicas, arguments, pod, .. } = &self.flags;
        let mut container = json!({"name": self.name, "image": self.image});
        if self.serves {
            container["ports"] = json!([{"containerPort": port, "name": "http"}]);
        }
        pod.add_to(&mut container, arguments);
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": self.metadata(),
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": self.name}},
                "template": {
                    "metadata": {"labels": {"app": self.name}, "annotations": pod.annotations(&self.name)},
                    "spec": {"containers": [container], "volumes": pod.volumes()},
                },
            },
        })
    }

    /// The Service; `node_port` for a new one.
    pub(super) fn service(&self, node_port: Option<u16>) -> Value {
        let mut port = json!({"name": "http", "port": self.flags.port, "targetPort": "http"});
        if let Some(node_port) = node_port {
            port["nodePort"] = node_port.into();
        }
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": self.metadata(),
            "spec": {"type": "NodePort", "selector": {"app": self.name}, "ports": [port]},
        })
    }

    /// A run without `--dev` keeps what a session before it has made.
    fn metadata(&self) -> Value {
        let session = if self.flags.dev { json!(DEV) } else { Value::Null };
        json!({
            "name": self.name,
            "labels": {"app": self.name, (MANAGED_BY): MANAGER},
            "annotations": {(SESSION): session},
        })
    }
}

/// The patch of a Deployment that exists. Its pods lose the annotations of earlier runs, and keep those of kubectl.
pub(super) fn patch_of_deployment(mut wanted: Value, there: &Deployment) -> Value {
    let template = there.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref());
    let earlier = template.and_then(|metadata| metadata.annotations.as_ref());
    if let Some(annotations) = wanted["spec"]["template"]["metadata"]["annotations"].as_object_mut() {
        for key in earlier.into_iter().flatten().map(|(key, _)| key).filter(|key| !key.starts_with(KUBECTL)) {
            annotations.entry(key.clone()).or_insert(Value::Null);
        }
    }
    patch_of(wanted)
}

/// A new object: null is a value in a map of one.
pub(super) fn new_of(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut()
        && metadata["annotations"][SESSION].is_null()
    {
        metadata.remove("annotations");
    }
    object
}

/// The patch of an object that exists: a session of `--dev` removes only what it has made itself.
pub(super) fn patch_of(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut()
        && metadata["annotations"][SESSION].is_string()
    {
        metadata.remove("annotations");
    }
    object
}

/// The NodePort that a new Service asks for: the same in each cluster, so that its address can be bookmarked.
pub(super) fn node_port(namespace: &str, name: &str) -> u16 {
    // FNV-1a.
    let hash = namespace
        .bytes()
        .chain([b'/'])
        .chain(name.bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let count = u64::from(NODE_PORTS.end() - NODE_PORTS.start()) + 1;
    NODE_PORTS.start() + u16::try_from(hash % count).unwrap_or(0)
}

/// Whether an object ends with the session of `--dev` that has made it.
pub(super) fn ends_with_session(metadata: &ObjectMeta) -> bool {
    let session = metadata.annotations.as_ref().and_then(|annotations| annotations.get(SESSION));
    is_ours(metadata) && session.is_some_and(|session| session == DEV)
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
pub(crate) fn name_of(file: &Path) -> Option<String> {
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

    fn app(serves: bool, pod: PodFlags) -> App {
        let exports = vec![if serves { "wasi:http/incoming-handler@0.2.3" } else { "_start" }.to_owned()];
        App::new(
            "web",
            "team",
            ("sha256:1", &exports),
            &AppFlags { port: 80, replicas: 2, dev: true, arguments: vec!["x".into()], pod },
        )
    }

    #[test]
    fn objects_have_the_values_of_flags() {
        let app_of = |serves| app(serves, PodFlags::default());
        let server = app_of(true);
        assert_eq!(server.digest(), "sha256:1");
        let deployment = server.deployment();
        assert_eq!(deployment["spec"]["replicas"], 2);
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["containers"][0]["ports"], json!([{"containerPort": 80, "name": "http"}]));
        assert_eq!(pod["containers"][0]["args"], json!(["x"]));
        assert_eq!(pod["volumes"], Value::Null, "a patch removes the volumes of an earlier run");
        assert_eq!(server.service(None)["spec"]["ports"][0], json!({"name": "http", "port": 80, "targetPort": "http"}));
        assert_eq!(server.service(Some(30_001))["spec"]["ports"][0]["nodePort"], 30_001);
        assert!(is_ours(&serde_json::from_value(deployment["metadata"].clone()).unwrap()));
        assert!(!is_ours(&ObjectMeta::default()));
        let command = app_of(false);
        assert!(
            !command.serves && command.deployment()["spec"]["template"]["spec"]["containers"][0]["ports"].is_null()
        );
    }

    #[test]
    fn node_ports_are_of_the_range_and_differ() {
        let ports: std::collections::BTreeSet<u16> =
            (0..100).map(|n| node_port("default", &format!("app-{n}"))).collect();
        assert!(ports.len() > 90 && ports.iter().all(|port| NODE_PORTS.contains(port)), "{ports:?}");
        assert_ne!(node_port("a", "web"), node_port("b", "web"));
        assert_eq!(node_port("default", "web"), node_port("default", "web"));
    }

    #[test]
    fn a_run_without_annotations_removes_those_of_earlier_ones() {
        let there = json!({"metadata": {}, "spec": {"selector": {}, "template": {"metadata": {"annotations": {
            "host.coracle.dev/web": "config", "kubectl.kubernetes.io/restartedAt": "now",
        }}}}});
        let there: Deployment = serde_json::from_value(there).unwrap();
        let patch = patch_of_deployment(app(true, PodFlags::default()).deployment(), &there);
        let annotations = &patch["spec"]["template"]["metadata"]["annotations"];
        assert_eq!(annotations, &json!({"host.coracle.dev/web": null}));
    }

    #[test]
    fn a_dev_session_labels_its_objects() {
        let made = app(true, PodFlags::default());
        assert_eq!(made.deployment()["metadata"]["annotations"][SESSION], "dev");
        assert_eq!(patch_of(made.deployment())["metadata"]["annotations"], Value::Null);
        let flags = AppFlags { port: 80, replicas: 1, dev: false, arguments: Vec::new(), pod: PodFlags::default() };
        let kept = App::new("web", "team", ("sha256:1", &[]), &flags);
        assert!(kept.deployment()["metadata"]["annotations"].as_object().unwrap()[SESSION].is_null());
        assert_eq!(patch_of(kept.service(None)), kept.service(None));
        assert_eq!(new_of(kept.service(None))["metadata"]["annotations"], Value::Null);
        assert_eq!(new_of(made.service(None)), made.service(None));
        let metadata = |object: Value| serde_json::from_value(object["metadata"].clone()).unwrap();
        assert!(ends_with_session(&metadata(made.service(None))));
        assert!(!ends_with_session(&metadata(new_of(kept.service(None)))));
    }
}
