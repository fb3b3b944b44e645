//! A container's environment, command line and downward API values, as upstream computes them. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use machinery_api::quantity::Quantity;
use machinery_api::selector::go_quoted;

use super::env_file::{FileValues, key_of};
use super::sources::{Content, SourceKind};
use crate::spec::containers;

/// The configuration error of a container, shown in its status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// An object doesn't exist.
    #[error("{kind} {name:?} not found")]
    NotFound {
        /// `configmap`, `secret`.
        kind: &'static str,
        /// The object's name.
        name: String,
    },
    /// An object has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// The key.
        key: String,
        /// `ConfigMap`, `Secret`.
        kind: &'static str,
        /// The object's namespace.
        namespace: String,
        /// The object's name.
        name: String,
    },
    /// A value is invalid.
    #[error("{0}")]
    Bad(String),
}

/// The sources of the values.
pub struct EnvContext<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The node's address.
    pub host_ip: IpAddr,
    /// The pod's address.
    pub pod_ip: Option<IpAddr>,
    /// The node's allocatable resources, as the default of limits.
    pub allocatable: &'a BTreeMap<String, Wire>,
    /// The Services of the pod's namespace, and the API server's Service.
    pub services: &'a [Arc<Service>],
    /// Looks up a referenced object; `None` if it doesn't exist.
    pub lookup: &'a (dyn Fn(SourceKind, &str) -> Option<Arc<Content>> + Sync),
    /// The values of variables in files of volumes.
    pub files: &'a FileValues,
}

/// The environment, in upstream's order of precedence.
pub fn environment(given: &EnvContext<'_>, container: &Container) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut all = BTreeMap::new();
    let services = service_variables(given);
    for from in container.env_from.iter().flatten() {
        let source = match (&from.config_map_ref, &from.secret_ref) {
            (Some(map), _) => Some((SourceKind::ConfigMap, map.name.clone(), map.optional)),
            (None, Some(secret)) => Some((SourceKind::Secret, secret.name.clone(), secret.optional)),
            (None, None) => None,
        };
        let Some((kind, name, optional)) = source else { continue };
        let Some(content) = (given.lookup)(kind, &name) else {
            if optional == Some(true) {
                continue;
            }
            return Err(ConfigError::NotFound { kind: kind.word(), name });
        };
        let prefix = from.prefix.as_deref().unwrap_or_default();
        for (key, value) in &content.data {
            let variable = format!("{prefix}{key}");
            // As upstream: keys that are no valid variable names are skipped.
            if !variable.is_empty() && !variable.contains(['=', '\0']) {
                all.insert(variable, text(value, key)?);
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(from)) => match from_source(given, container, from)? {
                Some(value) => value,
                None => continue,
            },
            (value, None) => {
                let value = value.as_deref().unwrap_or_default();
                expand(value, &|name| all.get(name).or_else(|| services.get(name)).cloned())
            }
        };
        all.insert(variable.name.clone(), value);
    }
    for (name, value) in services {
        all.entry(name).or_insert(value);
    }
    if let Some((name, _)) = all.iter().find(|(name, value)| name.contains('\0') || value.contains('\0')) {
        return Err(ConfigError::Bad(format!("the value of environment variable {name:?} contains a NUL byte")));
    }
    Ok(all)
}

fn text(bytes: &[u8], key: &str) -> Result<String, ConfigError> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| ConfigError::Bad(format!("the value of key {key:?} is not UTF-8, which an environment has to be")))
}

