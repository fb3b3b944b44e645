//! Reviews: a create evaluates the object and stores nothing. Authorizers and authenticators compute the result; this
//! module validates the request.

use serde_json::Value;

use crate::field::{ErrorList, FieldError, Path};
use crate::metadata::label_name;
use crate::read::{get, has, is_zero, items, text};
use crate::{Context, Review, Row, Strategy, Verb, rules};

/// A cluster-wide review of permissions, which only supports create.
const QUESTION: Row = Row { group: "authorization.k8s.io", verbs: &[Verb::Create], ..Row::CLUSTER };

/// A review of an identity.
const IDENTITY: Row = Row { group: "authentication.k8s.io", ..QUESTION };

pub(crate) static SELF_SUBJECT: Row = Row {
    kind: "SelfSubjectReview",
    plural: "selfsubjectreviews",
    singular: "selfsubjectreview",
    schema: "io.k8s.api.authentication.v1.SelfSubjectReview",
    review: Some(Review::SelfSubject),
    strategy: &Review::SelfSubject,
    example: r#"apiVersion: authentication.k8s.io/v1
kind: SelfSubjectReview
"#,
    ..IDENTITY
};

pub(crate) static TOKEN: Row = Row {
    kind: "TokenReview",
    plural: "tokenreviews",
    singular: "tokenreview",
    schema: "io.k8s.api.authentication.v1.TokenReview",
    review: Some(Review::Token),
    strategy: &Review::Token,
    example: r#"apiVersion: authentication.k8s.io/v1
kind: TokenReview
spec: {token: abc}
"#,
    ..IDENTITY
};

pub(crate) static LOCAL_ACCESS: Row = Row {
    kind: "LocalSubjectAccessReview",
    plural: "localsubjectaccessreviews",
    singular: "localsubjectaccessreview",
    schema: "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
    review: Some(Review::LocalAccess),
    strategy: &Review::LocalAccess,
    example: r#"apiVersion: authorization.k8s.io/v1
kind: LocalSubjectAccessReview
metadata: {namespace: default}
spec: {user: ada, resourceAttributes: {namespace: default, verb: get, resource: pods}}
"#,
    namespaced: true,
    ..QUESTION
};

pub(crate) static SELF_ACCESS: Row = Row {
    kind: "SelfSubjectAccessReview",
    plural: "selfsubjectaccessreviews",
    singular: "selfsubjectaccessreview",
    schema: "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
    review: Some(Review::SelfAccess),
    strategy: &Review::SelfAccess,
    example: r#"apiVersion: authorization.k8s.io/v1
kind: SelfSubjectAccessReview
spec: {resourceAttributes: {namespace: default, verb: get, resource: pods}}
"#,
    ..QUESTION
};

pub(crate) static SELF_RULES: Row = Row {
    kind: "SelfSubjectRulesReview",
    plural: "selfsubjectrulesreviews",
    singular: "selfsubjectrulesreview",
    schema: "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    review: Some(Review::SelfRules),
    strategy: &Review::SelfRules,
    example: r#"apiVersion: authorization.k8s.io/v1
kind: SelfSubjectRulesReview
spec: {namespace: default}
"#,
    ..QUESTION
};

pub(crate) static ACCESS: Row = Row {
    kind: "SubjectAccessReview",
    plural: "subjectaccessreviews",
    singular: "subjectaccessreview",
    schema: "io.k8s.api.authorization.v1.SubjectAccessReview",
    review: Some(Review::Access),
    strategy: &Review::Access,
    example: r#"apiVersion: authorization.k8s.io/v1
kind: SubjectAccessReview
spec: {user: ada, nonResourceAttributes: {verb: get, path: /healthz}}
"#,
    ..QUESTION
};

const SPEC: Path<'static> = Path::root("spec");
const RESOURCE: Path<'static> = Path::root("spec.resourceAttributes");

