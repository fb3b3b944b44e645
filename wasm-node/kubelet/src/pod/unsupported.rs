//! Which fields of a Pod this node doesn't act on. Pure: a pod that sets one stays Pending and is told so.
//!
//! Accepted without effect, as they mean nothing without Linux: the security contexts, `hostUsers`, `hostPID`, `hostIPC`,
//! `shareProcessNamespace`, `mountPropagation`, and what only the scheduler or the API server reads.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};
use serde_json::Value;

use super::state::Class;
use crate::spec::containers;
use crate::volume::{host_path, is_read_only};

/// A field, and what is the matter with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// `spec.containers[0].restartPolicy`.
    pub path: String,
    /// In words.
    pub why: &'static str,
}

const NOT_YET: &str = "is not acted on by this node yet";

const NO_DEVICES: &str = "WASI lets a guest open neither sockets nor devices of the host";
const NO_HUGE_PAGES: &str = "huge pages are not there for guests: use \"Memory\" or none";
const NO_TRUST_BUNDLES: &str = "the API server doesn't serve clustertrustbundles.certificates.k8s.io yet";
const NO_POD_CERTIFICATES: &str =
    "the API server signs no pod certificates yet: podcertificaterequests.certificates.k8s.io is not served";
/// Every such field of a pod, in order.
#[must_use]
pub fn fields(pod: &Pod) -> Vec<Unsupported> {
    let mut found = Found::default();
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    found.pod(spec);
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        found.volume(&format!("spec.volumes[{index}]"), volume);
    }
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        found.container(&format!("spec.initContainers[{index}]"), container);
    }
    for (index, container) in spec.containers.iter().enumerate() {
        found.container(&format!("spec.containers[{index}]"), container);
    }
    found.0
}

/// The same of one of its ephemeral containers: those come when the pod runs, and it runs on.
#[must_use]
pub fn ephemeral_fields(pod: &Pod, name: &str) -> Vec<Unsupported> {
    let mut found = Found::default();
    let spec = containers::spec(pod);
    let all = containers::each(&spec).filter(|(class, _)| *class == Class::Ephemeral);
    for (index, (_, container)) in all.enumerate().filter(|(_, (_, container))| container.name == name) {
        found.container(&format!("spec.ephemeralContainers[{index}]"), &container);
    }
    found.0
}

/// One sentence for the container's waiting message.
#[must_use]
pub fn sentence(fields: &[Unsupported]) -> String {
    let each: Vec<String> = fields.iter().map(|field| format!("{}: {}", field.path, field.why)).collect();
    each.join("; ")
}

#[derive(Default)]
struct Found(Vec<Unsupported>);

impl Found {
    fn add(&mut self, path: impl Into<String>, why: &'static str) {
        self.0.push(Unsupported { path: path.into(), why });
    }

    fn when(&mut self, set: bool, path: impl Into<String>) {
        if set {
            self.add(path, NOT_YET);
        }
    }

    fn pod(&mut self, spec: &PodSpec) {
        let some = |list: Option<usize>| list.is_some_and(|length| length > 0);
        self.when(some(spec.resource_claims.as_ref().map(Vec::len)), "spec.resourceClaims");
        self.when(spec.scheduling_group.is_some(), "spec.schedulingGroup");
    }

    fn volume(&mut self, path: &str, volume: &Volume) {
        if let Some(empty) = &volume.empty_dir {
            let medium = empty.medium.as_deref().unwrap_or_default();
            if !matches!(medium, "" | "Memory") {
                self.add(format!("{path}.emptyDir.medium"), NO_HUGE_PAGES);
            }
        }
        if let Some(projected) = &volume.projected {
            for (index, source) in projected.sources.iter().flatten().enumerate() {
                let path = format!("{path}.projected.sources[{index}]");
                if source.cluster_trust_bundle.is_some() {
                    self.add(format!("{path}.clusterTrustBundle"), NO_TRUST_BUNDLES);
                }
                if source.pod_certificate.is_some() {
                    self.add(format!("{path}.podCertificate"), NO_POD_CERTIFICATES);
                }
            }
        }
        if let Some(host) = &volume.host_path {
            let kind = host.type_.as_deref().unwrap_or_default();
            if !host_path::TYPES.contains(&kind) {
                self.add(format!("{path}.hostPath.type"), NO_DEVICES);
            }
        }
        if is_read_only(volume) || volume.empty_dir.is_some() || volume.host_path.is_some() {
            return;
        }
        // What is left by its name on the wire: persistentVolumeClaim, csi …
        let value = serde_json::to_value(volume).unwrap_or(Value::Null);
        let kinds = value.as_object().into_iter().flatten().map(|(kind, _)| kind.as_str());
        // A volume with no source is an emptyDir (upstream's default).
        if let Some(kind) = kinds.into_iter().find(|kind| *kind != "name") {
            self.add(format!("{path}.{kind}"), NOT_YET);
        }
    }

