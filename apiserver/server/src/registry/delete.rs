//! Delete and deletecollection: preconditions, grace period, finalizers. The decision about one object is pure.

use std::collections::BTreeSet;

use apiserver_schema::apply::Managers;
use jiff::{SignedDuration, Timestamp};
use machinery_api::error::{Details, GroupResource, Status};
use machinery_api::{ApiError, Uid};
use serde_json::{Value, json};

use super::change::{Existing, ObjectChange};
use super::intent::Intent;
use super::object::{self, FOREGROUND, ORPHAN, metadata_mut, versioned};
use super::{Registry, RequestScope, ResponseObject, VerbResult, fields};
use apiserver_admission::Options;
use apiserver_resources::options::{DeleteOptions, ListOptions, Propagation};
use apiserver_resources::{Deletion, ResourceInfo};
use apiserver_storage::store::{Record, Revision};

/// Decides the change of one object.
pub(super) fn decide(row: &ResourceInfo, old: &Value, options: &DeleteOptions, now: Timestamp) -> ObjectChange {
    let mut new = old.clone();
    let grace = match graceful(row, &mut new, options, now) {
        Grace::Pending => return ObjectChange::Keep,
        Grace::Marked(seconds) => Some(seconds),
        Grace::None => None,
    };
    let own: Vec<String> = object::finalizers(old).into_iter().map(Into::into).collect();
    let wanted = finalizers(row, &own, options);
    if wanted.iter().collect::<BTreeSet<_>>() != own.iter().collect::<BTreeSet<_>>() {
        object::set_finalizers(&mut new, &wanted);
    }
    let held = !object::finalizers(&new).is_empty();
    match grace {
        Some(0) if !held => ObjectChange::MarkAndRemove(new),
        Some(_) => ObjectChange::Update(new),
        None if held => {
            if !object::is_deleting(&new) && object::generation(&new) > 0 {
                let next = object::generation(&new) + 1;
                object::set_generation(&mut new, next);
            }
            let begun = object::text(&new, "deletionTimestamp").parse::<Timestamp>().is_ok_and(|at| at <= now);
            let metadata = metadata_mut(&mut new);
            if !begun {
                metadata.insert("deletionTimestamp".into(), json!(object::time(now)));
            }
            metadata.insert("deletionGracePeriodSeconds".into(), json!(0));
            ObjectChange::Update(new)
        }
        None => ObjectChange::Remove(None),
    }
}

enum Grace {
    None,
    Pending,
    Marked(i64),
}

fn graceful(row: &ResourceInfo, new: &mut Value, options: &DeleteOptions, now: Timestamp) -> Grace {
    let Some(default) = row.strategy.grace_seconds(new) else { return Grace::None };
    if object::is_deleting(new) {
        let Some(left) = object::field(new, "deletionGracePeriodSeconds").and_then(Value::as_i64) else {
            return Grace::None;
        };
        if left == 0 {
            // Marked for immediate removal: finalizers hold it, which this request may change, or the server stopped
            // before the removal.
            return Grace::None;
        }
        let Some(mut requested) = options.grace_seconds.filter(|requested| *requested < left) else {
            return Grace::Pending;
        };
        let until: Timestamp = object::text(new, "deletionTimestamp").parse().unwrap_or(now);
        let mut until = until.saturating_add(SignedDuration::from_secs(requested - left)).unwrap_or(now);
        if until < now {
            // The requested time has passed already. With a grace period above 0, the kubelet ends the pod, not the
            // server.
            until = now;
            requested = requested.min(1);
        }
        let metadata = metadata_mut(new);
        metadata.insert("deletionTimestamp".into(), json!(object::time(until)));
        metadata.insert("deletionGracePeriodSeconds".into(), json!(requested));
        return Grace::Marked(requested);
    }
    let seconds = match options.grace_seconds.unwrap_or(default) {
        // No process runs that could use the time.
        _ if !row.strategy.grace_allowed(new) => 0,
        seconds if seconds < 0 => 1,
        seconds => seconds,
    };
    let until = now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
    let metadata = metadata_mut(new);
    metadata.insert("deletionTimestamp".into(), json!(object::time(until)));
    metadata.insert("deletionGracePeriodSeconds".into(), json!(seconds));
    if object::generation(new) > 0 {
        let next = object::generation(new) + 1;
        object::set_generation(new, next);
    }
    Grace::Marked(seconds)
}

/// The finalizers according to the propagation policy.
fn finalizers(row: &ResourceInfo, own: &[String], options: &DeleteOptions) -> Vec<String> {
    if row.deletion == Deletion::WithoutDependents {
        return own.to_vec();
    }
    let policy = match (options.orphan_dependents, options.propagation) {
        (Some(true), _) => Some(Propagation::Orphan),
        (Some(false), _) => Some(Propagation::Background),
        (None, Some(policy)) => Some(policy),
        (None, None) => own.iter().find_map(|f| match f.as_str() {
            ORPHAN => Some(Propagation::Orphan),
            FOREGROUND => Some(Propagation::Foreground),
            _ => None,
        }),
    };
    let policy = policy.or_else(|| row.strategy.orphans_by_default().then_some(Propagation::Orphan));
    let mut wanted: Vec<String> = own.iter().filter(|f| *f != ORPHAN && *f != FOREGROUND).cloned().collect();
    match policy {
        Some(Propagation::Orphan) => wanted.push(ORPHAN.into()),
        Some(Propagation::Foreground) => wanted.push(FOREGROUND.into()),
        Some(Propagation::Background) | None => {}
    }
    wanted
}