fn from_source(
    given: &EnvContext<'_>,
    container: &Container,
    from: &k8s_openapi::api::core::v1::EnvVarSource,
) -> Result<Option<String>, ConfigError> {
    if let Some(field) = &from.field_ref {
        return self::field(given, field).map(Some);
    }
    if let Some(resource) = &from.resource_field_ref {
        return self::resource(given, Some(container), resource).map(Some);
    }
    if let Some(file) = &from.file_key_ref {
        return Ok(given.files.get(&key_of(file)).cloned().flatten());
    }
    let (kind, name, key, optional) = match (&from.config_map_key_ref, &from.secret_key_ref) {
        (Some(map), _) => (SourceKind::ConfigMap, &map.name, &map.key, map.optional == Some(true)),
        (None, Some(secret)) => (SourceKind::Secret, &secret.name, &secret.key, secret.optional == Some(true)),
        (None, None) => return Ok(Some(String::new())),
    };
    let Some(content) = (given.lookup)(kind, name) else {
        return if optional { Ok(None) } else { Err(ConfigError::NotFound { kind: kind.word(), name: name.clone() }) };
    };
    match content.data.get(key) {
        Some(value) => text(value, key).map(Some),
        None if optional => Ok(None),
        None => Err(ConfigError::NoKey {
            key: key.clone(),
            kind: kind.kind(),
            namespace: given.pod.metadata.namespace.clone().unwrap_or_default(),
            name: name.clone(),
        }),
    }
}

/// A field of the pod, for a variable or a file.
pub fn field(given: &EnvContext<'_>, of: &ObjectFieldSelector) -> Result<String, ConfigError> {
    let metadata = &given.pod.metadata;
    let spec = given.pod.spec.as_ref();
    let owned = |value: &Option<String>| value.clone().unwrap_or_default();
    let path = of.field_path.as_str();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &metadata.labels,
            "metadata.annotations" => &metadata.annotations,
            _ => return Err(unknown_field(path)),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => owned(&metadata.name),
        "metadata.namespace" => owned(&metadata.namespace),
        "metadata.uid" => owned(&metadata.uid),
        "metadata.labels" => lines(metadata.labels.as_ref()),
        "metadata.annotations" => lines(metadata.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" | "status.hostIPs" => given.host_ip.to_string(),
        "status.podIP" | "status.podIPs" => given.pod_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        _ => return Err(unknown_field(path)),
    })
}

fn unknown_field(path: &str) -> ConfigError {
    ConfigError::Bad(format!("unsupported fieldPath: {path}"))
}

/// Splits `metadata.labels['a']` into the map and the key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.strip_suffix("']")?.split_once("['")?;
    Some((map, rest))
}

/// Formats `key="value"` lines, as the downward API does.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let each = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", go_quoted(value)));
    each.collect::<Vec<_>>().join("\n")
}

/// A container's resource in units of the divisor, rounded up.
pub fn resource(
    given: &EnvContext<'_>,
    own: Option<&Container>,
    of: &ResourceFieldSelector,
) -> Result<String, ConfigError> {
    let spec = containers::spec(given.pod);
    let named;
    let container = match of.container_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => {
            let found = containers::each(&spec).find(|(_, container)| container.name == name);
            named = found.ok_or_else(|| ConfigError::Bad(format!("container {name} not found")))?.1;
            &*named
        }
        None => own.ok_or_else(|| ConfigError::Bad("resourceFieldRef names no container".into()))?,
    };
    let resources = container.resources.as_ref();
    let bad = || ConfigError::Bad(format!("unsupported container resource : {}", of.resource));
    let (which, name) = of.resource.split_once('.').ok_or_else(bad)?;
    let value = match which {
        "limits" => resources
            .and_then(|resources| resources.limits.as_ref()?.get(name))
            .or_else(|| given.allocatable.get(name).filter(|_| matches!(name, "cpu" | "memory" | "ephemeral-storage"))),
        "requests" => resources.and_then(|resources| resources.requests.as_ref()?.get(name)),
        _ => return Err(bad()),
    };
    let parse = |text: &str| Quantity::parse(text).map_err(|error| ConfigError::Bad(error.to_string()));
    let value = value.map_or(Ok(Quantity::zero()), |value| parse(&value.0))?;
    let divisor = of.divisor.as_ref().map_or(Ok(Quantity::zero()), |divisor| parse(&divisor.0))?;
    let divisor = if divisor.is_zero() { parse("1")? } else { divisor };
    let (amount, unit) =
        if name == "cpu" { (value.milli(), divisor.milli()) } else { (value.value(), divisor.value()) };
    let unit = unit.max(1);
    Ok((amount / unit + i64::from(amount % unit > 0)).to_string())
}

