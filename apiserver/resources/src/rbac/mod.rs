//! Roles, ClusterRoles and their bindings. The authorizer checks privilege escalation.

use jiff::Timestamp;
use machinery_api::selector::LabelSelector;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, NAME_AND_CREATED, age, column, name, name_and_created, wide};
use crate::choices::choice;
use crate::field::{ErrorList, FieldError, Path, go_struct};
use crate::metadata::label_selector;
use crate::read::{default_zero_to, get, has, items, items_mut, object_mut, text};
use crate::rules::{self, NameRule};
use crate::{Column, Context, MetadataChecks, Row, Storage, Strategy};

pub(crate) static CLUSTER_ROLE_BINDINGS: Row = Row {
    group: GROUP,
    kind: "ClusterRoleBinding",
    plural: "clusterrolebindings",
    singular: "clusterrolebinding",
    schema: "io.k8s.api.rbac.v1.ClusterRoleBinding",
    storage: Storage::Stored("clusterrolebindings"),
    strategy: &Binding { namespaced: false },
    example: r#"apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: example}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: example, namespace: default}]
"#,
    ..Row::CLUSTER
};

pub(crate) static CLUSTER_ROLES: Row = Row {
    group: GROUP,
    kind: "ClusterRole",
    plural: "clusterroles",
    singular: "clusterrole",
    schema: "io.k8s.api.rbac.v1.ClusterRole",
    storage: Storage::Stored("clusterroles"),
    strategy: &Role { namespaced: false },
    example: r#"apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: example}
rules: [{apiGroups: [""], resources: [nodes], verbs: [get]}]
"#,
    ..Row::CLUSTER
};

pub(crate) static ROLE_BINDINGS: Row = Row {
    group: GROUP,
    kind: "RoleBinding",
    plural: "rolebindings",
    singular: "rolebinding",
    schema: "io.k8s.api.rbac.v1.RoleBinding",
    storage: Storage::Stored("rolebindings"),
    strategy: &Binding { namespaced: true },
    example: r#"apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: example}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: example}
subjects: [{kind: User, name: ada}]
"#,
    ..Row::NAMESPACED
};

pub(crate) static ROLES: Row = Row {
    group: GROUP,
    kind: "Role",
    plural: "roles",
    singular: "role",
    schema: "io.k8s.api.rbac.v1.Role",
    storage: Storage::Stored("roles"),
    strategy: &Role { namespaced: true },
    example: r#"apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: example}
rules: [{apiGroups: [""], resources: [pods], verbs: [get, list]}]
"#,
    ..Row::NAMESPACED
};

const GROUP: &str = "rbac.authorization.k8s.io";
const BINDING_COLUMNS: &[Column] = &[
    NAME,
    column("Role", "string"),
    AGE,
    wide("Users", "string"),
    wide("Groups", "string"),
    wide("ServiceAccounts", "string"),
];

struct Role {
    namespaced: bool,
}

struct Binding {
    namespaced: bool,
}

impl Role {
    fn rules(&self, errors: &mut ErrorList, object: &Value) {
        let rules_at = Path::root("rules");
        for (i, rule) in items(object, "rules").iter().enumerate() {
            let at = rules_at.index(i);
            if items(rule, "verbs").is_empty() {
                errors.required(&at.child("verbs"), "verbs must contain at least one value");
            }
            let urls_at = at.child("nonResourceURLs");
            let given = |key: &str| !items(rule, key).is_empty();
            if given("nonResourceURLs") {
                let shown = get(rule, "nonResourceURLs");
                if self.namespaced {
                    errors.invalid(&urls_at, shown.clone(), "namespaced rules cannot apply to non-resource URLs");
                }
                if ["apiGroups", "resources", "resourceNames"].iter().any(|key| given(key)) {
                    let why = "rules cannot apply to both regular resources and non-resource URLs";
                    errors.invalid(&urls_at, shown.clone(), why);
                }
                continue;
            }
            if !given("apiGroups") {
                errors.required(&at.child("apiGroups"), "resource rules must supply at least one api group");
            }
            if !given("resources") {
                errors.required(&at.child("resources"), "resource rules must supply at least one resource");
            }
        }
    }