/// Checks the preconditions of the options (uid, resourceVersion).
fn preconditions(
    row: &ResourceInfo,
    name: &str,
    old: &Value,
    version: u64,
    options: &DeleteOptions,
) -> Result<(), ApiError> {
    let finalized = row.deletion == Deletion::Finalized;
    let conflict = |why: String| {
        let named = GroupResource::new(&*row.stored().group, &**if finalized { &row.plural } else { &row.kind });
        Err(ApiError::Conflict(named, name.to_owned(), why))
    };
    let (uid, wanted) = (object::uid(old), options.uid.as_deref().map(Uid));
    if let (Some(wanted), Err(why)) = (wanted, uid.meets(wanted)) {
        return conflict(if finalized {
            why
        } else {
            format!(
                "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have \
                 been deleted and then recreated"
            )
        });
    }
    let version = version.to_string();
    if let Some(wanted) = options.resource_version.as_deref().filter(|wanted| *wanted != version) {
        return conflict(if finalized {
            format!(
                "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {version}"
            )
        } else {
            format!(
                "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record \
                 ({version}). The object might have been modified"
            )
        });
    }
    Ok(())
}

/// The change that a delete makes of an existing object.
pub(super) fn change(
    call: &RequestScope<'_>,
    existing: &Existing,
    options: &DeleteOptions,
) -> Result<ObjectChange, ApiError> {
    let (row, old) = (call.row, &*existing.value);
    if let Some(why) = row.strategy.delete_denied_reason(old) {
        return Err(ApiError::Forbidden(call.resource(), call.name.to_owned(), why.into()));
    }
    preconditions(row, call.name, old, existing.modified(), options)?;
    if let Some(marked) = row.strategy.start_deletion(old, call.now) {
        return Ok(ObjectChange::Update(marked));
    }
    Ok(match row.deletion {
        Deletion::Finalized => super::namespace::decide(row, old, options, call.now),
        Deletion::Plain | Deletion::WithoutDependents => decide(row, old, options, call.now),
    })
}

/// The status code of a response with a marked object.
pub(super) fn marked_code(options: &DeleteOptions) -> u16 {
    if options.orphan_dependents == Some(false) { 202 } else { 200 }
}

/// The response to a delete: at `version`, with the stored record if the object remains.
pub(super) fn answer(
    call: &RequestScope<'_>,
    options: &DeleteOptions,
    change: ObjectChange,
    existing: Option<&Existing>,
    version: Revision,
    stored: Option<&Record>,
) -> VerbResult {
    let row = call.row;
    let old = existing.map_or(&Value::Null, |existing| &*existing.value);
    let shown = |object: Value| {
        let managers = existing.map_or_else(Managers::default, Existing::managers);
        ResponseObject::Value(fields::with_managed_fields(versioned(object, version), &managers))
    };
    let gone = |object: Value| {
        if row.strategy.delete_answers_object() {
            VerbResult::Object(200, shown(object))
        } else {
            VerbResult::Status(200, Box::new(success(row, call.name, old)))
        }
    };
    match (change, stored) {
        // These kinds return the object itself as long as finalizers hold it.
        (ObjectChange::Keep, _) if row.deletion == Deletion::Finalized => VerbResult::Object(200, shown(old.clone())),
        (ObjectChange::Update(new), Some(stored)) => {
            VerbResult::Object(marked_code(options), Registry::stored_as(row, new, stored, version))
        }
        (ObjectChange::Update(new), None) => VerbResult::Object(marked_code(options), shown(new)),
        (ObjectChange::MarkAndRemove(new) | ObjectChange::Create { object: new, .. }, _) => gone(new),
        (ObjectChange::Remove(_) | ObjectChange::Keep, _) => gone(old.clone()),
    }
}

impl Registry {
    /// Deletes the object of the path.
    pub async fn delete(&self, call: &mut RequestScope<'_>, options: &DeleteOptions) -> Result<VerbResult, ApiError> {
        warn_of_orphans(call, options);
        self.write(call, &mut Intent::Delete(options.clone()), Options::Delete(options)).await
    }

