//! ReplicationControllers: the predecessor of ReplicaSets. The selector is a map; a deletion orphans pods by default.

use apiserver_schema::types::Text;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::labels;
use crate::core::pods::{spec as pod_spec, update::semantically_equal, warnings};
use crate::core::workloads::{self, SPEC, not_negative};
use crate::field::{ErrorList, FieldError, Path};
use crate::read::{default_to, entries, get, has, int, is_zero, object_mut, put, spec_of};
use crate::rules::NameRule;
use crate::{Column, Context, Row, SCALE, STATUS, Storage, Strategy};

pub(crate) static ROW: Row = Row {
    kind: "ReplicationController",
    plural: "replicationcontrollers",
    singular: "replicationcontroller",
    short_names: &["rc"],
    categories: &["all"],
    schema: "io.k8s.api.core.v1.ReplicationController",
    subresources: &[SCALE, STATUS],
    storage: Storage::Stored("controllers"),
    shows_empty: true,
    strategy: &ReplicationController,
    example: r#"apiVersion: v1
kind: ReplicationController
metadata: {name: example}
spec:
  replicas: 2
  selector: {app: example}
  template:
    metadata: {labels: {app: example}}
    spec:
      containers: [{name: web, image: registry.local/hello:v1}]
"#,
    ..Row::NAMESPACED
};

struct ReplicationController;

const SELECTABLE: &[Text] = &[Text::Borrowed("status.replicas")];
/// Annotations of an older version's fields that this version lacks.
const LOST: &str = "non-convertible.kubernetes.io/";

fn validate(errors: &mut ErrorList, spec: &Value) {
    not_negative(errors, spec, &["minReadySeconds"], &SPEC);
    let selector = get(spec, "selector");
    if is_zero(selector) {
        errors.required(&SPEC.child("selector"), "");
    }
    not_negative(errors, spec, &["replicas"], &SPEC);
    let (template, at) = (get(spec, "template"), SPEC.child("template"));
    if template.is_null() {
        errors.required(&at, "");
        return;
    }
    let given = get(get(template, "metadata"), "labels");
    if entries(spec, "selector").any(|(key, value)| given.get(key) != Some(value)) {
        errors.invalid(&at.child("metadata.labels"), given.clone(), "`selector` does not match template `labels`");
    }
    pod_spec::template(errors, template, &at);
    workloads::restart_policy_always(errors, template, "ReplicationController", &at);
}

fn lost_fields(errors: &mut ErrorList, new: &Value, old: &Value) {
    for (key, value) in entries(get(old, "metadata"), "annotations") {
        let Some(field) = key.strip_prefix(LOST).filter(|field| !field.contains('/')) else { continue };
        if !field.contains("selector") {
            let mut error = FieldError::not_found(&Path::root(field), value.clone());
            error.message.push_str(": unknown non-convertible field");
            errors.add(|| error);
        } else if !semantically_equal(get(get(new, "spec"), "selector"), get(get(old, "spec"), "selector")) {
            let selector = get(get(new, "spec"), "selector").clone();
            errors.invalid(&SPEC.child("selector"), selector, "cannot update non-convertible selector");
        }
    }
}

impl Strategy for ReplicationController {
    fn default(&self, object: &mut Value) {
        let spec = spec_of(object);
        default_to(spec, "replicas", 1);
        if has(spec, "template") {
            workloads::default_template(spec);
        }
        let given = get(get(get(spec, "template"), "metadata"), "labels").clone();
        if !is_zero(&given) {
            if is_zero(get(spec, "selector")) {
                put(spec, "selector", given.clone());
            }
            let metadata = object_mut(object, "metadata");
            if is_zero(get(metadata, "labels")) {
                put(metadata, "labels", given);
            }
        }
        default_to(object_mut(object, "status"), "replicas", 0);
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        put(object, "status", json!({"replicas": 0}));
        workloads::drop_disabled(object, None);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        workloads::prepare_update(context, new, old);
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn name_rule(&self) -> NameRule {
        NameRule::GeneratedSubdomain
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        if context.subresource == "status" {
            workloads::replica_status(errors, get(object, "status"), &[]);
        } else {
            validate(errors, get(object, "spec"));
            if let Some(old) = old {
                lost_fields(errors, object, old);
            }
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        if old.is_none() {
            workloads::name_warning(&mut found, object);
        }
        // Upstream doesn't warn about updates.
        if old.is_none() {
            warnings::template(&mut found, get(get(object, "spec"), "template"), &SPEC.child("template"));
        }
        found
    }

    fn orphans_by_default(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        workloads::REPLICA_COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        workloads::replica_cells(object, now, &labels(get(get(object, "spec"), "selector"), "<none>"))
    }

    fn selectable(&self, object: &Value) -> Vec<String> {
        vec![int(get(object, "status"), "replicas").unwrap_or(0).to_string()]
    }

    fn selectable_labels(&self) -> &[Text] {
        SELECTABLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_selects_its_template_by_default() {
        let pod = json!({"containers": [{"name": "c", "image": "i"}]});
        let mut object = json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": pod}}});
        ReplicationController.default(&mut object);
        assert_eq!((&object["spec"]["selector"]["a"], &object["metadata"]["labels"]["a"]), (&json!("b"), &json!("b")));
        let errors_of = |object: &Value| -> Vec<String> {
            let mut errors = ErrorList::new();
            validate(&mut errors, &object["spec"]);
            errors.shown().iter().map(|error| error.field.clone()).collect()
        };
        assert_eq!(errors_of(&object), Vec::<String>::new());
        object["spec"]["selector"] = json!({"a": "c"});
        object["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
        assert_eq!(errors_of(&object), ["spec.template.metadata.labels", "spec.template.spec.restartPolicy"]);
        assert_eq!(errors_of(&json!({"spec": {}})), ["spec.selector", "spec.template"]);
        let old = json!({"metadata": {"annotations": {"non-convertible.kubernetes.io/selector": "x"}}, "spec": {"selector": {"a": "b"}}});
        let mut errors = ErrorList::new();
        lost_fields(&mut errors, &object, &old);
        assert_eq!(errors.shown()[0].message, "Invalid value: {\"a\":\"c\"}: cannot update non-convertible selector");
    }
}
