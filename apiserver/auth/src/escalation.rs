//! Prevents privilege escalation: a role or binding may grant only what its author holds, except with the verbs
//! `escalate` or `bind`.

use machinery_api::error::{ApiError, ApiResult, GroupResource};
use machinery_api::selector::go_quoted;
use serde_json::Value;

use super::rbac::aggregate;
use super::rules::{Rule, missing, quoted_list};
use super::{Attributes, Authorizer, MASTERS, RBAC_GROUP, UserInfo};
use apiserver_resources::objects::ObjectReader;

/// A write of an RBAC object.
#[derive(Debug, Clone, Copy)]
pub struct RbacWrite<'a> {
    /// `roles`, `clusterroles`, `rolebindings` or `clusterrolebindings`.
    pub plural: &'a str,
    /// The request's namespace; empty for cluster-wide kinds.
    pub namespace: &'a str,
    /// The name in the request's path; empty for a create.
    pub path_name: &'a str,
    /// The object to be written, after defaulting.
    pub new: &'a Value,
    /// The stored object.
    pub old: Option<&'a Value>,
}

/// Rejects a write that grants rights the user does not hold. Objects of other kinds pass.
///
/// Runs after authorization, decoding and defaulting, and before validation, as upstream.
pub async fn check(
    authorizer: &Authorizer,
    objects: &dyn ObjectReader,
    user: &UserInfo,
    write: &RbacWrite<'_>,
) -> ApiResult<()> {
    let check = EscalationCheck { authorizer, objects, user, write };
    match write.plural {
        "roles" | "clusterroles" => check.role().await,
        "rolebindings" | "clusterrolebindings" => check.binding().await,
        _ => Ok(()),
    }
}

struct EscalationCheck<'a> {
    authorizer: &'a Authorizer,
    objects: &'a dyn ObjectReader,
    user: &'a UserInfo,
    write: &'a RbacWrite<'a>,
}

