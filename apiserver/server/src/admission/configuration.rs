//! What plugins are configured with: upstream's `AdmissionConfiguration`, the file of `--admission-control-config-file`.

use machinery_api::selector::go_quoted;
use serde_json::Value;

use super::pod_security;

/// Plugins of upstream whose configuration is not taken here.
const UNCONFIGURED: &[&str] = &[
    "EventRateLimit",
    "ImagePolicyWebhook",
    "MutatingAdmissionWebhook",
    "PodNodeSelector",
    "PodTolerationRestriction",
    "ResourceQuota",
    "ValidatingAdmissionWebhook",
];
const VERSIONS: &[&str] = &["apiserver.config.k8s.io/v1", "apiserver.k8s.io/v1alpha1"];

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct AdmissionConfiguration {
    pub(super) pod_security: pod_security::Configuration,
}

impl AdmissionConfiguration {
    /// Of a file, and of those that it names by path.
    ///
    /// # Errors
    /// What is wrong, and of which plugin.
    pub fn parse(file: &Value, read: &dyn Fn(&str) -> Result<Value, String>) -> Result<Self, String> {
        is_of(file, VERSIONS, "AdmissionConfiguration")?;
        fields(file, &["apiVersion", "kind", "plugins"], "")?;
        let mut configuration = Self::default();
        let mut seen: Vec<&str> = Vec::new();
        for (i, plugin) in list(file, "plugins", "")?.iter().enumerate() {
            fields(plugin, &["name", "path", "configuration"], &format!("plugins[{i}]."))?;
            let name = plugin["name"].as_str().unwrap_or_default();
            if seen.contains(&name) {
                return Err(format!("admission plugin {} is configured twice", go_quoted(name)));
            }
            seen.push(name);
            let own;
            let given = match plugin["path"].as_str().filter(|path| !path.is_empty()) {
                Some(path) => {
                    own = read(path)?;
                    &own
                }
                None => &plugin["configuration"],
            };
            match name {
                "PodSecurity" if given.is_null() => {}
                "PodSecurity" => {
                    let read = pod_security::Configuration::parse(given);
                    configuration.pod_security =
                        read.map_err(|why| format!("admission plugin \"PodSecurity\": {why}"))?;
                }
                _ if UNCONFIGURED.contains(&name) => {
                    return Err(format!("admission plugin {}: its configuration is not taken here", go_quoted(name)));
                }
                _ if super::PLUGINS.iter().any(|known| known.name() == name) && given.is_null() => {}
                _ => return Err(format!("admission plugin {} is unknown, or takes no configuration", go_quoted(name))),
            }
        }
        Ok(configuration)
    }
}

/// Whether something is of a kind in one of some versions.
pub(super) fn is_of(value: &Value, versions: &[&str], kind: &str) -> Result<(), String> {
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    let (api_version, own) = (text("apiVersion"), text("kind"));
    match versions.contains(&api_version) && own == kind {
        true => Ok(()),
        false => Err(format!("no kind {} is registered for version {}", go_quoted(own), go_quoted(api_version))),
    }
}

/// Whether an object has no fields but these.
pub(super) fn fields(object: &Value, known: &[&str], at: &str) -> Result<(), String> {
    let Some(map) = object.as_object() else {
        return Err(format!("strict decoding error: {} is no object", at.trim_end_matches('.')));
    };
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(format!("strict decoding error: unknown field {}", go_quoted(&format!("{at}{key}")))),
    }
}

/// A list, or nothing.
pub(super) fn list<'v>(object: &'v Value, field: &str, at: &str) -> Result<&'v [Value], String> {
    match &object[field] {
        Value::Null => Ok(&[]),
        Value::Array(items) => Ok(items),
        _ => Err(format!("strict decoding error: {at}{field} is no list")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(plugins: Value) -> Result<AdmissionConfiguration, String> {
        let file = json!({"apiVersion": VERSIONS[0], "kind": "AdmissionConfiguration", "plugins": plugins});
        AdmissionConfiguration::parse(&file, &|path| Err(format!("{path}: not there")))
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(parsed(json!([{"name": "PodSecurity"}, {"name": "LimitRanger"}])).is_ok());
        let own = json!({"apiVersion": "pod-security.admission.config.k8s.io/v1", "kind": "PodSecurityConfiguration"});
        assert!(parsed(json!([{"name": "PodSecurity", "configuration": own}])).is_ok());
        for (plugins, why) in [
            (json!([{"name": "Nothing"}]), "admission plugin \"Nothing\" is unknown, or takes no configuration"),
            (
                json!([{"name": "LimitRanger", "configuration": {"a": 1}}]),
                "admission plugin \"LimitRanger\" is unknown, or takes no configuration",
            ),
            (
                json!([{"name": "ResourceQuota", "configuration": {}}]),
                "admission plugin \"ResourceQuota\": its configuration is not taken here",
            ),
            (json!([{"name": "PodSecurity", "path": "x.yaml"}]), "x.yaml: not there"),
            (json!([{"name": "PodSecurity", "pfad": "x"}]), "strict decoding error: unknown field \"plugins[0].pfad\""),
            (
                json!([{"name": "PodSecurity"}, {"name": "PodSecurity"}]),
                "admission plugin \"PodSecurity\" is configured twice",
            ),
            (json!(["x"]), "strict decoding error: plugins[0] is no object"),
            (json!("x"), "strict decoding error: plugins is no list"),
        ] {
            assert_eq!(parsed(plugins.clone()).unwrap_err(), why, "{plugins}");
        }
        let other = AdmissionConfiguration::parse(&json!({"kind": "Pod", "apiVersion": "v1"}), &|_| Ok(Value::Null));
        assert_eq!(other.unwrap_err(), "no kind \"Pod\" is registered for version \"v1\"");
    }
}
