//! Parses upstream's `PodSecurityConfiguration`: defaults for namespaces without labels, and exemptions.

use std::collections::BTreeSet;

use apiserver_resources::field::{ErrorList, Path};
use apiserver_resources::rules;
use serde_json::Value;

use super::policy::{self, DEFAULT, LEVELS, Policy, Standard, VERSIONS};
use crate::configuration::{check_fields, check_type, list};

const API_VERSIONS: &[&str] = &[
    "pod-security.admission.config.k8s.io/v1",
    "pod-security.admission.config.k8s.io/v1alpha1",
    "pod-security.admission.config.k8s.io/v1beta1",
];
const MODES: [&str; 3] = ["enforce", "warn", "audit"];

/// The cluster's defaults and exemptions.
#[derive(Debug, Clone)]
pub(crate) struct Configuration {
    pub(super) defaults: Policy,
    users: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    runtime_classes: BTreeSet<String>,
}

impl Default for Configuration {
    fn default() -> Self {
        let (users, namespaces, runtime_classes) = Default::default();
        Self { defaults: DEFAULT, users, namespaces, runtime_classes }
    }
}

impl Configuration {
    /// Parses a file, or the part of one.
    pub(crate) fn parse(file: &Value) -> Result<Self, String> {
        check_type(file, API_VERSIONS, "PodSecurityConfiguration")?;
        check_fields(file, &["apiVersion", "kind", "defaults", "exemptions"], "")?;
        let mut errors = ErrorList::new();
        let mut own = Self::default();
        let (defaults, exemptions) = (&file["defaults"], &file["exemptions"]);
        if !defaults.is_null() {
            let known = ["enforce", "enforce-version", "warn", "warn-version", "audit", "audit-version"];
            check_fields(defaults, &known, "defaults.")?;
            for (mode, into) in
                MODES.into_iter().zip([&mut own.defaults.enforce, &mut own.defaults.warn, &mut own.defaults.audit])
            {
                standard(&mut errors, defaults, mode, into);
            }
        }
        if !exemptions.is_null() {
            check_fields(exemptions, &["usernames", "namespaces", "runtimeClasses"], "exemptions.")?;
            let names: [ExemptionField<'_>; 3] = [
                ("namespaces", &mut own.namespaces, rules::dns_label),
                ("runtimeClasses", &mut own.runtime_classes, rules::dns_subdomain),
                ("usernames", &mut own.users, user_name),
            ];
            for (field, into, rule) in names {
                let items = list(exemptions, field, "exemptions.")?;
                exempt(&mut errors, items, field, into, rule);
            }
        }
        let messages: Vec<String> =
            errors.shown().iter().map(|error| format!("{}: {}", error.field, error.message)).collect();
        match messages.as_slice() {
            [] => Ok(own),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }

    pub(super) fn exempts_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    pub(super) fn exempts_user(&self, name: &str) -> bool {
        self.users.contains(name)
    }

    /// Whether the runtime class of a pod or template is exempt.
    pub(super) fn exempts_class(&self, pod: &Value) -> bool {
        let class = pod["spec"]["runtimeClassName"].as_str();
        class.is_some_and(|class| !class.is_empty() && self.runtime_classes.contains(class))
    }
}

/// A field, its destination, and the validation of its names.
type ExemptionField<'a> = (&'static str, &'a mut BTreeSet<String>, fn(&str) -> Vec<String>);

fn user_name(name: &str) -> Vec<String> {
    if name.is_empty() { vec!["username must not be empty".into()] } else { Vec::new() }
}

fn standard(errors: &mut ErrorList, defaults: &Value, mode: &str, into: &mut Standard) {
    let root = Path::root("defaults");
    let version_field = format!("{mode}-version");
    if let Some(text) = defaults[mode].as_str().filter(|text| !text.is_empty()) {
        match policy::level(text) {
            Some(level) => into.level = level,
            None => errors.invalid(&root.child(mode), text, LEVELS),
        }
    }
    if let Some(text) = defaults[&version_field].as_str().filter(|text| !text.is_empty()) {
        match policy::version(text) {
            Some(version) => into.version = version,
            None => errors.invalid(&root.child(&version_field), text, VERSIONS),
        }
    }
}

fn exempt(
    errors: &mut ErrorList,
    items: &[Value],
    field: &str,
    into: &mut BTreeSet<String>,
    rule: fn(&str) -> Vec<String>,
) {
    let root = Path::root("exemptions");
    let all = root.child(field);
    for (i, item) in items.iter().enumerate() {
        let (at, name) = (all.index(i), item.as_str().unwrap_or_default());
        let wrong = rule(name);
        if !wrong.is_empty() {
            errors.invalid(&at, name, &wrong.join(", "));
        } else if !into.insert(name.to_owned()) {
            errors.duplicate(&at, name);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(defaults: Value, exemptions: Value) -> Result<Configuration, String> {
        Configuration::parse(&json!({"apiVersion": API_VERSIONS[0], "kind": "PodSecurityConfiguration",
            "defaults": defaults, "exemptions": exemptions}))
    }

    #[test]
    fn defaults_and_exemptions_are_validated_as_upstream_does() {
        let own = parsed(json!({"enforce": "baseline", "enforce-version": "v1.30", "warn": "restricted"}), Value::Null);
        let Policy { enforce, warn, audit } = own.unwrap().defaults;
        assert_eq!(format!("{enforce} {warn} {audit}"), "baseline:v1.30 restricted:latest privileged:latest");
        let own =
            parsed(Value::Null, json!({"usernames": ["u"], "namespaces": ["n"], "runtimeClasses": ["c"]})).unwrap();
        assert!(own.exempts_user("u") && own.exempts_namespace("n") && !own.exempts_namespace("u"));
        assert!(own.exempts_class(&json!({"spec": {"runtimeClassName": "c"}})) && !own.exempts_class(&json!({})));
        let wrong = parsed(json!({"enforce": "x", "audit-version": "1"}), json!({"usernames": ["", "u", "u"]}));
        assert_eq!(
            wrong.unwrap_err(),
            "[defaults.enforce: Invalid value: \"x\": must be one of privileged, baseline, restricted, \
             defaults.audit-version: Invalid value: \"1\": must be \"latest\" or \"v1.x\", \
             exemptions.usernames[0]: Invalid value: \"\": username must not be empty, \
             exemptions.usernames[2]: Duplicate value: \"u\"]"
        );
        let unknown = parsed(json!({"enforced": "x"}), Value::Null).unwrap_err();
        assert_eq!(unknown, "strict decoding error: unknown field \"defaults.enforced\"");
    }
}