/// Replaces `$(NAME)` by variables; `$$` is a dollar sign, and unknown names remain.
#[must_use]
pub fn expand(text: &str, known: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // No reference ends after the last bracket: this avoids a quadratic search over many open brackets.
    let last = text.rfind(')');
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('(') {
            let closes = last.is_some_and(|last| last >= text.len() - after.len());
            let reference = if closes { after.split_once(')') } else { None };
            match reference {
                Some((name, after)) => {
                    match known(name) {
                        Some(value) => out.push_str(&value),
                        None => out.push_str(&format!("$({name})")),
                    }
                    rest = after;
                }
                None => {
                    out.push_str("$(");
                    rest = after;
                }
            }
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

fn service_variables(given: &EnvContext<'_>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let own = given.pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = given.pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    for service in given.services {
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let master = namespace == "default" && name == "kubernetes";
        if !(master || links && namespace == own) {
            continue;
        }
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { continue };
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let prefix = variable(name);
        let mut set = |name: String, value: String| {
            // A Service of the pod's namespace overrides the API server's.
            if namespace == own || !all.contains_key(&name) {
                all.insert(name, value);
            }
        };
        set(format!("{prefix}_SERVICE_HOST"), ip.into());
        set(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
        for (index, port) in ports.iter().enumerate() {
            if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                set(format!("{prefix}_SERVICE_PORT_{}", variable(name)), port.port.to_string());
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if index == 0 {
                set(format!("{prefix}_PORT"), url.clone());
            }
            let each = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
            set(each.clone(), url);
            set(format!("{each}_PROTO"), protocol.to_lowercase());
            set(format!("{each}_PORT"), port.port.to_string());
            set(format!("{each}_ADDR"), ip.into());
        }
    }
    all
}

fn variable(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn variables_are_expanded_as_upstream_does() {
        let known = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, want) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(B)"),
            ("$(A", "$(A"),
            ("$A $", "$A $"),
            ("$()", "$()"),
        ] {
            assert_eq!(expand(text, &known), want, "{text}");
        }
    }

    #[test]
    fn an_environment_is_made_of_all_its_sources() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"a/b": "l"}},
            "spec": {"containers": [{
                "name": "c",
                "resources": {"limits": {"memory": "64Mi", "cpu": "250m"}},
                "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}, {"secretRef": {"name": "no", "optional": true}}],
                "env": [
                    {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}},
                    {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "BOTH", "value": "$(NAME)-$(P_k)-$(WEB_SERVICE_HOST)-$(LATER)"},
                    {"name": "LATER", "value": "x"},
                ],
            }]},
        }))
        .unwrap();
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "n"}, "spec": {"clusterIP": "127.64.0.9", "ports": [{"port": 80, "name": "http-main"}]},
        }))
        .unwrap();
        let content = Arc::new(Content { data: [("k".to_owned(), b"v".to_vec())].into(), ..Content::default() });
        let allocatable = BTreeMap::new();
        let lookup = |_: SourceKind, name: &str| (name == "m").then(|| content.clone());
        let given = EnvContext {
            pod: &pod,
            host_ip: "127.0.0.1".parse().unwrap(),
            pod_ip: None,
            allocatable: &allocatable,
            services: &[Arc::new(service)],
            files: &FileValues::new(),
            lookup: &lookup,
        };
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let all = environment(&given, container).unwrap();
        let get = |name: &str| all.get(name).map(String::as_str).unwrap_or("-");
        assert_eq!(get("P_k"), "v");
        assert_eq!(get("LABEL"), "l");
        assert_eq!((get("MEM"), get("CPU")), ("64", "1"));
        assert_eq!(get("BOTH"), "p-v-127.64.0.9-$(LATER)");
        assert_eq!(get("WEB_PORT_80_TCP"), "tcp://127.64.0.9:80");
        assert_eq!(get("WEB_SERVICE_PORT_HTTP_MAIN"), "80");
        assert_eq!(get("PATH"), "-");

        let nothing = |_: SourceKind, _: &str| None;
        let error = environment(&EnvContext { lookup: &nothing, ..given }, container).unwrap_err();
        assert_eq!(error.to_string(), r#"configmap "m" not found"#);
    }
}
