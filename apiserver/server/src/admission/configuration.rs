//! What plugins are configured with: upstream's `AdmissionConfiguration`, the file of `--admission-control-config-file`.

use std::path::Path;

use machinery_api::quota::LimitedResource;
use machinery_api::selector::go_quoted;
use serde_json::Value;

use super::pod_security;
use crate::webhook::{Accounts, Read};

/// Plugins of upstream that aren't there.
const ABSENT: &[&str] = &["EventRateLimit", "ImagePolicyWebhook", "PodNodeSelector", "PodTolerationRestriction"];
const VERSIONS: &[&str] = &["apiserver.config.k8s.io/v1", "apiserver.k8s.io/v1alpha1"];
const QUOTA_BEFORE: &[&str] = &["resourcequota.admission.k8s.io/v1alpha1", "resourcequota.admission.k8s.io/v1beta1"];
const STATIC: &str = "staticManifestsDir: Forbidden: staticManifestsDir requires the ManifestBasedAdmissionControlConfig \
                      feature gate to be enabled";

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct AdmissionConfiguration {
    pub(super) pod_security: pod_security::Configuration,
    /// What may only be used where a quota covers it.
    pub(super) limited: Vec<LimitedResource>,
    /// As whom mutating webhooks are asked.
    pub(super) mutating: Accounts,
    /// As whom validating webhooks are asked.
    pub(super) validating: Accounts,
}

impl AdmissionConfiguration {
    /// Of a file in a folder, and of those that it names by path.
    ///
    /// # Errors
    /// What is wrong, and of which plugin.
    pub fn parse(file: &[u8], folder: &Path, read: &dyn Fn(&Path) -> Result<Vec<u8>, String>) -> Result<Self, String> {
        let file = yaml(file)?;
        is_of(&file, VERSIONS, "AdmissionConfiguration")?;
        fields(&file, &["apiVersion", "kind", "plugins"], "")?;
        let mut configuration = Self::default();
        let mut seen: Vec<&str> = Vec::new();
        for (i, plugin) in list(&file, "plugins", "")?.iter().enumerate() {
            fields(plugin, &["name", "path", "configuration"], &format!("plugins[{i}]."))?;
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
            let taken = configuration.take(name, given, read);
            taken.map_err(|why| format!("admission plugin {}{why}", go_quoted(name)))?;
        }
        Ok(configuration)
    }

    /// What one plugin is configured with.
    fn take(&mut self, name: &str, given: &Value, read: Read<'_>) -> Result<(), String> {
        let colon = |why: String| format!(": {why}");
        match name {
            _ if ABSENT.contains(&name) => return Err(" isn't there".into()),
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

/// Of a `ResourceQuotaConfiguration`.
fn limited(given: &Value) -> Result<Vec<LimitedResource>, String> {
    is_of(given, QUOTA_BEFORE, "Configuration")
        .or_else(|_| is_of(given, &VERSIONS[..1], "ResourceQuotaConfiguration"))?;
    fields(given, &["apiVersion", "kind", "limitedResources"], "")?;
    let mut all = Vec::new();
    for (i, item) in list(given, "limitedResources", "")?.iter().enumerate() {
        let at = format!("limitedResources[{i}].");
        fields(item, &["apiGroup", "resource", "matchContains", "matchScopes"], &at)?;
        let scopes = list(item, "matchScopes", &at)?;
        for (j, scope) in scopes.iter().enumerate() {
            fields(scope, &["scopeName", "operator", "values"], &format!("{at}matchScopes[{j}]."))?;
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

/// Of the kubeconfig that a `WebhookAdmissionConfiguration` names.
fn accounts(given: &Value, read: Read<'_>) -> Result<Accounts, String> {
    is_of(given, &VERSIONS[..1], "WebhookAdmissionConfiguration")?;
    fields(given, &["apiVersion", "kind", "kubeConfigFile", "staticManifestsDir"], "")?;
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
        AdmissionConfiguration::parse(file.to_string().as_bytes(), Path::new(""), &|_| Err("not there".into()))
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
    fn quotas_are_asked_for_what_is_limited() {
        let of = |limited: Value| {
            let own =
                json!({"apiVersion": VERSIONS[0], "kind": "ResourceQuotaConfiguration", "limitedResources": limited});
            parsed(json!([{"name": "ResourceQuota", "configuration": own}])).map(|all| all.limited)
        };
        let scope = json!({"scopeName": "PriorityClass", "operator": "In", "values": ["a"]});
        let taken =
            of(json!([{"resource": "pods", "matchContains": ["cpu"], "matchScopes": [scope]}, {"resource": "x",
            "apiGroup": "g"}]))
            .unwrap();
        assert_eq!((&*taken[0].match_contains, &*taken[0].match_scopes), (&["cpu".to_owned()][..], &[scope][..]));
        assert_eq!((&*taken[1].group, &*taken[1].resource), ("g", "x"));
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
    fn webhooks_are_asked_as_a_kubeconfig_says() {
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
