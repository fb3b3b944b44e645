//! Namespace deletion: the Namespace becomes Terminating, and is removed when its `spec.finalizers` are empty.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::change::ObjectChange;
use super::delete;
use super::object::{self, FOREGROUND, ORPHAN};
use apiserver_resources::ResourceInfo;
use apiserver_resources::options::{DeleteOptions, Propagation};

/// Decides the change of one Namespace.
pub(super) fn decide(row: &ResourceInfo, old: &Value, options: &DeleteOptions, now: Timestamp) -> ObjectChange {
    if object::is_deleting(old) {
        let held = old["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        return if held { ObjectChange::Keep } else { delete::decide(row, old, options, now) };
    }
    let mut new = old.clone();
    object::metadata_mut(&mut new).insert("deletionTimestamp".into(), json!(object::time(now)));
    if !new["status"].is_object() {
        new["status"] = json!({});
    }
    new["status"]["phase"] = json!("Terminating");
    let own: Vec<String> = object::finalizers(old).into_iter().map(Into::into).collect();
    let wants = |finalizer: &str, policy: Propagation| match (options.orphan_dependents, options.propagation) {
        (Some(orphan), _) => orphan && finalizer == ORPHAN,
        (None, Some(requested)) => requested == policy,
        (None, None) => own.iter().any(|f| f == finalizer),
    };
    let mut wanted: Vec<String> = own.iter().filter(|f| *f != ORPHAN && *f != FOREGROUND).cloned().collect();
    if wants(ORPHAN, Propagation::Orphan) {
        wanted.push(ORPHAN.into());
    }
    if wants(FOREGROUND, Propagation::Foreground) {
        wanted.push(FOREGROUND.into());
    }
    object::set_finalizers(&mut new, &wanted);
    ObjectChange::Update(new)
}
