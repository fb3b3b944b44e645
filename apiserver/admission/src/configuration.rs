//! Parses the file of `--admission-control-config-file` (upstream's `AdmissionConfiguration`) into the configuration of
//! the plugins.

use std::path::Path;

use machinery_api::selector::go_quoted;
use machinery_rules::quota::LimitedResource;
use serde_json::Value;

use super::pod_security;
use apiserver_webhook::{Accounts, ReadFile};

/// Upstream's configurable plugins that this server does not have.
const UNSUPPORTED: &[&str] = &["EventRateLimit", "ImagePolicyWebhook", "PodNodeSelector", "PodTolerationRestriction"];
const VERSIONS: &[&str] = &["apiserver.config.k8s.io/v1", "apiserver.k8s.io/v1alpha1"];
const QUOTA_BEFORE: &[&str] = &["resourcequota.admission.k8s.io/v1alpha1", "resourcequota.admission.k8s.io/v1beta1"];
const STATIC: &str = "staticManifestsDir: Forbidden: staticManifestsDir requires the ManifestBasedAdmissionControlConfig \
                      feature gate to be enabled";

/// The parsed configuration of all plugins.
#[derive(Debug, Clone, Default)]
pub struct AdmissionConfiguration {
    pub(super) pod_security: pod_security::Configuration,
    /// Resources that may be consumed only if a quota covers them.
    pub(super) limited: Vec<LimitedResource>,
    /// Credentials for calls to mutating webhooks.
    pub(super) mutating: Accounts,
    /// Credentials for calls to validating webhooks.
    pub(super) validating: Accounts,
}

impl AdmissionConfiguration {
    /// Parses the file and the files that its plugins' `path` fields name. Relative paths start at `folder`.
    ///
    /// # Errors
    /// Returns the reason, prefixed with the plugin's name.
    pub fn parse(file: &[u8], folder: &Path, read: &dyn Fn(&Path) -> Result<Vec<u8>, String>) -> Result<Self, String> {
        let file = yaml(file)?;
        check_type(&file, VERSIONS, "AdmissionConfiguration")?;
        check_fields(&file, &["apiVersion", "kind", "plugins"], "")?;
        let mut configuration = Self::default();
        let mut seen: Vec<&str> = Vec::new();
        for (i, plugin) in list(&file, "plugins", "")?.iter().enumerate() {
            check_fields(plugin, &["name", "path", "configuration"], &format!("plugins[{i}]."))?;
            let name = plugin["name"].as_str().unwrap_or_default();
            if seen.contains(&name) {
                return Err(format!("admission plugin {} is configured twice", go_quoted(name)));
            }
            seen.push(name);
            let own;
            let given = match plugin["path"].as_str().filter(|path| !path.is_empty()) {
                Some(path) => {
                    own = read(&folder.join(path))
                        .and_then(|text| yaml(&text))
                        .map_err(|why| format!("{path}: {why}"))?;
                    &own
                }
                None => &plugin["configuration"],
            };
            let configured = configuration.configure_plugin(name, given, read);
            configured.map_err(|why| format!("admission plugin {}{why}", go_quoted(name)))?;
        }
        Ok(configuration)
    }

    /// Applies the configuration of one plugin.
    fn configure_plugin(&mut self, name: &str, given: &Value, read: ReadFile<'_>) -> Result<(), String> {
        let colon = |why: String| format!(": {why}");
        match name {
            _ if UNSUPPORTED.contains(&name) => return Err(" isn't there".into()),
            "PodSecurity" | "ResourceQuota" | "MutatingAdmissionWebhook" | "ValidatingAdmissionWebhook"
                if given.is_null() => {}
            "PodSecurity" => self.pod_security = pod_security::Configuration::parse(given).map_err(colon)?,
            "ResourceQuota" => self.limited = limited(given).map_err(colon)?,
            "MutatingAdmissionWebhook" => self.mutating = accounts(given, read).map_err(colon)?,
            "ValidatingAdmissionWebhook" => self.validating = accounts(given, read).map_err(colon)?,
            _ if super::PLUGINS.iter().any(|known| known.name() == name) && given.is_null() => {}
            _ => return Err(" is unknown, or takes no configuration".into()),
        }
        Ok(())
    }
}

