//! Kinds that nothing acts on yet: who makes or changes one is told so, where the client shows warnings to people
//! (docs/decisions/0080-inert-kinds.md).

use serde_json::Value;

use super::write::Change;
use apiserver_resources::{ResourceInfo, Subresource, SubresourceKind};

/// The warning about a new object, or one of which more changes than metadata and status.
pub(super) fn warning(
    row: &ResourceInfo,
    subresource: Option<Subresource>,
    change: &Change,
    old: Option<&Value>,
) -> Option<String> {
    let sentence = row.inert.as_deref()?;
    let wished = match (change, old) {
        (Change::Create { .. }, _) => true,
        (Change::Update(new), Some(old)) => {
            subresource.is_none_or(|subresource| subresource.what == SubresourceKind::Scale)
                && wishes(new).ne(wishes(old))
        }
        _ => false,
    };
    wished.then(|| sentence.to_owned())
}

/// What somebody is to act on.
fn wishes(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten().filter(|(key, _)| *key != "metadata" && *key != "status")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_makes_or_changes_one_is_told() {
        let rows = crate::catalog::tests::built_in().resources();
        let plain = rows.iter().find(|row| &*row.plural == "deployments").unwrap();
        let row = ResourceInfo { inert: Some("nothing acts on it".into()), ..(**plain).clone() };
        let object = |replicas, ready| json!({"metadata": {}, "spec": {"replicas": replicas}, "status": {"r": ready}});
        let new = Change::Create { object: object(1, 0), version: None, generated: false };
        let (told, subresource) = (Some("nothing acts on it".to_owned()), |name| {
            row.subresources.iter().find(|sub| sub.name == name).copied()
        });
        assert_eq!(warning(&row, None, &new, None), told);
        assert_eq!(warning(plain, None, &new, None), None);
        let (scaled, seen) = (Change::Update(object(2, 0)), Change::Update(object(1, 1)));
        let old = Some(&object(1, 0)).cloned();
        assert_eq!(warning(&row, None, &scaled, old.as_ref()), told);
        assert_eq!(warning(&row, subresource("scale"), &scaled, old.as_ref()), told);
        assert_eq!(warning(&row, subresource("status"), &scaled, old.as_ref()), None);
        assert_eq!(warning(&row, None, &seen, old.as_ref()), None);
        assert_eq!(warning(&row, None, &Change::Remove(None), old.as_ref()), None);
    }
}
