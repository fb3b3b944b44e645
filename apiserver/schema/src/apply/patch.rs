//! Performs an apply patch: merges the configuration into the object, removes fields that its manager applied before
//! and no longer does, and detects conflicts with other managers.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::compare::{Form, compare};
use super::config::{check, fields_of};
use super::managers::{Identity, Managers, Operation};
use super::merge::merge;
use super::path::{PathElement, printed, same};
use super::remove::{remove, with_declared_ancestors};
use super::rules::{Changes, Fields, Ignored, ManagerFields, Writer, first, managers_of, owners, reconcile, strip};
use super::set::Set;
use machinery_api::error::{ApiError, Cause};
use machinery_api::key::GroupVersion;
use machinery_api::selector::go_quoted;

/// The manager of fields that were set before the first apply.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The annotation with the last configuration of kubectl's client-side apply.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The only manager that takes over from client-side apply.
const KUBECTL: &str = "kubectl";
/// Upstream's maximum total size of an object's annotations.
const ANNOTATION_BYTES_MAX: usize = 256 * 1024;
/// Maximum reported conflicts.
const CONFLICTS_MAX: usize = 10_000;

/// A field that another manager owns with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    who: Arc<Identity>,
    path: Vec<PathElement>,
}

/// Why an apply fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Conflicts with other managers.
    Conflicts(Vec<Conflict>),
    /// The configuration or the object doesn't conform to its type.
    Typed(String),
}

/// The result of an apply.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The object; `None` if it is unchanged.
    pub object: Option<Value>,
    /// The managers.
    pub managers: Managers,
}

/// Applies a configuration. `live` is the object in printed form, or an empty one.
pub fn apply(
    managers: &Managers,
    writer: Writer<'_>,
    live: &Value,
    config: &Value,
    force: bool,
) -> Result<Applied, Failure> {
    let mut applied = match attempt(managers, writer, live, config, force) {
        Err(Failure::Conflicts(conflicts)) if writer.manager == KUBECTL => {
            let Some(allowed) = client_side_applied_fields(writer, live) else {
                return Err(Failure::Conflicts(conflicts));
            };
            let others: Vec<Conflict> = conflicts.into_iter().filter(|conflict| !allowed.has(&conflict.path)).collect();
            if !others.is_empty() {
                return Err(Failure::Conflicts(others));
            }
            attempt(managers, writer, live, config, true)?
        }
        done => done?,
    };
    if writer.manager == KUBECTL {
        refresh_last_applied(&mut applied, live, config);
    }
    Ok(applied)
}

fn attempt(
    managers: &Managers,
    writer: Writer<'_>,
    live: &Value,
    config: &Value,
    force: bool,
) -> Result<Applied, Failure> {
    let found = writer.schema().map_err(Failure::Typed)?;
    let name = |object: &Value| {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let kind = GroupVersion::parse(writer.api_version).kind(config["kind"].as_str().unwrap_or_default());
        format!("{}/{}; {kind}", text("namespace"), text("name"))
    };
    check(found, config, false)
        .map_err(|error| Failure::Typed(format!("failed to create typed patch object ({}): {error}", name(config))))?;
    let is_new = live["metadata"]["uid"].as_str().is_none_or(str::is_empty);
    let mut owners = match managers.is_empty() && !is_new {
        true => {
            let before = Writer { manager: BEFORE_FIRST_APPLY, ..writer };
            owners(&first(before, Operation::Update, Some(writer.now), live).unwrap_or_default())
        }
        false => owners(managers),
    };
    reconcile(&mut owners, writer.versions);
    let merged =
        merge(found, live, config).map_err(|error| Failure::Typed(format!("failed to merge config: {error}")))?;
    let who = writer.identity(Operation::Apply);
    let own = owners.iter().position(|owned| owned.who.is_entry_of(&who));
    let last = own.map(|own| owners.swap_remove(own));
    let set = match writer.versions.ignored(writer.api_version) {
        Ignored::Nothing => fields_of(found, config),
        Ignored::Below(fields) => fields_of(found, config).without(&fields),
        Ignored::AllBut(patterns) => fields_of(found, config).matching(patterns),
    };
    let at = last.as_ref().and_then(|last| last.at);
    let mut own = ManagerFields { who, at, fields: Fields::Made(Arc::new(set)) };
    let object = prune(writer, merged, &owners, &own, last.as_ref());
    let mut owners = remaining_or_conflicts(writer, live, &object, owners, force)?;
    let object = (!same(live, &object)).then_some(object);
    if object.is_some() {
        own.at = Some(writer.now);
    }
    own.give(strip(&own.set()));
    // An unchanged set keeps its interned copy.
    if let Some(last) = last
        && last.set() == own.set()
    {
        own.fields = last.fields;
    }
    owners.push(own);
    owners.retain(|owned| !owned.set().is_empty());
    Ok(Applied { object, managers: managers_of(owners) })
}

