//! ValidatingAdmissionPolicies and their bindings: defaults, validation, columns.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::constraints::{
    BINDING_COLUMNS, binding_cells, default_match, policy_cells, validate_binding, validate_conditions,
    validate_constraints, validate_param_kind, validate_variables,
};
use super::expressions::{BOOL, Compiler, STRING, STRING_OR_NULL};
use crate::cells::{AGE, NAME, column};
use crate::choices::{optional_choice, present_choice};
use crate::field::{ErrorList, Path};
use crate::metadata::reset_for_status;
use crate::read::{at, default_to, get, has, items, put, spec_of, text};
use crate::{
    Column, Context, MetadataChecks, ResetFields, Row, STATUS, Storage, Strategy, prepare_update_by_default, rules,
};

pub(crate) static POLICY: Row = Row {
    kind: "ValidatingAdmissionPolicy",
    plural: "validatingadmissionpolicies",
    singular: "validatingadmissionpolicy",
    schema: "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicy",
    storage: Storage::Stored("validatingadmissionpolicies"),
    subresources: &[STATUS],
    strategy: &Policies,
    example: r#"apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: example}
spec:
  matchConstraints:
    resourceRules:
    - {apiGroups: [apps], apiVersions: [v1], operations: [CREATE], resources: [deployments]}
  validations:
  - {expression: "object.spec.replicas <= 5"}
"#,
    ..ROW
};

pub(crate) static BINDING: Row = Row {
    kind: "ValidatingAdmissionPolicyBinding",
    plural: "validatingadmissionpolicybindings",
    singular: "validatingadmissionpolicybinding",
    schema: "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyBinding",
    storage: Storage::Stored("validatingadmissionpolicybindings"),
    strategy: &Bindings,
    example: r#"apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: example}
spec: {policyName: example, validationActions: [Deny]}
"#,
    ..ROW
};

pub(super) const ROW: Row =
    Row { group: "admissionregistration.k8s.io", categories: &["api-extensions"], ..Row::CLUSTER };

const ANNOTATIONS_MAX: usize = 20;
const ANNOTATION_BYTES_MAX: usize = 5 * 1024;
const SPEC: Path<'static> = Path::root("spec");
const REASONS: &[&str] = &["Forbidden", "Invalid", "RequestEntityTooLarge"];
const ACTIONS: &[&str] = &["Audit", "Deny", "Warn"];
const POLICY_COLUMNS: &[Column] = &[NAME, column("Validations", "integer"), column("ParamKind", "string"), AGE];

struct Policies;
struct Bindings;

fn validate_validation(errors: &mut ErrorList, validation: &Value, compiler: &Compiler, path: &Path<'_>) {
    let (expression, at) = (text(validation, "expression"), path.child("expression"));
    if expression.trim().is_empty() {
        errors.required(&at, "expression is not specified");
    } else if let Err(why) = compiler.compile(expression, true, BOOL) {
        errors.invalid(&at, expression, &why);
    }
    let (message, at) = (text(validation, "messageExpression"), path.child("messageExpression"));
    if !message.is_empty() && message.trim().is_empty() {
        errors.invalid(&at, message, "must be non-empty if specified");
    } else if !message.is_empty()
        && let Err(why) = compiler.compile(message, false, STRING)
    {
        errors.invalid(&at, message, &why);
    }
    let (message, at) = (text(validation, "message"), path.child("message"));
    if !message.is_empty() && message.trim().is_empty() {
        errors.invalid(&at, message, "must be non-empty if specified");
    } else if message.trim().contains(['\n', '\r']) {
        errors.invalid(&at, message, "must not contain line breaks");
    }
    optional_choice(errors, validation, "reason", REASONS, path);
}

fn validate_annotations(errors: &mut ErrorList, object: &Value, spec: &Value, compiler: &Compiler) {
    let (list, annotations) = (SPEC.child("auditAnnotations"), items(spec, "auditAnnotations"));
    if annotations.len() > ANNOTATIONS_MAX {
        let why = format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations");
        errors.invalid(&list, get(spec, "auditAnnotations").clone(), &why);
    }
    let own = at(object, &["metadata", "name"]).as_str().unwrap_or_default();
    let mut keys = BTreeSet::new();
    for (index, annotation) in annotations.iter().enumerate() {
        let path = list.index(index);
        let (key, at) = (text(annotation, "key"), path.child("key"));
        if own.is_empty() {
            errors.invalid(&at, key, "requires metadata.name be non-empty");
        } else {
            let whole = format!("{own}/{key}");
            errors.invalid_each(&at, &whole, rules::label_key(&whole));
        }
        let (expression, at_value) = (text(annotation, "valueExpression"), path.child("valueExpression"));
        let trimmed = expression.trim();
        if trimmed.is_empty() {
            errors.required(&at_value, "valueExpression is not specified");
        } else if trimmed.len() > ANNOTATION_BYTES_MAX {
            errors.required(&at_value, &format!("must not exceed {ANNOTATION_BYTES_MAX} bytes in length"));
        } else if let Err(why) = compiler.compile(trimmed, true, STRING_OR_NULL) {
            errors.invalid(&at_value, expression, &why);
        }
        if !keys.insert(key) {
            errors.duplicate(&at, key);
        }
    }
}

