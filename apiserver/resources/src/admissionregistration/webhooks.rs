//! MutatingWebhookConfigurations and ValidatingWebhookConfigurations: defaults, validation, columns.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::expressions::{BOOL, Compiler};
use super::matching;
use crate::cells::{AGE, NAME, age, column, name};
use crate::choices::optional_choice;
use crate::field::{ErrorList, Path};
use crate::metadata::label_selector;
use crate::read::{default_to, get, has, int, items, items_mut, object_mut, text, texts};
use crate::{Column, Context, MetadataChecks, Row, Storage, Strategy, rules, webhook_client};

pub(crate) static MUTATING: Row = Row {
    kind: "MutatingWebhookConfiguration",
    plural: "mutatingwebhookconfigurations",
    singular: "mutatingwebhookconfiguration",
    schema: "io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration",
    storage: Storage::Stored("mutatingwebhookconfigurations"),
    strategy: &Webhooks { mutating: true },
    example: r#"apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: example}
webhooks:
- name: hook.example.com
  clientConfig: {url: "https://hook.example.com/"}
  sideEffects: None
  admissionReviewVersions: [v1]
"#,
    ..ROW
};

pub(crate) static VALIDATING: Row = Row {
    kind: "ValidatingWebhookConfiguration",
    plural: "validatingwebhookconfigurations",
    singular: "validatingwebhookconfiguration",
    schema: "io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration",
    storage: Storage::Stored("validatingwebhookconfigurations"),
    strategy: &Webhooks { mutating: false },
    example: r#"apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: example}
webhooks:
- name: hook.example.com
  clientConfig: {url: "https://hook.example.com/"}
  sideEffects: None
  admissionReviewVersions: [v1]
"#,
    ..ROW
};

const ROW: Row = Row { group: "admissionregistration.k8s.io", categories: &["api-extensions"], ..Row::CLUSTER };

struct Webhooks {
    mutating: bool,
}

const COLUMNS: &[Column] = &[NAME, column("Webhooks", "integer"), AGE];
const VERSIONS: &[&str] = &["v1", "v1beta1"];

fn validate_hook(errors: &mut ErrorList, hook: &Value, mutating: bool, path: &Path<'_>) {
    let (own, at) = (text(hook, "name"), path.child("name"));
    let wrong = rules::dns_subdomain(own);
    if own.is_empty() {
        errors.required(&at, "");
    } else if !wrong.is_empty() {
        errors.invalid(&at, own, &wrong.join(","));
    } else if own.split('.').count() < 3 {
        errors.invalid(&at, own, "should be a domain with at least three segments separated by dots");
    }
    matching::validate_rules(errors, hook, "rules", true, path);
    optional_choice(errors, hook, "failurePolicy", &["Fail", "Ignore"], path);
    optional_choice(errors, hook, "matchPolicy", &["Equivalent", "Exact"], path);
    if !has(hook, "sideEffects") {
        errors.required(&path.child("sideEffects"), "must specify one of None, NoneOnDryRun");
    }
    optional_choice(errors, hook, "sideEffects", &["None", "NoneOnDryRun"], path);
    if let Some(seconds) = int(hook, "timeoutSeconds")
        && !(1..=30).contains(&seconds)
    {
        errors.invalid(&path.child("timeoutSeconds"), seconds, "the timeout value must be between 1 and 30 seconds");
    }
    for selector in ["namespaceSelector", "objectSelector"] {
        label_selector(errors, get(hook, selector), &path.child(selector));
    }
    if mutating {
        optional_choice(errors, hook, "reinvocationPolicy", &["IfNeeded", "Never"], path);
    }
    webhook_client::validate_client(errors, get(hook, "clientConfig"), &path.child("clientConfig"));
    let compiler = Compiler::new(false, false);
    matching::validate_conditions(errors, hook, path, |errors, expression, at| {
        if let Err(why) = compiler.compile(expression, true, BOOL) {
            errors.invalid(at, expression, &why);
        }
    });
}

fn validate_versions(errors: &mut ErrorList, hook: &Value, path: &Path<'_>) {
    let at = path.child("admissionReviewVersions");
    let versions: Vec<&str> = texts(hook, "admissionReviewVersions").collect();
    if versions.is_empty() {
        return errors.required(&at, "must specify one of v1, v1beta1");
    }
    let mut seen = BTreeSet::new();
    for (index, version) in versions.iter().enumerate() {
        if seen.insert(*version) {
            errors.invalid_each(&at.index(index), version, rules::dns_1035_label(version));
        } else {
            errors.invalid(&at.index(index), *version, "duplicate version");
        }
    }
    if !versions.iter().any(|version| VERSIONS.contains(version)) {
        errors.invalid(&at, json!(versions), "must include at least one of v1, v1beta1");
    }
}

impl Strategy for Webhooks {
    fn default(&self, object: &mut Value) {
        for hook in items_mut(object, "webhooks") {
            default_to(hook, "failurePolicy", "Fail");
            default_to(hook, "matchPolicy", "Equivalent");
            default_to(hook, "timeoutSeconds", 10);
            for selector in ["namespaceSelector", "objectSelector"] {
                default_to(hook, selector, json!({}));
            }
            if self.mutating {
                default_to(hook, "reinvocationPolicy", "Never");
            }
            matching::default_rules(hook, "rules");
            webhook_client::default_client(object_mut(hook, "clientConfig"));
        }
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn generation_counts_empty(&self) -> bool {
        true
    }

    fn generation_changes(&self, new: &Value, old: &Value) -> bool {
        get(new, "webhooks") != get(old, "webhooks")
    }

    fn unconditional_update(&self) -> bool {
        false
    }

    fn checks_finalizers(&self) -> bool {
        false
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::Whole
    }

    fn validate(&self, _: &Context<'_>, object: &Value, _: Option<&Value>, errors: &mut ErrorList) {
        let list = Path::root("webhooks");
        let mut names = BTreeSet::new();
        for (index, hook) in items(object, "webhooks").iter().enumerate() {
            let path = list.index(index);
            validate_hook(errors, hook, self.mutating, &path);
            validate_versions(errors, hook, &path);
            let own = text(hook, "name");
            if !own.is_empty() && !names.insert(own) {
                errors.duplicate(&path.child("name"), own);
            }
        }
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), json!(items(object, "webhooks").len()), age(object, now)]
    }
}