    fn container(&mut self, path: &str, container: &Container) {
        let devices = container.volume_devices.as_ref();
        self.when(devices.is_some_and(|devices| !devices.is_empty()), format!("{path}.volumeDevices"));
        let claims = container.resources.as_ref().and_then(|resources| resources.claims.as_ref());
        self.when(claims.is_some_and(|claims| !claims.is_empty()), format!("{path}.resources.claims"));
        for (index, port) in container.ports.iter().flatten().enumerate() {
            let path = format!("{path}.ports[{index}]");
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            self.when(protocol != "TCP", format!("{path}.protocol"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn paths(spec: Value) -> Vec<String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
        fields(&pod).into_iter().map(|field| field.path).collect()
    }

    #[test]
    fn each_field_that_is_not_acted_on_is_named() {
        let container = |more: Value| {
            let mut container = json!({"name": "a", "image": "i"});
            container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"containers": [container]})
        };
        for (spec, path) in [
            (
                json!({"containers": [{"name": "a"}, {"name": "b", "volumeDevices": [{"name": "v", "devicePath": "/d"}]}]}),
                "spec.containers[1].volumeDevices",
            ),
            (
                json!({"containers": [], "initContainers": [{"name": "i"}, {"name": "j", "volumeDevices": [{"name": "v", "devicePath": "/d"}]}]}),
                "spec.initContainers[1].volumeDevices",
            ),
            (
                json!({"containers": [], "volumes": [{"name": "v", "hostPath": {"path": "/", "type": "Socket"}}]}),
                "spec.volumes[0].hostPath.type",
            ),
            (
                json!({"containers": [], "volumes": [{"name": "v", "emptyDir": {"medium": "HugePages-2Mi"}}]}),
                "spec.volumes[0].emptyDir.medium",
            ),
            (
                json!({"containers": [], "volumes": [{"name": "v", "projected": {"sources": [{"clusterTrustBundle": {"path": "p"}}]}}]}),
                "spec.volumes[0].projected.sources[0].clusterTrustBundle",
            ),
            (
                container(json!({"ports": [{"containerPort": 80, "protocol": "UDP"}]})),
                "spec.containers[0].ports[0].protocol",
            ),
        ] {
            assert_eq!(paths(spec), [path]);
        }
    }

    #[test]
    fn an_ephemeral_container_is_looked_at_alone() {
        let spec = json!({"containers": [], "ephemeralContainers": [{"name": "e"}, {"name": "f", "volumeDevices": [{"name": "v", "devicePath": "/d"}]}]});
        assert_eq!(paths(spec.clone()), Vec::<String>::new());
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
        let of = |name: &str| ephemeral_fields(&pod, name).into_iter().map(|field| field.path).collect::<Vec<_>>();
        assert_eq!((of("e"), of("f")), (vec![], vec!["spec.ephemeralContainers[1].volumeDevices".to_owned()]));
    }

    #[test]
    fn what_means_nothing_here_or_is_acted_on_passes() {
        let found = paths(json!({
            "hostUsers": false, "shareProcessNamespace": true, "subdomain": "s", "hostname": "h", "setHostnameAsFQDN": true,
            "hostAliases": [{"ip": "192.0.2.1"}], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.1"]},
            "securityContext": {"runAsUser": 1, "fsGroup": 2, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "configMap": {"name": "c"}}, {"name": "n"},
                {"name": "i", "image": {"reference": "r", "pullPolicy": "Always"}}],
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
            "containers": [{
                "restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart"}],
                "name": "a", "image": "i", "securityContext": {"privileged": true, "capabilities": {"drop": ["ALL"]}},
                "lifecycle": {"preStop": {"exec": {}}, "postStart": {"tcpSocket": {"port": 1}}}, "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "livenessProbe": {"tcpSocket": {"port": "web", "host": "h"}}, "startupProbe": {"grpc": {"port": 1}},
                "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTPS", "host": "h"}},
            }],
        }));
        assert_eq!(found, Vec::<String>::new());
    }
}