    /// Deletes the objects that a list selects, and returns that list.
    pub async fn delete_collection(
        &self,
        call: &mut RequestScope<'_>,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<VerbResult, ApiError> {
        warn_of_orphans(call, options);
        let VerbResult::List(found) = self.list(call, list).await? else {
            return Err(ApiError::Internal("a list is a list".into()));
        };
        for item in &found.items {
            // A deletecollection is never across namespaces, so the item's namespace is the call's.
            let mut one = RequestScope { name: item.name(), ..call.fork() };
            match self.write(&mut one, &mut Intent::Delete(options.clone()), Options::Delete(options)).await {
                Ok(_) | Err(ApiError::NotFound(..)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(VerbResult::List(found))
    }
}

/// Warns when the kind's default orphans dependents and the client sent no policy.
fn warn_of_orphans(call: &mut RequestScope<'_>, options: &DeleteOptions) {
    let silent = options.propagation.is_none() && options.orphan_dependents.is_none();
    if call.row.strategy.warns_on_default_orphaning() && silent {
        let plural = call.row.plural.clone();
        call.warn(format!(
            "child pods are preserved by default when {plural} are deleted; set propagationPolicy=Background to remove them \
             or set propagationPolicy=Orphan to suppress this warning"
        ));
    }
}

/// The Status of a deletion that removed the object.
fn success(row: &ResourceInfo, name: &str, old: &Value) -> Status {
    let details = Details {
        name: name.to_owned(),
        group: row.group.to_string(),
        kind: row.plural.to_string(),
        uid: object::text(old, "uid").to_owned(),
        ..Details::default()
    };
    Status::success(0, Some(details))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(plural: &str) -> &'static ResourceInfo {
        crate::test_catalog::built_in().resources().iter().find(|r| &*r.plural == plural).unwrap()
    }

    #[test]
    fn policies_and_finalizers() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let object =
            |finalizers: &[&str]| json!({"metadata": {"name": "a", "generation": 3, "finalizers": finalizers}});
        let of = |change: ObjectChange| match change {
            ObjectChange::Update(new) => object::finalizers(&new).join(","),
            other => format!("{other:?}"),
        };
        let options =
            |propagation, orphan_dependents| DeleteOptions { propagation, orphan_dependents, ..Default::default() };
        let row = row("configmaps");
        let decide = |own: &[&str], p, o| of(super::decide(row, &object(own), &options(p, o), now));
        assert_eq!(decide(&[], None, None), "Remove(None)");
        assert_eq!(decide(&[], Some(Propagation::Foreground), None), FOREGROUND);
        assert_eq!(decide(&["a.b/c"], Some(Propagation::Orphan), None), "a.b/c,orphan");
        assert_eq!(decide(&["orphan", "a.b/c"], None, None), "orphan,a.b/c");
        assert_eq!(decide(&["orphan", "a.b/c"], Some(Propagation::Background), None), "a.b/c");
        assert_eq!(decide(&["orphan"], None, Some(false)), "Remove(None)");
        let ObjectChange::Update(new) = super::decide(row, &object(&["a.b/c"]), &DeleteOptions::default(), now) else {
            panic!()
        };
        assert_eq!(object::generation(&new), 4);
        let ObjectChange::Update(again) = super::decide(row, &new, &DeleteOptions::default(), now) else { panic!() };
        assert_eq!(again, new);
    }

    #[test]
    fn an_object_marked_for_immediate_removal_is_removed_by_the_next_delete() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}});
        let options = DeleteOptions { grace_seconds: Some(0), ..Default::default() };
        let ObjectChange::MarkAndRemove(marked) = decide(row("pods"), &pod, &options, now) else { panic!() };
        assert_eq!(decide(row("pods"), &marked, &DeleteOptions::default(), now), ObjectChange::Remove(None));
        pod["metadata"]["finalizers"] = json!(["a.b/c"]);
        let ObjectChange::Update(held) = decide(row("pods"), &pod, &options, now) else { panic!() };
        assert_eq!(decide(row("pods"), &held, &DeleteOptions::default(), now), ObjectChange::Update(held.clone()));
        let foreground = DeleteOptions { propagation: Some(Propagation::Foreground), ..Default::default() };
        let ObjectChange::Update(exchanged) = decide(row("pods"), &held, &foreground, now) else { panic!() };
        assert_eq!(object::finalizers(&exchanged), ["a.b/c", FOREGROUND]);
    }

    #[test]
    fn a_shortened_grace_period_ends_now_at_the_earliest() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}});
        let ObjectChange::Update(marked) = decide(row("pods"), &pod, &DeleteOptions::default(), now) else { panic!() };
        let later = now + SignedDuration::from_secs(20);
        let ends = |requested: i64| {
            let options = DeleteOptions { grace_seconds: Some(requested), ..Default::default() };
            match decide(row("pods"), &marked, &options, later) {
                ObjectChange::Update(new) | ObjectChange::MarkAndRemove(new) => {
                    let grace = object::field(&new, "deletionGracePeriodSeconds").and_then(Value::as_i64);
                    (object::text(&new, "deletionTimestamp").to_owned(), grace)
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(ends(25), ("2026-01-01T00:00:25Z".into(), Some(25)));
        // These times have passed: the kubelet ends the pod now, and the server only for a grace period of 0.
        assert_eq!(ends(10), ("2026-01-01T00:00:20Z".into(), Some(1)));
        assert_eq!(ends(0), ("2026-01-01T00:00:20Z".into(), Some(0)));
    }
}
