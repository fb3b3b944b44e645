//! MutatingAdmissionPolicies and their bindings: defaults, validation, columns.

use jiff::Timestamp;
use serde_json::Value;

use super::constraints::{
    BINDING_COLUMNS, binding_cells, default_match, policy_cells, validate_binding, validate_conditions,
    validate_constraints, validate_mutable, validate_param_kind, validate_variables,
};
use super::expressions::Compiler;
use super::validating::ROW;
use crate::cells::{AGE, NAME, column};
use crate::choices::{present_choice, required_choice};
use crate::field::{ErrorList, Path};
use crate::read::{default_to, get, has, items, spec_of, text};
use crate::{Column, Context, MetadataChecks, Row, Storage, Strategy};

pub(crate) static POLICY: Row = Row {
    kind: "MutatingAdmissionPolicy",
    plural: "mutatingadmissionpolicies",
    singular: "mutatingadmissionpolicy",
    schema: "io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicy",
    storage: Storage::Stored("mutatingadmissionpolicies"),
    strategy: &Policies,
    example: r#"apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: example}
spec:
  reinvocationPolicy: Never
  matchConstraints:
    resourceRules:
    - {apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}
  mutations:
  - patchType: ApplyConfiguration
    applyConfiguration: {expression: "Object{metadata: Object.metadata{labels: {'a': 'b'}}}"}
"#,
    ..ROW
};

pub(crate) static BINDING: Row = Row {
    kind: "MutatingAdmissionPolicyBinding",
    plural: "mutatingadmissionpolicybindings",
    singular: "mutatingadmissionpolicybinding",
    schema: "io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicyBinding",
    storage: Storage::Stored("mutatingadmissionpolicybindings"),
    strategy: &Bindings,
    example: r#"apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: example}
spec: {policyName: example}
"#,
    ..ROW
};

const SPEC: Path<'static> = Path::root("spec");
const POLICY_COLUMNS: &[Column] = &[NAME, column("Mutations", "integer"), column("ParamKind", "string"), AGE];
/// Each patch type with its field.
const PATCHES: &[(&str, &str)] = &[("ApplyConfiguration", "applyConfiguration"), ("JSONPatch", "jsonPatch")];

struct Policies;
struct Bindings;

fn validate_mutation(errors: &mut ErrorList, mutation: &Value, compiler: &Compiler, path: &Path<'_>) {
    let patch_type = text(mutation, "patchType");
    if patch_type.is_empty() {
        return errors.required(&path.child("patchType"), "");
    }
    let Some((_, field)) = PATCHES.iter().find(|(name, _)| *name == patch_type) else {
        return errors.not_supported(&path.child("patchType"), patch_type, &["ApplyConfiguration", "JSONPatch"]);
    };
    let at = path.child(field);
    if has(mutation, field) {
        let expression = text(get(mutation, field), "expression");
        if expression.trim().is_empty() {
            errors.required(&at.child("expression"), "");
        } else if let Err(why) = compiler.mutation(patch_type, expression.trim()) {
            errors.invalid(&at.child("expression"), expression.trim(), &why);
        }
    } else {
        errors.required(&at, &format!("must be specified when patchType is {patch_type}"));
    }
    for (_, other) in PATCHES.iter().filter(|(name, other)| *name != patch_type && has(mutation, other)) {
        let why = format!("must not be specified when patchType is {patch_type}");
        errors.invalid(&path.child(other), format!("{{{other}}}"), &why);
    }
}

impl Strategy for Policies {
    fn default(&self, object: &mut Value) {
        let spec = spec_of(object);
        default_to(spec, "failurePolicy", "Fail");
        default_match(spec, "matchConstraints");
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
        present_choice(errors, spec, "failurePolicy", &["Fail", "Ignore"], &SPEC);
        validate_param_kind(errors, spec, &SPEC);
        validate_constraints(errors, spec, &SPEC);
        validate_mutable(errors, get(spec, "matchConstraints"), &SPEC.child("matchConstraints"));
        validate_conditions(errors, spec, &SPEC);
        let mut compiler = Compiler::new(has(spec, "paramKind"), true);
        validate_variables(errors, spec, &mut compiler, &SPEC);
        let (list, mutations) = (SPEC.child("mutations"), items(spec, "mutations"));
        if mutations.is_empty() {
            errors.required(&list, "mutations must contain at least one item");
        }
        for (index, mutation) in mutations.iter().enumerate() {
            validate_mutation(errors, mutation, &compiler, &list.index(index));
        }
        required_choice(errors, spec, "reinvocationPolicy", &["IfNeeded", "Never"], &SPEC);
    }

    fn columns(&self) -> &'static [Column] {
        POLICY_COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        policy_cells(object, "mutations", now)
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
        validate_mutable(errors, get(spec, "matchResources"), &SPEC.child("matchResources"));
    }

    fn columns(&self) -> &'static [Column] {
        BINDING_COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        binding_cells(object, now)
    }
}