    fn aggregation(errors: &mut ErrorList, object: &Value) {
        let aggregation = get(object, "aggregationRule");
        if aggregation.is_null() {
            return;
        }
        let list_at = Path::root("aggregationRule.clusterRoleSelectors");
        let selectors = items(aggregation, "clusterRoleSelectors");
        if selectors.is_empty() {
            let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errors.required(&list_at, why);
        }
        for (i, selector) in selectors.iter().enumerate() {
            let at = list_at.index(i);
            label_selector(errors, selector, &at);
            if LabelSelector::from_value(Some(selector)).is_err() {
                errors.add(|| FieldError::invalid_shown(&at, "null", "invalid label selector."));
            }
        }
    }
}

impl Strategy for Role {
    fn default(&self, object: &mut Value) {
        // Go's encoder writes absent rules as null.
        if items(object, "rules").is_empty()
            && !get(object, "rules").is_array()
            && let Some(map) = object.as_object_mut()
        {
            map.insert("rules".into(), Value::Null);
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::WholeSegment
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::WholeThenChange
    }

    fn validate(&self, _: &Context<'_>, object: &Value, _: Option<&Value>, errors: &mut ErrorList) {
        self.rules(errors, object);
        if !self.namespaced {
            Self::aggregation(errors, object);
        }
    }

    fn create_on_update(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        NAME_AND_CREATED
    }

    fn cells(&self, object: &Value, _: Timestamp) -> Vec<Value> {
        name_and_created(object)
    }
}

impl Binding {
    fn role_ref(&self, errors: &mut ErrorList, role: &Value) {
        let at = Path::root("roleRef");
        choice(errors, role, "apiGroup", &[GROUP], &at);
        let kinds: &[&str] = if self.namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
        choice(errors, role, "kind", kinds, &at);
        let name = text(role, "name");
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        } else {
            errors.invalid_each(&at.child("name"), name, rules::path_segment(name, false));
        }
    }

    fn subject(&self, errors: &mut ErrorList, subject: &Value, at: &Path<'_>) {
        let (group, name) = (text(subject, "apiGroup"), text(subject, "name"));
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        }
        match text(subject, "kind") {
            "ServiceAccount" => {
                if !name.is_empty() {
                    errors.invalid_each(&at.child("name"), name, rules::dns_subdomain(name));
                }
                if !group.is_empty() {
                    errors.not_supported(&at.child("apiGroup"), group, &[""]);
                }
                if !self.namespaced && text(subject, "namespace").is_empty() {
                    errors.required(&at.child("namespace"), "");
                }
            }
            "User" | "Group" => {
                choice(errors, subject, "apiGroup", &[GROUP], at);
            }
            other => errors.not_supported(&at.child("kind"), other, &["ServiceAccount", "User", "Group"]),
        }
    }
}

impl Strategy for Binding {
    fn default(&self, object: &mut Value) {
        default_zero_to(object_mut(object, "roleRef"), "apiGroup", GROUP);
        for subject in items_mut(object, "subjects") {
            if ["User", "Group"].contains(&text(subject, "kind")) {
                default_zero_to(subject, "apiGroup", GROUP);
            }
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::WholeSegment
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::WholeThenChange
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        self.role_ref(errors, get(object, "roleRef"));
        let at = Path::root("subjects");
        for (i, subject) in items(object, "subjects").iter().enumerate() {
            self.subject(errors, subject, &at.index(i));
        }
        if let Some(old) = old {
            let (role, was) = (get(object, "roleRef"), get(old, "roleRef"));
            if ["apiGroup", "kind", "name"].iter().any(|key| text(role, key) != text(was, key)) {
                let inner = json!({"APIGroup": text(role, "apiGroup"), "Kind": text(role, "kind"),
                    "Name": text(role, "name")});
                let shown = go_struct(&inner, &["APIGroup", "Kind", "Name"]);
                errors.add(|| FieldError::invalid_shown(&Path::root("roleRef"), &shown, "cannot change roleRef"));
            }
        }
    }

    fn create_on_update(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        BINDING_COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let role = get(object, "roleRef");
        let of = |kind: &str| {
            let list: Vec<String> = items(object, "subjects")
                .iter()
                .filter(|s| text(s, "kind") == kind)
                .map(|s| {
                    let name = text(s, "name");
                    if kind == "ServiceAccount" && has(s, "namespace") {
                        format!("{}/{name}", text(s, "namespace"))
                    } else if kind == "ServiceAccount" {
                        format!("/{name}")
                    } else {
                        name.to_owned()
                    }
                })
                .collect();
            json!(list.join(", "))
        };
        let shown = format!("{}/{}", text(role, "kind"), text(role, "name"));
        vec![name(object), json!(shown), age(object, now), of("User"), of("Group"), of("ServiceAccount")]
    }
}