impl EscalationCheck<'_> {
    async fn role(&self) -> ApiResult<()> {
        let write = self.write;
        if self.user.is_in(MASTERS)
            || self.is_allowed("escalate", write.plural, write.path_name).await
            || self.changes_only_gc_fields()
        {
            return Ok(());
        }
        self.check_held(&Rule::parse_all(write.new))?;
        let aggregates = |role: &Value| {
            role["aggregationRule"]["clusterRoleSelectors"].as_array().is_some_and(|selectors| !selectors.is_empty())
        };
        if write.plural == "clusterroles"
            && (aggregates(write.new) || write.old.is_some_and(aggregates))
            && self.check_held(&Rule::full_authority()).is_err()
        {
            return Err(self.forbidden("must have cluster-admin privileges to use the aggregationRule".into()));
        }
        Ok(())
    }

    async fn binding(&self) -> ApiResult<()> {
        let write = self.write;
        if self.user.is_in(MASTERS) || self.changes_only_gc_fields() {
            return Ok(());
        }
        let role = &write.new["roleRef"];
        let name = role["name"].as_str().unwrap_or_default();
        let (plural, namespace) = match role["kind"].as_str() {
            Some("ClusterRole") => ("clusterroles", ""),
            Some("Role") if write.plural == "rolebindings" => ("roles", write.namespace),
            Some("Role") => return Err(ApiError::BadRequest("Namespace parameter required.".into())),
            // Validation rejects this reference.
            _ => return Ok(()),
        };
        if name.is_empty() || self.is_allowed("bind", plural, name).await {
            return Ok(());
        }
        let Some(role) = self.objects.get(RBAC_GROUP, plural, namespace, name) else {
            // The error names the binding's resource, as upstream.
            return Err(ApiError::NotFound(GroupResource::new(RBAC_GROUP, write.plural), name.to_owned()));
        };
        self.check_held(&Rule::parse_all(&role))
    }

    async fn is_allowed(&self, verb: &str, resource: &str, name: &str) -> bool {
        let request = Attributes {
            verb,
            group: RBAC_GROUP,
            version: "*",
            resource,
            namespace: self.write.namespace,
            name,
            is_resource: true,
            ..Attributes::default()
        };
        self.authorizer.authorize(self.objects, self.user, &request).await.allowed
    }

    fn check_held(&self, wanted: &[Rule]) -> ApiResult<()> {
        let granted = self.authorizer.rules_for(self.objects, self.user, self.write.namespace);
        let missing = missing(&granted.rules, wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let mut sentence = format!(
            "user {} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            go_quoted(&self.user.name),
            quoted_list(&self.user.groups),
            missing.join("\n")
        );
        if !granted.errors.is_empty() {
            sentence.push_str(&format!("; resolution errors: [{}]", aggregate(&granted.errors)));
        }
        Err(self.forbidden(sentence))
    }

    fn forbidden(&self, sentence: String) -> ApiError {
        let name = self.write.new["metadata"]["name"].as_str().unwrap_or_default();
        ApiError::Forbidden(GroupResource::new(RBAC_GROUP, self.write.plural), name.to_owned(), sentence)
    }

    /// Whether only fields for garbage collection change: finalizers and owner references.
    fn changes_only_gc_fields(&self) -> bool {
        let Some(old) = self.write.old else { return false };
        let bare = |object: &Value| {
            let mut object = object.clone();
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                for field in ["ownerReferences", "finalizers", "managedFields"] {
                    metadata.remove(field);
                }
            }
            object
        };
        bare(self.write.new) == bare(old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apiserver_resources::objects::memory::MemoryObjects;
    use futures::FutureExt as _;
    use serde_json::json;

    #[test]
    fn only_own_rights_can_be_granted() {
        let map = MemoryObjects::default();
        map.put(
            RBAC_GROUP,
            "roles",
            json!({"metadata": {"namespace": "ns", "name": "r"}, "rules": [
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
                {"apiGroups": [RBAC_GROUP], "resources": ["roles"], "resourceNames": ["allowed"], "verbs": ["bind"]},
            ]}),
        );
        map.put(
            RBAC_GROUP,
            "rolebindings",
            json!({"metadata": {"namespace": "ns", "name": "b"},
            "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "jo"}]}),
        );
        let authorizer = Authorizer::default();
        let user = UserInfo { name: "jo".into(), groups: vec!["system:authenticated".into()], ..UserInfo::default() };
        let ask = |plural: &str, new: Value, old: Option<&Value>| {
            let write = RbacWrite { plural, namespace: "ns", path_name: "", new: &new, old };
            check(&authorizer, &map, &user, &write)
                .now_or_never()
                .expect("no link waits")
                .map_err(|e| e.status().message)
        };
        let role = |resource: &str| json!({"metadata": {"name": "x"}, "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]});
        assert_eq!(ask("roles", role("pods"), None), Ok(()));
        assert_eq!(
            ask("roles", role("secrets"), None).unwrap_err(),
            "roles.rbac.authorization.k8s.io \"x\" is forbidden: user \"jo\" (groups=[\"system:authenticated\"]) is \
             attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"secrets\"], \
             Verbs:[\"get\"]}"
        );
        let mut held = role("secrets");
        held["metadata"]["finalizers"] = json!(["a/b"]);
        assert_eq!(ask("roles", held.clone(), Some(&role("secrets"))), Ok(()));
        held["metadata"]["labels"] = json!({"a": "b"});
        assert!(ask("roles", held, Some(&role("secrets"))).is_err());
        let binding =
            |kind: &str, name: &str| json!({"metadata": {"name": "y"}, "roleRef": {"kind": kind, "name": name}});
        assert_eq!(
            ask("rolebindings", binding("Role", "allowed"), None),
            Ok(()),
            "bind by name, even of a missing role"
        );
        assert_eq!(
            ask("rolebindings", binding("Role", "none"), None).unwrap_err(),
            "rolebindings.rbac.authorization.k8s.io \"none\" not found"
        );
        assert_eq!(ask("rolebindings", binding("Role", "r"), None), Ok(()), "all its rules are held");
    }
}
