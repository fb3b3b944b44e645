//! Delete and deletecollection: preconditions, grace, finalizers; what is decided about one object is pure.

use std::collections::BTreeSet;

use crate::admission::Operation;
use jiff::{SignedDuration, Timestamp};
use machinery::api::ApiError;
use machinery::api::error::{Details, Named, Status};
use serde_json::{Value, json};

use super::object::{self, FOREGROUND, ORPHAN, metadata_mut};
use super::options::{DeleteOptions, ListOptions, Propagation};
use super::update::versioned;
use super::{Answer, Call, Shown, TRIES_MAX, Verbs};
use crate::resources::Row;

/// PriorityClasses that a cluster can't do without.
const SYSTEM_CLASSES: [&str; 2] = ["system-node-critical", "system-cluster-critical"];

/// What a deletion does to an object.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// It goes now.
    Remove,
    /// It is marked and stays.
    Mark(Value),
    /// It is marked, and then goes at once: watchers see both, as upstream shows them.
    MarkAndRemove(Value),
    /// Its deletion has begun with the same or a shorter grace: nothing changes.
    Pending,
}

/// Decides about one object.
pub(super) fn decide(row: &Row, old: &Value, options: &DeleteOptions, now: Timestamp) -> Step {
    let mut new = old.clone();
    let grace = match graceful(row, &mut new, options, now) {
        Grace::Pending => return Step::Pending,
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
        Some(0) if !held => Step::MarkAndRemove(new),
        Some(_) => Step::Mark(new),
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
            Step::Mark(new)
        }
        None => Step::Remove,
    }
}

enum Grace {
    None,
    Pending,
    Marked(i64),
}

