//! Updates managed fields on a write: which managers lose and gain fields, and the cap on update managers.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use serde_json::Value;

use super::compare::{Comparison, Form, compare};
use super::created::created;
use super::managers::{Entry, Identity, Managers, Operation};
use super::pool::{self, FieldSet};
use super::remove::reconciled;
use super::set::Set;
use crate::{TypeRef, built_in};

/// Maximum separate managers of updates; the oldest are merged beyond that.
const UPDATE_MANAGERS_MAX: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// Fields without a manager.
static UNMANAGED_FIELDS: LazyLock<Set> = LazyLock::new(|| UNMANAGED_SUBTREES.union(&Set::of(&[&["metadata"]])));

/// Fields without a manager, with all descendants.
static UNMANAGED_SUBTREES: LazyLock<Set> = LazyLock::new(|| {
    let metadata = |field: &'static str| ["metadata", field];
    let below = [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ]
    .map(metadata);
    let mut paths: Vec<&[&str]> = vec![&["apiVersion"], &["kind"]];
    paths.extend(below.iter().map(|path| &path[..]));
    Set::of(&paths)
});

/// Fields that a kind of write ignores.
#[derive(Debug, Clone)]
pub enum Ignored {
    /// None are ignored.
    Nothing,
    /// These, with all descendants.
    Below(Arc<Set>),
    /// All but the matches of these patterns (`None`: any element).
    AllBut(&'static [&'static [Option<&'static str>]]),
}

impl Ignored {
    fn filter(&self, set: Set) -> Set {
        match self {
            Self::Nothing => set,
            Self::Below(fields) => set.without(fields),
            Self::AllBut(patterns) => set.matching(patterns),
        }
    }
}

/// The served versions of a kind.
pub trait Versions {
    /// The type of a version's objects; `None` if it isn't served.
    fn schema(&self, api_version: &str) -> Option<TypeRef<'_>>;
    /// Converts an object between served versions; `None` if one isn't served.
    fn convert(&self, object: &Value, from: &str, to: &str) -> Option<Value>;
    /// The fields that the write ignores, in a version's terms.
    fn ignored(&self, api_version: &str) -> Ignored;
}

/// The identity, version and time of a write.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    /// The manager's name; empty if unknown.
    pub manager: &'a str,
    /// The version of the request.
    pub api_version: &'a str,
    /// The subresource; empty for the object itself.
    pub subresource: &'a str,
    /// The time in seconds.
    pub now: i64,
    /// The kind's versions.
    pub versions: &'a dyn Versions,
}

impl<'a> Writer<'a> {
    pub(super) fn schema(&self) -> Result<TypeRef<'a>, String> {
        self.versions.schema(self.api_version).ok_or_else(|| format!("no corresponding type for {}", self.api_version))
    }

    pub(super) fn identity(&self, operation: Operation) -> Arc<Identity> {
        Identity::new(self.manager, operation, self.api_version, self.subresource)
    }
}

/// A manager's fields during a write.
#[derive(Clone)]
pub(super) struct ManagerFields {
    pub(super) who: Arc<Identity>,
    pub(super) at: Option<i64>,
    pub(super) fields: Fields,
}

#[derive(Clone)]
pub(super) enum Fields {
    Held(Arc<FieldSet>),
    Made(Arc<Set>),
}

impl ManagerFields {
    pub(super) fn set(&self) -> Arc<Set> {
        match &self.fields {
            Fields::Held(held) => held.set(),
            Fields::Made(set) => set.clone(),
        }
    }

    pub(super) fn give(&mut self, set: Set) {
        if *self.set() != set {
            self.fields = Fields::Made(Arc::new(set));
        }
    }
}

pub(super) fn owners(managers: &Managers) -> Vec<ManagerFields> {
    let owned = |e: &Entry| ManagerFields { who: e.who.clone(), at: e.at, fields: Fields::Held(e.fields.clone()) };
    managers.entries().iter().map(owned).collect()
}

