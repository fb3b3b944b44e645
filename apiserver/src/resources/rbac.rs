//! ClusterRoleBinding, ClusterRole, RoleBinding, Role.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, Storage, Strategy};

/// ClusterRoleBindings.
pub(super) static CLUSTER_ROLE_BINDINGS: Row = Row {
    group: "rbac.authorization.k8s.io",
    kind: "ClusterRoleBinding",
    plural: "clusterrolebindings",
    singular: "clusterrolebinding",
    schema: "io.k8s.api.rbac.v1.ClusterRoleBinding",
    storage: Storage::Stored("clusterrolebindings"),
    strategy: &ClusterRoleBinding,
    example: r#"apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: example}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: example, namespace: default}]
"#,
    ..Row::CLUSTER
};

/// ClusterRoles.
pub(super) static CLUSTER_ROLES: Row = Row {
    group: "rbac.authorization.k8s.io",
    kind: "ClusterRole",
    plural: "clusterroles",
    singular: "clusterrole",
    schema: "io.k8s.api.rbac.v1.ClusterRole",
    storage: Storage::Stored("clusterroles"),
    strategy: &ClusterRole,
    example: r#"apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: example}
rules: [{apiGroups: [""], resources: [nodes], verbs: [get]}]
"#,
    ..Row::CLUSTER
};

/// RoleBindings.
pub(super) static ROLE_BINDINGS: Row = Row {
    group: "rbac.authorization.k8s.io",
    kind: "RoleBinding",
    plural: "rolebindings",
    singular: "rolebinding",
    schema: "io.k8s.api.rbac.v1.RoleBinding",
    storage: Storage::Stored("rolebindings"),
    strategy: &RoleBinding,
    example: r#"apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: example}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: example}
subjects: [{kind: User, name: ada}]
"#,
    ..Row::NAMESPACED
};

/// Roles.
pub(super) static ROLES: Row = Row {
    group: "rbac.authorization.k8s.io",
    kind: "Role",
    plural: "roles",
    singular: "role",
    schema: "io.k8s.api.rbac.v1.Role",
    storage: Storage::Stored("roles"),
    strategy: &Role,
    example: r#"apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: example}
rules: [{apiGroups: [""], resources: [pods], verbs: [get, list]}]
"#,
    ..Row::NAMESPACED
};

struct ClusterRoleBinding;

impl Strategy for ClusterRoleBinding {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}

struct ClusterRole;

impl Strategy for ClusterRole {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}

struct RoleBinding;

impl Strategy for RoleBinding {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}

struct Role;

impl Strategy for Role {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