fn graceful(row: &Row, new: &mut Value, options: &DeleteOptions, now: Timestamp) -> Grace {
    let Some(default) = row.strategy.grace_seconds(new) else { return Grace::None };
    if object::is_deleting(new) {
        let Some(left) = object::field(new, "deletionGracePeriodSeconds").and_then(Value::as_i64) else {
            return Grace::None;
        };
        let Some(asked) = options.grace_seconds.filter(|asked| *asked < left) else { return Grace::Pending };
        let until: Timestamp = object::text(new, "deletionTimestamp").parse().unwrap_or(now);
        let until = until.saturating_add(SignedDuration::from_secs(asked - left)).unwrap_or(now);
        let metadata = metadata_mut(new);
        metadata.insert("deletionTimestamp".into(), json!(object::time(until)));
        metadata.insert("deletionGracePeriodSeconds".into(), json!(asked));
        return Grace::Marked(asked);
    }
    let seconds = match options.grace_seconds.unwrap_or(default) {
        // Nothing runs that could use the time.
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

/// The finalizers that the garbage collector's policy wants.
fn finalizers(row: &Row, own: &[String], options: &DeleteOptions) -> Vec<String> {
    if row.plural == "events" {
        // Upstream collects no garbage below events.
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

/// Refuses an object that isn't the one that the client meant.
fn preconditions(
    row: &'static Row,
    name: &str,
    old: &Value,
    version: u64,
    options: &DeleteOptions,
) -> Result<(), ApiError> {
    let namespaces = row.plural == "namespaces";
    let conflict = |why: String| {
        let group = super::stored_row(row).group;
        let named = Named::new(group, if namespaces { row.plural } else { row.kind });
        Err(ApiError::Conflict(named, name.to_owned(), why))
    };
    let uid = object::text(old, "uid");
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != uid) {
        return conflict(if namespaces {
            format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}")
        } else {
            format!(
                "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have \
                 been deleted and then recreated"
            )
        });
    }
    let version = version.to_string();
    if let Some(wanted) = options.resource_version.as_deref().filter(|wanted| *wanted != version) {
        return conflict(if namespaces {
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

impl Verbs {
    /// Deletes the object of the path.
    pub async fn delete(&self, call: &mut Call<'_>, options: &DeleteOptions) -> Result<Answer, ApiError> {
        let row = call.row;
        let name = call.name.to_owned();
        {
            let old = self.cache.get(&call.key()).map(|cached| Self::current(row, &cached));
            let review = call.review(Operation::Delete, &name, options.dry_run);
            self.admission.mutate(&review, &*self.objects, &mut Value::Null, old.as_deref())?;
        }
        if row.plural == "priorityclasses" && SYSTEM_CLASSES.contains(&call.name) {
            let why = "this is a system priority class and cannot be deleted";
            return Err(ApiError::Forbidden(call.resource(), name, why.into()));
        }
        warn_of_orphans(call, options);
        self.delete_one(call, &name, options).await
    }

    async fn delete_one(&self, call: &Call<'_>, name: &str, options: &DeleteOptions) -> Result<Answer, ApiError> {
        let row = call.row;
        let key = super::key(row, call.object_namespace(), name);
        let mut options = options.clone();
        for _ in 0..TRIES_MAX {
            let Some(cached) = self.cache.get(&key) else {
                return Err(ApiError::NotFound(call.resource(), name.to_owned()));
            };
            let old = Self::current(row, &cached);
            if let Some(why) = row.strategy.refuses_delete(&old) {
                return Err(ApiError::Forbidden(call.resource(), name.to_owned(), why.into()));
            }
            preconditions(row, name, &old, cached.modified, &options)?;
            {
                let review = call.review(Operation::Delete, name, options.dry_run);
                self.admission.validate(&review, &*self.objects, &Value::Null, Some(&old))?;
            }
            let step = if row.plural == "namespaces" {
                super::namespace::decide(row, &old, &options, call.now)
            } else {
                decide(row, &old, &options, call.now)
            };
            let gone = |object: Value| {
                if row.strategy.delete_answers_object() {
                    Answer::Object(200, Shown::Value(object))
                } else {
                    Answer::Status(200, Box::new(success(row, name, &old)))
                }
            };
            match step {
                Step::Pending => {
                    let shown = versioned((*old).clone(), cached.modified);
                    // Namespaces have finalizers of their own and always show themselves while they go.
                    return Ok(if row.plural == "namespaces" {
                        Answer::Object(200, Shown::Value(shown))
                    } else {
                        gone(shown)
                    });
                }
                Step::Remove => {
                    let Some(revision) = self.remove_unless(&key, cached.modified, options.dry_run).await? else {
                        continue;
                    };
                    return Ok(gone(versioned((*old).clone(), revision)));
                }
                Step::Mark(new) => {
                    let code = if options.orphan_dependents == Some(false) { 202 } else { 200 };
                    if options.dry_run {
                        return Ok(Answer::Object(code, Shown::Value(versioned(new, cached.modified))));
                    }
                    let stored = Self::encode(row, &new)?;
                    if stored.body() == cached.stored() {
                        return Ok(Answer::Object(code, Shown::Cached(cached)));
                    }
                    let Some(revision) = self.put(row, &key, cached.modified, stored.clone()).await? else { continue };
                    return Ok(Answer::Object(code, Self::stored_as(row, new, &stored, revision)));
                }
                Step::MarkAndRemove(new) => {
                    if options.dry_run {
                        return Ok(gone(versioned(new, cached.modified)));
                    }
                    let stored = Self::encode(row, &new)?;
                    let Some(marked) = self.put(row, &key, cached.modified, stored).await? else { continue };
                    let Some(revision) = self.remove(&key, marked).await? else {
                        // Somebody wrote in between: the object is marked with no grace left, and is taken as it is now.
                        options.resource_version = None;
                        if self.take_marked(&key).await? {
                            return Ok(gone(versioned(new, marked)));
                        }
                        continue;
                    };
                    return Ok(gone(versioned(new, revision)));
                }
            }
        }
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Err(ApiError::Conflict(call.resource(), name.to_owned(), why.into()))
    }

    /// Removes a marked object whatever it has become; false: it got finalizers in the meantime.
    async fn take_marked(&self, key: &str) -> Result<bool, ApiError> {
        for _ in 0..TRIES_MAX {
            let Some(cached) = self.cache.get(key) else { return Ok(true) };
            let object = cached.shared();
            if !object::is_deleting(&object) || !object::finalizers(&object).is_empty() {
                return Ok(false);
            }
            if self.remove(key, cached.modified).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn remove_unless(&self, key: &str, was: u64, dry_run: bool) -> Result<Option<u64>, ApiError> {
        if dry_run { Ok(Some(was)) } else { self.remove(key, was).await }
    }

    /// Deletes what a list selects, and answers with that list.
    pub async fn delete_collection(
        &self,
        call: &mut Call<'_>,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<Answer, ApiError> {
        warn_of_orphans(call, options);
        let Answer::List(found) = self.list(call, list).await? else {
            return Err(ApiError::Internal("a list is a list".into()));
        };
        for item in &found.items {
            // Over all namespaces there is no deletecollection; the item's own namespace is the call's.
            {
                let old = Self::current(call.row, item);
                let review = call.review(Operation::Delete, item.name(), options.dry_run);
                self.admission.mutate(&review, &*self.objects, &mut Value::Null, Some(&old))?;
            }
            match self.delete_one(call, item.name(), options).await {
                Ok(_) | Err(ApiError::NotFound(..)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Answer::List(found))
    }
}

/// Says what becomes of dependents where the kind's default surprises.
fn warn_of_orphans(call: &mut Call<'_>, options: &DeleteOptions) {
    let silent = options.propagation.is_none() && options.orphan_dependents.is_none();
    if call.row.strategy.orphans_by_default() && silent {
        let plural = call.row.plural;
        call.warn(format!(
            "child pods are preserved by default when {plural} are deleted; set propagationPolicy=Background to remove them \
             or set propagationPolicy=Orphan to suppress this warning"
        ));
    }
}

/// What is answered where the object isn't.
fn success(row: &'static Row, name: &str, old: &Value) -> Status {
    let details = Details {
        name: name.to_owned(),
        group: row.group.into(),
        kind: row.plural.into(),
        uid: object::text(old, "uid").to_owned(),
        ..Details::default()
    };
    let mut status = Status::failure(0, "", "").with(details);
    status.status = "Success".into();
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources;

    fn row(plural: &str) -> &'static Row {
        resources::TABLE.iter().copied().find(|r| r.plural == plural).unwrap()
    }

    #[test]
    fn policies_and_finalizers() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let object =
            |finalizers: &[&str]| json!({"metadata": {"name": "a", "generation": 3, "finalizers": finalizers}});
        let of = |step: Step| match step {
            Step::Mark(new) => object::finalizers(&new).join(","),
            other => format!("{other:?}"),
        };
        let options =
            |propagation, orphan_dependents| DeleteOptions { propagation, orphan_dependents, ..Default::default() };
        let row = row("configmaps");
        let decide = |own: &[&str], p, o| of(super::decide(row, &object(own), &options(p, o), now));
        assert_eq!(decide(&[], None, None), "Remove");
        assert_eq!(decide(&[], Some(Propagation::Foreground), None), FOREGROUND);
        assert_eq!(decide(&["a.b/c"], Some(Propagation::Orphan), None), "a.b/c,orphan");
        assert_eq!(decide(&["orphan", "a.b/c"], None, None), "orphan,a.b/c");
        assert_eq!(decide(&["orphan", "a.b/c"], Some(Propagation::Background), None), "a.b/c");
        assert_eq!(decide(&["orphan"], None, Some(false)), "Remove");
        let Step::Mark(new) = super::decide(row, &object(&["a.b/c"]), &DeleteOptions::default(), now) else { panic!() };
        assert_eq!(object::generation(&new), 4);
        let Step::Mark(again) = super::decide(row, &new, &DeleteOptions::default(), now) else { panic!() };
        assert_eq!(again, new);
    }
}