/// Upstream shows attributes as its internal struct.
fn go_spec(attributes: &Value) -> String {
    if attributes.is_null() {
        return "null".into();
    }
    let text = |key| Value::from(text(attributes, key)).to_string();
    format!("{{\"Path\":{},\"Verb\":{}}}", text("path"), text("verb"))
}

fn selectors(errors: &mut ErrorList, attributes: &Value) {
    for key in ["fieldSelector", "labelSelector"] {
        let selector = get(attributes, key);
        if selector.is_null() {
            continue;
        }
        let at = RESOURCE.child(key);
        let raw = text(selector, "rawSelector");
        let requirements = items(selector, "requirements");
        let list_at = at.child("requirements");
        if !raw.is_empty() && !requirements.is_empty() {
            errors.invalid(&at.child("rawSelector"), raw, "may not specified at the same time as requirements");
        }
        if raw.is_empty() && requirements.is_empty() {
            errors.required(&list_at, &format!("when {at} is specified, requirements or rawSelector is required"));
        }
        for (i, requirement) in requirements.iter().enumerate() {
            let at = list_at.index(i);
            let values = items(requirement, "values");
            let name = text(requirement, "key");
            if key == "fieldSelector" && name.is_empty() {
                errors.required(&at.child("key"), "must be specified");
            }
            match text(requirement, "operator") {
                "In" | "NotIn" if values.is_empty() => {
                    errors.required(&at.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.forbidden(&at.child("values"), why);
                }
                _ => {}
            }
            if key == "labelSelector" {
                label_name(errors, name, &at.child("key"));
                let values_at = at.child("values");
                for (j, value) in values.iter().enumerate() {
                    let value = value.as_str().unwrap_or("");
                    errors.invalid_each(&values_at.index(j), value, rules::label_value(value));
                }
            }
        }
    }
}

impl Review {
    fn access(&self, errors: &mut ErrorList, object: &Value) {
        let spec = get(object, "spec");
        let (resource, other) = (get(spec, "resourceAttributes"), get(spec, "nonResourceAttributes"));
        let invalid = |at: &Path<'_>, why: &str| FieldError::invalid_shown(at, &go_spec(other), why);
        if !resource.is_null() && !other.is_null() {
            let why = "cannot be specified in combination with resourceAttributes";
            errors.add(|| invalid(&SPEC.child("nonResourceAttributes"), why));
        }
        if resource.is_null() && other.is_null() {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errors.add(|| invalid(&SPEC.child("resourceAttributes"), why));
        }
        if !matches!(self, Self::SelfAccess) && text(spec, "user").is_empty() && items(spec, "groups").is_empty() {
            errors.invalid(&SPEC.child("user"), "", "at least one of user or group must be specified");
        }
        selectors(errors, resource);
        let local = matches!(self, Self::LocalAccess);
        let meta = get(object, "metadata");
        let stray = meta
            .as_object()
            .into_iter()
            .flatten()
            .any(|(key, value)| key != "managedFields" && !(local && key == "namespace") && !is_zero(value));
        if stray {
            let why = if local { "must be empty except for namespace" } else { "must be empty" };
            errors.invalid(&Path::root("metadata"), meta.clone(), why);
        }
        if local {
            let namespace = text(resource, "namespace");
            if !resource.is_null() && namespace != text(meta, "namespace") {
                errors.invalid(&RESOURCE.child("namespace"), namespace, "must match metadata.namespace");
            }
            if has(spec, "nonResourceAttributes") {
                let why = "disallowed on this kind of request";
                errors.add(|| invalid(&SPEC.child("nonResourceAttributes"), why));
            }
        }
    }
}

impl Strategy for Review {
    fn validate(&self, _: &Context<'_>, object: &Value, _: Option<&Value>, errors: &mut ErrorList) {
        if matches!(self, Self::Access | Self::LocalAccess | Self::SelfAccess) {
            self.access(errors, object);
        }
    }
}
