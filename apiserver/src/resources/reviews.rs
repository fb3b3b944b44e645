//! SelfSubjectReview, TokenReview, LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, Strategy, Verb};

/// SelfSubjectReviews.
pub(super) static SELF_SUBJECT: Row = Row {
    group: "authentication.k8s.io",
    kind: "SelfSubjectReview",
    plural: "selfsubjectreviews",
    singular: "selfsubjectreview",
    schema: "io.k8s.api.authentication.v1.SelfSubjectReview",
    verbs: &[Verb::Create],
    strategy: &SelfSubjectReview,
    example: r#"apiVersion: authentication.k8s.io/v1
kind: SelfSubjectReview
"#,
    ..Row::CLUSTER
};

/// TokenReviews.
pub(super) static TOKEN: Row = Row {
    group: "authentication.k8s.io",
    kind: "TokenReview",
    plural: "tokenreviews",
    singular: "tokenreview",
    schema: "io.k8s.api.authentication.v1.TokenReview",
    verbs: &[Verb::Create],
    strategy: &TokenReview,
    example: r#"apiVersion: authentication.k8s.io/v1
kind: TokenReview
spec: {token: abc}
"#,
    ..Row::CLUSTER
};

/// LocalSubjectAccessReviews.
pub(super) static LOCAL_ACCESS: Row = Row {
    group: "authorization.k8s.io",
    kind: "LocalSubjectAccessReview",
    plural: "localsubjectaccessreviews",
    singular: "localsubjectaccessreview",
    schema: "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
    verbs: &[Verb::Create],
    strategy: &LocalSubjectAccessReview,
    example: r#"apiVersion: authorization.k8s.io/v1
kind: LocalSubjectAccessReview
metadata: {namespace: default}
spec: {user: ada, resourceAttributes: {namespace: default, verb: get, resource: pods}}
"#,
    ..Row::NAMESPACED
};

/// SelfSubjectAccessReviews.
pub(super) static SELF_ACCESS: Row = Row {
    group: "authorization.k8s.io",
    kind: "SelfSubjectAccessReview",
    plural: "selfsubjectaccessreviews",
    singular: "selfsubjectaccessreview",
    schema: "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
    verbs: &[Verb::Create],
    strategy: &SelfSubjectAccessReview,
    example: r#"apiVersion: authorization.k8s.io/v1
kind: SelfSubjectAccessReview
spec: {resourceAttributes: {namespace: default, verb: get, resource: pods}}
"#,
    ..Row::CLUSTER
};

/// SelfSubjectRulesReviews.
pub(super) static SELF_RULES: Row = Row {
    group: "authorization.k8s.io",
    kind: "SelfSubjectRulesReview",
    plural: "selfsubjectrulesreviews",
    singular: "selfsubjectrulesreview",
    schema: "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    verbs: &[Verb::Create],
    strategy: &SelfSubjectRulesReview,
    example: r#"apiVersion: authorization.k8s.io/v1
kind: SelfSubjectRulesReview
spec: {namespace: default}
"#,
    ..Row::CLUSTER
};

/// SubjectAccessReviews.
pub(super) static ACCESS: Row = Row {
    group: "authorization.k8s.io",
    kind: "SubjectAccessReview",
    plural: "subjectaccessreviews",
    singular: "subjectaccessreview",
    schema: "io.k8s.api.authorization.v1.SubjectAccessReview",
    verbs: &[Verb::Create],
    strategy: &SubjectAccessReview,
    example: r#"apiVersion: authorization.k8s.io/v1
kind: SubjectAccessReview
spec: {user: ada, nonResourceAttributes: {verb: get, path: /healthz}}
"#,
    ..Row::CLUSTER
};

struct SelfSubjectReview;

impl Strategy for SelfSubjectReview {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}

struct TokenReview;

impl Strategy for TokenReview {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}

struct LocalSubjectAccessReview;

impl Strategy for LocalSubjectAccessReview {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}

struct SelfSubjectAccessReview;

impl Strategy for SelfSubjectAccessReview {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}

struct SelfSubjectRulesReview;

impl Strategy for SelfSubjectRulesReview {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}

struct SubjectAccessReview;

impl Strategy for SubjectAccessReview {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
