//! Pod spec fields that nodes reject, with a hint: the kubelet keeps such a pod Pending and reports the field, the API
//! server warns about it. Pure.
//!
//! Accepted without effect, since they are meaningless without Linux: the security contexts, `hostUsers`, `hostPID`,
//! `hostIPC`, `shareProcessNamespace`, `mountPropagation`, and fields read only by the scheduler or the API server.

use serde_json::Value;

/// An unsupported field with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// `spec.containers[0].restartPolicy`.
    pub path: String,
    /// The reason and a hint.
    pub why: &'static str,
}

/// Supported types of `hostPath`; guests can't use sockets and devices.
pub const HOST_PATH_TYPES: [&str; 5] = ["", "Directory", "DirectoryOrCreate", "File", "FileOrCreate"];

/// Supported volume sources.
const VOLUMES: [&str; 9] = [
    "configMap",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "hostPath",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

const NO_DRIVERS: &str = "nodes have no drivers of resources, as WASI gives a guest no devices: leave it out";
const NO_GANGS: &str = "pods are placed one by one here: leave it out";
const NO_DATAGRAMS: &str = "nodes listen for TCP only: leave the hostPort out, or make the port TCP";
const NO_BLOCK_DEVICES: &str = "WASI gives a guest no block devices: use volumeMode Filesystem and volumeMounts";
const NO_SUCH_VOLUME: &str =
    "nodes mount no such volume: use a persistentVolumeClaim, emptyDir, hostPath or image in its place";
const NO_DEVICES: &str = "WASI lets a guest open neither sockets nor devices of the host";
const NO_HUGE_PAGES: &str = "huge pages are not there for guests: use \"Memory\" or none";
const NO_TRUST_BUNDLES: &str = "the API server doesn't serve clustertrustbundles.certificates.k8s.io";
const NO_POD_CERTIFICATES: &str =
    "the API server signs no pod certificates: podcertificaterequests.certificates.k8s.io is not served";

/// The unsupported fields of a pod spec at path `at` (`spec`, `spec.template.spec`), in order.
#[must_use]
pub fn fields(spec: &Value, at: &str) -> Vec<Unsupported> {
    let mut found = UnsupportedFields::default();
    found.when(is_given(&spec["resourceClaims"]), NO_DRIVERS, || format!("{at}.resourceClaims"));
    found.when(!spec["schedulingGroup"].is_null(), NO_GANGS, || format!("{at}.schedulingGroup"));
    for (index, volume) in list(&spec["volumes"]) {
        found.volume(volume, || format!("{at}.volumes[{index}]"));
    }
    for of in ["initContainers", "containers"] {
        for (index, container) in list(&spec[of]) {
            found.container(container, || format!("{at}.{of}[{index}]"));
        }
    }
    found.0
}

/// The unsupported fields of one ephemeral container, or of all. They are added to a running pod, which keeps running.
#[must_use]
pub fn ephemeral(spec: &Value, at: &str, name: Option<&str>) -> Vec<Unsupported> {
    let mut found = UnsupportedFields::default();
    let is_selected = |container: &Value| name.is_none_or(|name| container["name"] == name);
    for (index, container) in list(&spec["ephemeralContainers"]).filter(|(_, container)| is_selected(container)) {
        found.container(container, || format!("{at}.ephemeralContainers[{index}]"));
    }
    found.0
}

/// One sentence about all fields.
#[must_use]
pub fn sentence(fields: &[Unsupported]) -> String {
    let each: Vec<String> = fields.iter().map(|field| format!("{}: {}", field.path, field.why)).collect();
    each.join("; ")
}

fn list(value: &Value) -> impl Iterator<Item = (usize, &Value)> {
    value.as_array().into_iter().flatten().enumerate()
}

fn is_given(value: &Value) -> bool {
    value.as_array().is_some_and(|list| !list.is_empty())
}

fn text<'a>(value: &'a Value, otherwise: &'a str) -> &'a str {
    value.as_str().unwrap_or(otherwise)
}

#[derive(Default)]
struct UnsupportedFields(Vec<Unsupported>);

impl UnsupportedFields {
    fn add(&mut self, path: String, why: &'static str) {
        self.0.push(Unsupported { path, why });
    }

    fn when(&mut self, set: bool, why: &'static str, path: impl FnOnce() -> String) {
        if set {
            self.add(path(), why);
        }
    }

    fn volume(&mut self, volume: &Value, path: impl Fn() -> String) {
        if !matches!(text(&volume["emptyDir"]["medium"], ""), "" | "Memory") {
            self.add(format!("{}.emptyDir.medium", path()), NO_HUGE_PAGES);
        }
        for (index, source) in list(&volume["projected"]["sources"]) {
            for (of, why) in [("clusterTrustBundle", NO_TRUST_BUNDLES), ("podCertificate", NO_POD_CERTIFICATES)] {
                if !source[of].is_null() {
                    self.add(format!("{}.projected.sources[{index}].{of}", path()), why);
                }
            }
        }
        if !HOST_PATH_TYPES.contains(&text(&volume["hostPath"]["type"], "")) {
            self.add(format!("{}.hostPath.type", path()), NO_DEVICES);
        }
        // A volume without a source is an emptyDir (upstream's default).
        let sources = volume.as_object().into_iter().flatten().filter(|(_, source)| !source.is_null());
        let mut kinds = sources.map(|(kind, _)| kind.as_str()).filter(|kind| *kind != "name").peekable();
        if let Some(first) = kinds.peek().copied()
            && !kinds.any(|kind| VOLUMES.contains(&kind))
        {
            self.add(format!("{}.{first}", path()), NO_SUCH_VOLUME);
        }
    }

    fn container(&mut self, container: &Value, path: impl Fn() -> String) {
        self.when(is_given(&container["volumeDevices"]), NO_BLOCK_DEVICES, || format!("{}.volumeDevices", path()));
        self.when(is_given(&container["resources"]["claims"]), NO_DRIVERS, || format!("{}.resources.claims", path()));
        for (index, port) in list(&container["ports"]) {
            // Without a hostPort the field is informative: the guest may or may not listen.
            let wanted =
                text(&port["protocol"], "TCP") != "TCP" && port["hostPort"].as_i64().is_some_and(|port| port != 0);
            self.when(wanted, NO_DATAGRAMS, || format!("{}.ports[{index}].protocol", path()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn paths(spec: Value) -> Vec<String> {
        fields(&spec, "spec").into_iter().map(|field| field.path).collect()
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
                json!({"containers": [], "volumes": [{"name": "v", "nfs": {"server": "s", "path": "/"}}]}),
                "spec.volumes[0].nfs",
            ),
            (
                container(json!({"ports": [{"containerPort": 80, "hostPort": 80, "protocol": "UDP"}]})),
                "spec.containers[0].ports[0].protocol",
            ),
        ] {
            assert_eq!(paths(spec), [path]);
        }
    }

    #[test]
    fn a_template_is_named_as_it_stands() {
        let spec = json!({"containers": [{"name": "a", "ports": [{"protocol": "SCTP", "hostPort": 1}]}]});
        assert_eq!(
            sentence(&fields(&spec, "spec.template.spec")),
            format!("spec.template.spec.containers[0].ports[0].protocol: {NO_DATAGRAMS}")
        );
    }

    #[test]
    fn an_ephemeral_container_is_checked_alone() {
        let spec = json!({"containers": [], "ephemeralContainers": [{"name": "e"}, {"name": "f", "volumeDevices": [{"name": "v", "devicePath": "/d"}]}]});
        assert_eq!(paths(spec.clone()), Vec::<String>::new());
        let of =
            |name: &str| ephemeral(&spec, "spec", Some(name)).into_iter().map(|field| field.path).collect::<Vec<_>>();
        assert_eq!((of("e"), of("f")), (vec![], vec!["spec.ephemeralContainers[1].volumeDevices".to_owned()]));
    }

    #[test]
    fn supported_and_meaningless_fields_pass() {
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
                "lifecycle": {"preStop": {"exec": {}}, "postStart": {"tcpSocket": {"port": 1}}}, "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}, {"containerPort": 53, "protocol": "UDP"}],
                "livenessProbe": {"tcpSocket": {"port": "web", "host": "h"}}, "startupProbe": {"grpc": {"port": 1}},
                "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTPS", "host": "h"}},
            }],
        }));
        assert_eq!(found, Vec::<String>::new());
    }
}