fn yaml(text: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    machinery_api::yaml::read(text)
}

/// Parses a `ResourceQuotaConfiguration`.
fn limited(given: &Value) -> Result<Vec<LimitedResource>, String> {
    check_type(given, QUOTA_BEFORE, "Configuration")
        .or_else(|_| check_type(given, &VERSIONS[..1], "ResourceQuotaConfiguration"))?;
    check_fields(given, &["apiVersion", "kind", "limitedResources"], "")?;
    let mut all = Vec::new();
    for (i, item) in list(given, "limitedResources", "")?.iter().enumerate() {
        let at = format!("limitedResources[{i}].");
        check_fields(item, &["apiGroup", "resource", "matchContains", "matchScopes"], &at)?;
        let scopes = list(item, "matchScopes", &at)?;
        for (j, scope) in scopes.iter().enumerate() {
            check_fields(scope, &["scopeName", "operator", "values"], &format!("{at}matchScopes[{j}]."))?;
        }
        let text = |field: &str| match &item[field] {
            Value::Null => Ok(String::new()),
            Value::String(text) => Ok(text.clone()),
            _ => Err(format!("strict decoding error: {at}{field} is no string")),
        };
        let contains = list(item, "matchContains", &at)?.iter().map(|text| text.as_str().map(str::to_owned));
        let contains: Option<Vec<String>> = contains.collect();
        let limited = LimitedResource {
            group: text("apiGroup")?,
            resource: text("resource")?,
            match_contains: contains
                .ok_or_else(|| format!("strict decoding error: {at}matchContains has no strings"))?,
            match_scopes: scopes.to_vec(),
        };
        if limited.resource.is_empty() {
            return Err(format!("{at}resource: Required value"));
        }
        all.push(limited);
    }
    Ok(all)
}

/// Reads the kubeconfig that a `WebhookAdmissionConfiguration` names.
fn accounts(given: &Value, read: ReadFile<'_>) -> Result<Accounts, String> {
    check_type(given, &VERSIONS[..1], "WebhookAdmissionConfiguration")?;
    check_fields(given, &["apiVersion", "kind", "kubeConfigFile", "staticManifestsDir"], "")?;
    let text = |field: &str| given[field].as_str().unwrap_or_default();
    if !text("staticManifestsDir").is_empty() {
        return Err(STATIC.into());
    }
    let file = text("kubeConfigFile");
    let path = Path::new(file);
    match path.parent() {
        _ if file.is_empty() => Ok(Accounts::default()),
        Some(folder) if path.is_absolute() => {
            let kubeconfig = read(path).and_then(|text| yaml(&text));
            Accounts::parse(&kubeconfig.map_err(|why| format!("{file}: {why}"))?, folder, read)
                .map_err(|why| format!("{file}: {why}"))
        }
        _ => Err(format!("kubeConfigFile: Invalid value: {}: must be an absolute file path", go_quoted(file))),
    }
}

/// Checks `kind` and `apiVersion` against one kind and a list of versions.
pub(super) fn check_type(value: &Value, versions: &[&str], kind: &str) -> Result<(), String> {
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    let (api_version, own) = (text("apiVersion"), text("kind"));
    match versions.contains(&api_version) && own == kind {
        true => Ok(()),
        false => Err(format!("no kind {} is registered for version {}", go_quoted(own), go_quoted(api_version))),
    }
}

/// Rejects fields that are not in `known` (strict decoding).
pub(super) fn check_fields(object: &Value, known: &[&str], at: &str) -> Result<(), String> {
    let Some(map) = object.as_object() else {
        return Err(format!("strict decoding error: {} is no object", at.trim_end_matches('.')));
    };
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(format!("strict decoding error: unknown field {}", go_quoted(&format!("{at}{key}")))),
    }
}