/// The remaining fields of the other managers, or the conflicts with them.
fn remaining_or_conflicts(
    writer: Writer<'_>,
    live: &Value,
    object: &Value,
    owners: Vec<ManagerFields>,
    force: bool,
) -> Result<Vec<ManagerFields>, Failure> {
    let mut changes = Changes::new(writer, Some(live), object, Form::Whole);
    let mut kept = Vec::with_capacity(owners.len() + 1);
    let mut conflicts: Vec<(String, Arc<Identity>, Set)> = Vec::new();
    for mut owned in owners {
        let Some(change) = changes.of(&owned.who.api_version).map_err(Failure::Typed)? else { continue };
        if !change.is_same() {
            let set = owned.set();
            let conflict = set.intersection(&change.given());
            let lost = conflict.union(&set.intersection(&change.removed));
            if !conflict.is_empty() {
                conflicts.push((owned.who.sort_key(), owned.who.clone(), conflict));
            }
            if !lost.is_empty() {
                owned.give(set.difference(&lost));
            }
        }
        kept.push(owned);
    }
    if force || conflicts.is_empty() {
        return Ok(kept);
    }
    conflicts.sort_by(|a, b| a.0.cmp(&b.0));
    let mut all = Vec::new();
    for (_, who, set) in conflicts {
        set.each(|path| {
            if all.len() < CONFLICTS_MAX {
                all.push(Conflict { who: who.clone(), path: path.to_vec() });
            }
        });
    }
    Err(Failure::Conflicts(all))
}

/// Removes fields that the manager applied last and doesn't now, unless another manager owns them.
fn prune(
    writer: Writer<'_>,
    merged: Value,
    owners: &[ManagerFields],
    own: &ManagerFields,
    last: Option<&ManagerFields>,
) -> Value {
    let Some(last) = last else { return merged };
    let versions = writer.versions;
    let (version, then) = (writer.api_version, &*last.who.api_version);
    let last_set = last.set();
    let same_version = then == version;
    if last_set.is_empty() || (same_version && last_set.difference(&own.set()).is_empty()) {
        return merged;
    }
    let convert = |object: &Value, from: &str, to: &str| match from == to {
        true => Some(object.clone()),
        false => versions.convert(object, from, to),
    };
    let (Some(found), Some(merged_then)) = (versions.schema(then), convert(&merged, version, then)) else {
        return merged;
    };
    let last_named = with_declared_ancestors(found, &last_set);
    let pruned = remove(found, &merged_then, &last_named);
    let mut managed: BTreeMap<&str, Set> = BTreeMap::new();
    for owned in owners.iter().chain([own]) {
        let set = managed.entry(&owned.who.api_version).or_default();
        *set = set.union(&owned.set());
    }
    // The pruned version first: a conversion may need fields that were pruned.
    let first = managed.remove_entry(then);
    let (mut at, mut whole, mut left) = (then.to_owned(), merged_then.clone(), pruned);
    for (version, set) in first.into_iter().chain(managed) {
        let (Some(found), Some(all), Some(rest)) =
            (versions.schema(version), convert(&whole, &at, version), convert(&left, &at, version))
        else {
            continue;
        };
        let named = |set: &Set| with_declared_ancestors(found, set);
        let keeps = named(&fields_of(found, &rest)).union(&named(&set));
        left = remove(found, &all, &named(&fields_of(found, &all)).difference(&keeps));
        (at, whole) = (version.to_owned(), all);
    }
    // Fields that the manager didn't own before stay, managed or not.
    let Some(left) = convert(&left, &at, then) else { return merged };
    let named = |object: &Value| with_declared_ancestors(found, &fields_of(found, object));
    let gone = named(&merged_then).difference(&named(&left)).intersection(&last_named);
    let pruned = remove(found, &merged_then, &gone);
    convert(&pruned, then, version).unwrap_or(merged)
}