fn validate_status(errors: &mut ErrorList, status: &Value) {
    let warnings_at = Path::root("status.typeChecking.expressionWarnings");
    for (i, warning) in items(get(status, "typeChecking"), "expressionWarnings").iter().enumerate() {
        let at = warnings_at.index(i);
        if text(warning, "warning").is_empty() {
            errors.required(&at.child("warning"), "");
        }
        let path = text(warning, "fieldRef").trim();
        match super::field_ref::error(path) {
            _ if path.is_empty() => errors.required(&at.child("fieldRef"), ""),
            Some(why) => errors.invalid(&at.child("fieldRef"), path, &format!("invalid JSONPath: {why}")),
            None => {}
        }
    }
    crate::conditions::validate(errors, status, &Path::root("status.conditions"));
}

impl Strategy for Policies {
    fn default(&self, object: &mut Value) {
        let spec = spec_of(object);
        default_to(spec, "failurePolicy", "Fail");
        default_match(spec, "matchConstraints");
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        put(object, "status", json!({}));
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn unconditional_update(&self) -> bool {
        false
    }

    fn checks_finalizers(&self) -> bool {
        false
    }

    fn metadata_checks_of(&self, subresource: &str) -> MetadataChecks {
        if subresource.is_empty() { MetadataChecks::Whole } else { MetadataChecks::None }
    }

    fn reset_fields(&self, subresource: &str) -> ResetFields {
        match subresource {
            "status" => ResetFields::METADATA_TOO,
            _ => ResetFields::Below(&[&["status"]]),
        }
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
        if !context.subresource.is_empty() {
            reset_for_status(new, old);
        }
    }

    fn validate(&self, context: &Context<'_>, object: &Value, _: Option<&Value>, errors: &mut ErrorList) {
        if !context.subresource.is_empty() {
            return validate_status(errors, get(object, "status"));
        }
        let spec = get(object, "spec");
        present_choice(errors, spec, "failurePolicy", &["Fail", "Ignore"], &SPEC);
        validate_param_kind(errors, spec, &SPEC);
        validate_constraints(errors, spec, &SPEC);
        validate_conditions(errors, spec, &SPEC);
        let mut compiler = Compiler::new(has(spec, "paramKind"), false);
        validate_variables(errors, spec, &mut compiler, &SPEC);
        if items(spec, "validations").is_empty() && items(spec, "auditAnnotations").is_empty() {
            let why = "validations or auditAnnotations must contain at least one item";
            errors.required(&SPEC.child("validations"), why);
            errors.required(&SPEC.child("auditAnnotations"), why);
        }
        let list = SPEC.child("validations");
        for (index, validation) in items(spec, "validations").iter().enumerate() {
            validate_validation(errors, validation, &compiler, &list.index(index));
        }
        validate_annotations(errors, object, spec, &compiler);
    }

    fn columns(&self) -> &'static [Column] {
        POLICY_COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        policy_cells(object, "validations", now)
    }
}

impl Strategy for Bindings {
    fn default(&self, object: &mut Value) {
        default_match(spec_of(object), "matchResources");
    }

    fn counts_generation(&self) -> bool {
        true
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
        let spec = get(object, "spec");
        validate_binding(errors, spec, &SPEC);
        let list = SPEC.child("validationActions");
        let actions: Vec<&str> = items(spec, "validationActions").iter().filter_map(Value::as_str).collect();
        let mut seen = BTreeSet::new();
        for (index, action) in actions.iter().enumerate() {
            if !ACTIONS.contains(action) {
                errors.not_supported(&list.index(index), *action, ACTIONS);
            }
            if !seen.insert(*action) {
                errors.duplicate(&list.index(index), *action);
            }
        }
        if seen.contains("Deny") && seen.contains("Warn") {
            let why = "must not contain both Deny and Warn (repeating the same validation failure information in the \
                       API response and headers serves no purpose)";
            errors.invalid(&list, json!(actions), why);
        }
        if actions.is_empty() {
            errors.required(&list, "at least one validation action is required");
        }
    }

    fn columns(&self) -> &'static [Column] {
        BINDING_COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        binding_cells(object, now)
    }
}