pub(super) fn managers_of(owners: Vec<ManagerFields>) -> Managers {
    let entry = |owned: ManagerFields| {
        let fields = match owned.fields {
            Fields::Held(held) => held,
            Fields::Made(set) => pool::of_set(&set),
        };
        (!fields.is_empty()).then_some(Entry { who: owned.who, at: owned.at, fields })
    };
    Managers::new(owners.into_iter().filter_map(entry).collect())
}

pub(super) fn strip(set: &Set) -> Set {
    set.difference(&UNMANAGED_FIELDS)
}

/// Adapts sets to their present types.
pub(super) fn reconcile(owners: &mut [ManagerFields], versions: &dyn Versions) {
    for owned in owners {
        if let Some(found) = versions.schema(&owned.who.api_version)
            && let Some(set) = reconciled(found, &owned.set())
        {
            owned.give(set);
        }
    }
}

/// The changes of a write, in each version of a manager's fields.
pub(super) struct Changes<'a> {
    writer: Writer<'a>,
    old: Option<&'a Value>,
    new: &'a Value,
    form: Form,
    by_version: BTreeMap<Box<str>, Option<Comparison>>,
}

impl<'a> Changes<'a> {
    pub(super) fn new(writer: Writer<'a>, old: Option<&'a Value>, new: &'a Value, form: Form) -> Self {
        Self { writer, old, new, form, by_version: BTreeMap::new() }
    }

    /// The changes in a version; `None` if it isn't served.
    pub(super) fn of(&mut self, version: &str) -> Result<Option<&Comparison>, String> {
        if !self.by_version.contains_key(version) {
            let made = self.make(version)?;
            self.by_version.insert(version.into(), made);
        }
        Ok(self.by_version[version].as_ref())
    }

    fn make(&self, version: &str) -> Result<Option<Comparison>, String> {
        let versions = self.writer.versions;
        let Some(found) = versions.schema(version) else { return Ok(None) };
        let ignored = versions.ignored(version);
        let filter = |set: Set| ignored.filter(set);
        if version == self.writer.api_version {
            return Ok(Some(compare(found, self.old, self.new, self.form)?.map(filter)));
        }
        let convert = |object: &Value| versions.convert(object, self.writer.api_version, version);
        let Some(new) = convert(self.new) else { return Ok(None) };
        let old = match self.old {
            Some(old) => match convert(old) {
                Some(old) => Some(old),
                None => return Ok(None),
            },
            None => None,
        };
        Ok(Some(compare(found, old.as_ref(), &new, Form::Printed)?.map(filter)))
    }
}

impl Comparison {
    pub(super) fn given(&self) -> Set {
        self.modified.union(&self.added)
    }
}

/// The managers after a write other than apply; without an old object it is a create. An object without managers stays
/// so: its earlier writes are indistinguishable from this one.
#[must_use]
pub fn update(managers: &Managers, writer: Writer<'_>, old: Option<&Value>, new: &Value, form: Form) -> Managers {
    if managers.is_empty() && old.is_some() {
        return Managers::default();
    }
    let updated = match old {
        None if managers.is_empty() && form == Form::Printed => first(writer, Operation::Update, Some(writer.now), new),
        _ => changed(managers, writer, old, new, form),
    };
    // As upstream: no managers rather than wrong ones.
    updated.unwrap_or_default()
}

/// The only manager of a new object.
pub(super) fn first(
    writer: Writer<'_>,
    operation: Operation,
    at: Option<i64>,
    new: &Value,
) -> Result<Managers, String> {
    let found = writer.schema()?;
    let fields = match writer.versions.ignored(writer.api_version) {
        Ignored::Nothing => created(found, new, &UNMANAGED_SUBTREES),
        Ignored::Below(fields) => created(found, new, &UNMANAGED_SUBTREES.union(&fields)),
        ignored => {
            let changes = compare(found, None, new, Form::Printed)?;
            super::fields::encode(&strip(&ignored.filter(changes.given())))
        }
    };
    if fields == "{}" {
        return Ok(Managers::default());
    }
    Ok(Managers::new(vec![Entry { who: writer.identity(operation), at, fields: pool::of_text(&fields) }]))
}