/// The fields set by client-side apply; `None` if it was never used on this object.
fn client_side_applied_fields(writer: Writer<'_>, live: &Value) -> Option<Set> {
    let text = live["metadata"]["annotations"][LAST_APPLIED].as_str().filter(|text| !text.is_empty())?;
    let found = writer.schema().ok()?;
    let last: Value = serde_json::from_str(text).ok()?;
    if last["apiVersion"].as_str() != Some(writer.api_version) {
        return None;
    }
    check(found, live, false).ok()?;
    check(found, &last, false).ok()?;
    let change = compare(found, Some(&last), live, Form::Whole).ok()?;
    let fields = fields_of(found, &last);
    Some(fields.difference(&change.modified).difference(&change.added).difference(&change.removed))
}

/// Updates the annotation of client-side apply, if it was used.
fn refresh_last_applied(applied: &mut Applied, live: &Value, config: &Value) {
    let object = applied.object.as_ref().unwrap_or(live);
    if object["metadata"]["annotations"][LAST_APPLIED].as_str().is_none_or(str::is_empty) {
        return;
    }
    let mut object = object.clone();
    let mut config = config.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else { return };
    annotations.insert(LAST_APPLIED.into(), json!(format!("{config}\n")));
    let bytes = |(key, value): (&String, &Value)| key.len() + value.as_str().map_or(0, str::len);
    if annotations.iter().map(bytes).sum::<usize>() > ANNOTATION_BYTES_MAX {
        annotations.remove(LAST_APPLIED);
    }
    if object != *live {
        applied.object = Some(object);
    }
}

impl Identity {
    /// The format of conflict messages.
    fn printed(&self) -> String {
        let mut out = go_quoted(&self.manager);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {}", go_quoted(&self.subresource)));
        }
        if self.operation == Operation::Update {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }
}

impl Failure {
    /// Converts it to an API error.
    #[must_use]
    pub fn into_error(self) -> ApiError {
        let conflicts = match self {
            Self::Conflicts(conflicts) => conflicts,
            Self::Typed(why) => return ApiError::BadRequest(why),
        };
        let cause = |conflict: &Conflict| Cause {
            reason: "FieldManagerConflict".into(),
            message: format!("conflict with {}", conflict.who.printed()),
            field: printed(&conflict.path),
        };
        let message = match &*conflicts {
            [one] => {
                format!("Apply failed with 1 conflict: conflict with {}: {}", one.who.printed(), printed(&one.path))
            }
            many => {
                let mut lines = Vec::new();
                let mut before: Option<&Arc<Identity>> = None;
                for conflict in many {
                    if before != Some(&conflict.who) {
                        lines.push(format!("conflicts with {}:", conflict.who.printed()));
                        before = Some(&conflict.who);
                    }
                    lines.push(format!("- {}", printed(&conflict.path)));
                }
                format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n"))
            }
        };
        ApiError::ApplyConflict(conflicts.iter().map(cause).collect(), message)
    }
}