/// Returns the field's list; an absent field is an empty list.
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
        AdmissionConfiguration::parse(file.to_string().as_bytes(), Path::new(""), &|_| Err("not there".into()))
    }

    #[test]
    fn errors_name_the_field() {
        assert!(parsed(json!([{"name": "PodSecurity"}, {"name": "LimitRanger"}])).is_ok());
        let own = json!({"apiVersion": "pod-security.admission.config.k8s.io/v1", "kind": "PodSecurityConfiguration"});
        assert!(parsed(json!([{"name": "PodSecurity", "configuration": own}])).is_ok());
        for (plugins, why) in [
            (json!([{"name": "Nothing"}]), "admission plugin \"Nothing\" is unknown, or takes no configuration"),
            (
                json!([{"name": "LimitRanger", "configuration": {"a": 1}}]),
                "admission plugin \"LimitRanger\" is unknown, or takes no configuration",
            ),
            (json!([{"name": "PodNodeSelector"}]), "admission plugin \"PodNodeSelector\" isn't there"),
            (
                json!([{"name": "ResourceQuota", "configuration": {}}]),
                "admission plugin \"ResourceQuota\": no kind \"\" is registered for version \"\"",
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
        let pod = br#"{"kind": "Pod", "apiVersion": "v1"}"#;
        let other = AdmissionConfiguration::parse(pod, Path::new(""), &|_| Ok(Vec::new()));
        assert_eq!(other.unwrap_err(), "no kind \"Pod\" is registered for version \"v1\"");
    }

    #[test]
    fn quotas_are_required_for_limited_resources() {
        let of = |limited: Value| {
            let own =
                json!({"apiVersion": VERSIONS[0], "kind": "ResourceQuotaConfiguration", "limitedResources": limited});
            parsed(json!([{"name": "ResourceQuota", "configuration": own}])).map(|all| all.limited)
        };
        let scope = json!({"scopeName": "PriorityClass", "operator": "In", "values": ["a"]});
        let configured =
            of(json!([{"resource": "pods", "matchContains": ["cpu"], "matchScopes": [scope]}, {"resource": "x",
            "apiGroup": "g"}]))
            .unwrap();
        assert_eq!(
            (&*configured[0].match_contains, &*configured[0].match_scopes),
            (&["cpu".to_owned()][..], &[scope][..])
        );
        assert_eq!((&*configured[1].group, &*configured[1].resource), ("g", "x"));
        for (limited, why) in [
            (json!([{"apiGroup": "g"}]), "limitedResources[0].resource: Required value"),
            (
                json!([{"resource": "x", "matchScopes": [{"name": "a"}]}]),
                "strict decoding error: unknown field \"limitedResources[0].matchScopes[0].name\"",
            ),
            (json!([{"resource": 1}]), "strict decoding error: limitedResources[0].resource is no string"),
        ] {
            assert_eq!(of(limited).unwrap_err(), format!("admission plugin \"ResourceQuota\": {why}"));
        }
        let before = json!({"apiVersion": QUOTA_BEFORE[0], "kind": "Configuration"});
        assert!(parsed(json!([{"name": "ResourceQuota", "configuration": before}])).is_ok());
    }

    #[test]
    fn webhooks_use_their_kubeconfig() {
        let of = |fields: Value| {
            let mut own = json!({"apiVersion": VERSIONS[0], "kind": "WebhookAdmissionConfiguration"});
            own.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            parsed(json!([{"name": "ValidatingAdmissionWebhook", "configuration": own}]))
        };
        assert!(of(json!({"kubeConfigFile": ""})).is_ok());
        for (own, why) in [
            (json!({"kubeConfigFile": "a"}), "kubeConfigFile: Invalid value: \"a\": must be an absolute file path"),
            (json!({"kubeConfigFile": "/a"}), "/a: not there"),
            (json!({"staticManifestsDir": "/a"}), STATIC),
        ] {
            assert_eq!(of(own).unwrap_err(), format!("admission plugin \"ValidatingAdmissionWebhook\": {why}"));
        }
    }
}