pub(super) fn changed(
    managers: &Managers,
    writer: Writer<'_>,
    old: Option<&Value>,
    new: &Value,
    form: Form,
) -> Result<Managers, String> {
    let mut owners = owners(managers);
    if !std::ptr::eq(writer.schema()?.types, &**built_in()) {
        reconcile(&mut owners, writer.versions);
    }
    let mut changes = Changes::new(writer, old, new, form);
    let mut kept = Vec::with_capacity(owners.len() + 1);
    for mut owned in owners {
        let Some(change) = changes.of(&owned.who.api_version)? else { continue };
        if !change.is_same() {
            let set = owned.set();
            let lost = set.intersection(&change.given().union(&change.removed));
            if !lost.is_empty() {
                owned.give(set.difference(&lost));
            }
        }
        kept.push(owned);
    }
    let given = match changes.of(writer.api_version)? {
        Some(change) => strip(&writer.versions.ignored(writer.api_version).filter(change.given())),
        None => Set::default(),
    };
    if !given.is_empty() {
        let who = writer.identity(Operation::Update);
        let at = Some(writer.now);
        match kept.iter().position(|owned| owned.who.is_entry_of(&who)) {
            Some(own) => {
                let set = kept[own].set().union(&given);
                let mut entry = ManagerFields { who, at, ..kept.swap_remove(own) };
                entry.give(set);
                // An unchanged entry keeps its interned set.
                kept.push(match managers.entries().iter().find(|e| e.who.is_entry_of(&entry.who)) {
                    Some(before) if *before.fields.set() == *entry.set() => {
                        ManagerFields { fields: Fields::Held(before.fields.clone()), ..entry }
                    }
                    _ => entry,
                });
            }
            None => kept.push(ManagerFields { who, at, fields: Fields::Made(Arc::new(given)) }),
        }
    }
    kept.retain(|owned| !owned.set().is_empty());
    Ok(managers_of(cap(kept)))
}

/// Merges the oldest managers of updates if there are too many.
fn cap(mut owners: Vec<ManagerFields>) -> Vec<ManagerFields> {
    let is_update = |owned: &ManagerFields| owned.who.operation == Operation::Update;
    let mut left = owners.iter().filter(|owned| is_update(owned)).count();
    if left <= UPDATE_MANAGERS_MAX {
        return owners;
    }
    let mut oldest: Vec<(i64, String, Arc<Identity>)> = owners
        .iter()
        .filter(|owned| is_update(owned))
        .map(|owned| (owned.at.unwrap_or(0), owned.who.sort_key(), owned.who.clone()))
        .collect();
    oldest.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    let mut first_of: BTreeMap<Box<str>, Arc<Identity>> = BTreeMap::new();
    for (_, _, who) in oldest {
        if left <= UPDATE_MANAGERS_MAX {
            break;
        }
        let version = who.api_version.clone();
        let Some(first) = first_of.get(&version) else {
            first_of.insert(version, who);
            continue;
        };
        let bucket = Identity::new(ANCIENT, Operation::Update, &version, "");
        if !owners.iter().any(|owned| owned.who == bucket)
            && let Some(first) = owners.iter_mut().find(|owned| owned.who == *first)
        {
            first.who = bucket.clone();
        }
        let Some(at) = owners.iter().position(|owned| owned.who == who).filter(|_| who != bucket) else { continue };
        let merged = owners.remove(at);
        if let Some(bucket) = owners.iter_mut().find(|owned| owned.who == bucket) {
            bucket.give(merged.set().union(&bucket.set()));
            // The later one's time.
            bucket.at = merged.at;
        }
        left -= 1;
    }
    owners
}
