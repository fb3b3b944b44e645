//! Warnings for kinds that have no controller yet, and for fields of pods and pod templates that no node implements.
//! They are returned on create and update if the client shows warnings to people (docs/decisions/0080-inert-kinds.md).

use serde_json::Value;

use super::change::ObjectChange;
use apiserver_resources::{ResourceInfo, Subresource, SubresourceKind};
use apiserver_schema::{Kind, TypeRef};
use machinery_rules::unsupported;

/// The warnings about a new object, or about one whose change goes beyond metadata and status.
pub(super) fn warnings(
    row: &ResourceInfo,
    subresource: Option<Subresource>,
    change: &ObjectChange,
    old: Option<&Value>,
) -> Vec<String> {
    let what = subresource.map(|subresource| subresource.what);
    let changes_desired = match (change, old) {
        (ObjectChange::Create { .. }, _) => true,
        (ObjectChange::Update(new), Some(old)) => {
            matches!(what, None | Some(SubresourceKind::Scale | SubresourceKind::Part))
                && desired_fields(new).ne(desired_fields(old))
        }
        _ => false,
    };
    let Some(object) = change.object().filter(|_| changes_desired) else { return Vec::new() };
    let part = what == Some(SubresourceKind::Part);
    // Types of custom resources don't refer to those of pods.
    let of = row.schema.made();
    let unsupported =
        of.and_then(|of| pod_spec(of.get(), object, String::new(), LEVELS_MAX)).map(|(spec, at)| match part {
            true => unsupported::ephemeral(spec, &at, None),
            false => unsupported::fields(spec, &at),
        });
    let unsupported = unsupported.into_iter().flatten().map(|field| format!("{}: {}", field.path, field.why));
    row.inert.as_deref().map(str::to_owned).into_iter().chain(unsupported).collect()
}

/// The maximum depth of a pod spec: `spec.jobTemplate.spec.template.spec` of a CronJob.
const LEVELS_MAX: usize = 5;

/// The pod spec in an object of this type, its own or a template's, and its path.
fn pod_spec<'a>(of: TypeRef<'_>, object: &'a Value, at: String, levels: usize) -> Option<(&'a Value, String)> {
    if &*of.of.name == "io.k8s.api.core.v1.PodSpec" {
        return Some((object, at));
    }
    ["spec", "template", "jobTemplate"].into_iter().filter(|_| levels > 0).find_map(|name| {
        let Kind::Object(id) = of.of.field(name)?.kind else { return None };
        let at = if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
        pod_spec(of.types.refer(id), object.get(name)?, at, levels - 1)
    })
}

/// The fields that a controller would act on.
fn desired_fields(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten().filter(|(key, _)| *key != "metadata" && *key != "status")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NONE: [&str; 0] = [];

    #[test]
    fn creates_and_updates_of_an_inert_kind_warn() {
        let rows = crate::test_catalog::built_in().resources();
        let plain = rows.iter().find(|row| &*row.plural == "deployments").unwrap();
        let row = ResourceInfo { inert: Some("nothing acts on it".into()), ..(**plain).clone() };
        let object = |replicas, ready| json!({"metadata": {}, "spec": {"replicas": replicas}, "status": {"r": ready}});
        let new = ObjectChange::Create { object: object(1, 0), version: None, generated: false };
        let (warned, subresource) = (vec!["nothing acts on it".to_owned()], |name| {
            row.subresources.iter().find(|sub| sub.name == name).copied()
        });
        assert_eq!(warnings(&row, None, &new, None), warned);
        assert_eq!(warnings(plain, None, &new, None), NONE);
        let (scaled, seen) = (ObjectChange::Update(object(2, 0)), ObjectChange::Update(object(1, 1)));
        let old = Some(&object(1, 0)).cloned();
        assert_eq!(warnings(&row, None, &scaled, old.as_ref()), warned);
        assert_eq!(warnings(&row, subresource("scale"), &scaled, old.as_ref()), warned);
        assert_eq!(warnings(&row, subresource("status"), &scaled, old.as_ref()), NONE);
        assert_eq!(warnings(&row, None, &seen, old.as_ref()), NONE);
        assert_eq!(warnings(&row, None, &ObjectChange::Remove(None), old.as_ref()), NONE);
    }

    #[test]
    fn an_unsupported_pod_field_is_reported_with_its_path() {
        let rows = crate::test_catalog::built_in().resources();
        let of = |plural: &str| rows.iter().find(|row| &*row.plural == plural).unwrap();
        let pod =
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 53, "hostPort": 53, "protocol": "UDP"}]}]});
        let why =
            "containers[0].ports[0].protocol: nodes listen for TCP only: leave the hostPort out, or make the port TCP";
        for (plural, object, at) in [
            ("pods", json!({"spec": pod}), "spec"),
            ("deployments", json!({"spec": {"template": {"spec": pod}}}), "spec.template.spec"),
            ("jobs", json!({"spec": {"template": {"spec": pod}}}), "spec.template.spec"),
        ] {
            let new = ObjectChange::Create { object, version: None, generated: false };
            assert_eq!(warnings(of(plural), None, &new, None), [format!("{at}.{why}")]);
        }
        let plain = ObjectChange::Create { object: json!({"data": {}}), version: None, generated: false };
        assert_eq!(warnings(of("configmaps"), None, &plain, None), NONE);
    }
}
