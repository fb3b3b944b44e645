//! Who manages which fields, of every write: the glue between [`machinery_api::apply`], which decides, and rows, versions and
//! subresources. Managers travel beside an object's value, never in it.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use machinery_api::apply::{self, Entry, Form, Identity, Ignored, Managers, PathElement, Set, Versions, Writer, body};
use machinery_api::schema::{FieldValidation, SharedType, Target, TypeRef, built_in, normalise};
use machinery_api::{ApiError, GroupVersion, GroupVersionKind};
use serde_json::{Value, json};

use super::elsewhere::Elsewhere;
use super::object::{self, metadata_mut};
use super::write::Existing;
use super::{PatchType, RequestScope, scale};
use crate::admission::Options;
use crate::catalog::Catalog;
use apiserver_resources::apiextensions::custom::Conversion;
use apiserver_resources::{ResourceInfo, SubresourceKind, Unwritten};

/// As who the server writes what every cluster has.
const SERVER: &str = "kube-apiserver";

/// The versions of a row's kind, or of its Scale.
struct Kinds<'a> {
    catalog: &'a Catalog,
    row: &'a ResourceInfo,
    subresource: &'a str,
    scales: bool,
    held: Held<'a>,
    elsewhere: &'a Elsewhere,
}

/// Types of versions, each held from when it is first asked for.
#[derive(Default)]
struct Held<'a>(OnceLock<(&'a ResourceInfo, Cow<'a, SharedType>, Box<Held<'a>>)>);

impl<'a> Held<'a> {
    fn of(&self, row: &'a ResourceInfo) -> TypeRef<'_> {
        let (held, types, others) = self.0.get_or_init(|| (row, row.schema.hold(), Box::default()));
        if std::ptr::eq(*held, row) { types.get() } else { others.of(row) }
    }
}

impl<'a> Kinds<'a> {
    fn of(call: &'a RequestScope<'_>) -> Self {
        let scales = is_scale(call);
        Self {
            catalog: call.catalog,
            row: call.row,
            subresource: call.subresource_name(),
            scales,
            held: Held::default(),
            elsewhere: &call.elsewhere,
        }
    }

    /// The row of a version of the kind.
    fn row(&self, api_version: &str) -> Option<&'a ResourceInfo> {
        if *self.row.api_version == *api_version {
            return Some(self.row);
        }
        let stored = self.row.stored();
        let mut rows = self.catalog.resources().iter();
        let found =
            rows.find(|row| *row.api_version == *api_version && row.prefix == stored.prefix && row.prefix.is_some());
        found.map(|row| &**row)
    }
}

fn is_scale(call: &RequestScope<'_>) -> bool {
    call.subresource.is_some_and(|subresource| subresource.what == SubresourceKind::Scale)
}

const SCALE_VERSION: &str = "autoscaling/v1";

impl Versions for Kinds<'_> {
    fn schema(&self, api_version: &str) -> Option<TypeRef<'_>> {
        if self.scales {
            let (group, version, kind) = scale::KIND;
            return (api_version == SCALE_VERSION).then(|| built_in().of_kind(group, version, kind)).flatten();
        }
        self.row(api_version).map(|row| self.held.of(row))
    }

    fn convert(&self, object: &Value, from: &str, to: &str) -> Option<Value> {
        let (from, to) = (self.row(from)?, self.row(to)?);
        let mut shown = if is_by_webhook(to) {
            self.elsewhere.get(object, &to.api_version)?
        } else {
            by_strategy(object, from, to)?
        };
        drop(normalise(to.schema.hold().get(), &mut shown));
        Some(shown)
    }

    fn ignored(&self, _: &str) -> Ignored {
        if self.scales {
            return Ignored::Nothing;
        }
        match self.row.strategy.unwritten(self.subresource) {
            Unwritten::Below(paths) => Ignored::Below(Arc::new(Set::of(paths))),
            Unwritten::AllBut(paths) => Ignored::AllBut(paths),
        }
    }
}

/// Whether objects of a row come from other versions by asking somebody.
fn is_by_webhook(row: &ResourceInfo) -> bool {
    row.custom.as_ref().is_some_and(|custom| matches!(custom.definition.conversion, Conversion::Webhook(_)))
}

/// An object in another version, as the kind's own rules have it.
fn by_strategy(object: &Value, from: &ResourceInfo, to: &ResourceInfo) -> Option<Value> {
    let stored = match from.stored_as {
        Some(_) => from.strategy.write_storage_version(object.clone()),
        None => object.clone(),
    };
    let mut shown = match to.stored_as {
        Some(_) => to.strategy.read_storage_version(stored),
        None => stored,
    };
    let map = shown.as_object_mut()?;
    map.insert("apiVersion".into(), json!(&*to.api_version));
    map.insert("kind".into(), json!(&*to.kind));
    Some(shown)
}

/// Takes what a client sent of managers out of an object.
pub(super) fn take(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

/// Whether a patch may be about managers: then it must see them.
pub(super) fn concerns(kind: PatchType, patch: &[u8]) -> bool {
    let has = |text: &[u8]| memchr::memmem::find(patch, text).is_some();
    // A pointer to metadata, or to all, and names that are spelled with escapes.
    has(b"managedFields") || has(b"\\u") || (kind == PatchType::Json && (has(b"/metadata\"") || has(b"\"\"")))
}

/// The object with its managers in it, for a patch that may be about them.
pub(super) fn with_managers(existing: &Existing) -> Value {
    shown((*existing.value).clone(), existing.cached.managers())
}

/// An object as it is answered, with its managers.
#[must_use]
pub fn shown(mut object: Value, managers: &Managers) -> Value {
    if let Some(value) = managers.to_value() {
        metadata_mut(&mut object).insert("managedFields".into(), value);
    }
    object
}

fn writer<'a>(call: &'a RequestScope<'_>, manager: &'a str, versions: &'a Kinds<'_>) -> Writer<'a> {
    let api_version = if versions.scales { SCALE_VERSION } else { &*call.row.api_version };
    Writer { manager, api_version, subresource: call.subresource_name(), now: call.now.as_second(), versions }
}

fn manager_of<'a>(options: &Options<'a>) -> &'a str {
    match options {
        Options::Write(options) if !options.field_manager.is_empty() => &options.field_manager,
        Options::Write(options) => &options.agent,
        Options::Delete(_) => "",
    }
}

/// What to begin with: the managers that are there, or those that a client sent. Invalid ones count for nothing, and through a
/// subresource all do.
fn begun(call: &RequestScope<'_>, existing: Option<&Existing>, sent: Option<Value>) -> Managers {
    let live = || existing.map_or_else(Managers::default, |existing| existing.cached.managers().clone());
    let Some(Value::Array(sent)) = sent.filter(|_| call.subresource.is_none()) else { return live() };
    let resets = match &*sent {
        [] => true,
        [one] => one.as_object().is_some_and(serde_json::Map::is_empty),
        _ => false,
    };
    if resets {
        return Managers::default();
    }
    Managers::of_value(&Value::Array(sent)).ok().filter(|managers| !managers.is_empty()).unwrap_or_else(live)
}

/// The managers after a write of an object, as admission is given it.
pub(super) fn written(
    call: &RequestScope<'_>,
    options: &Options<'_>,
    existing: Option<&Existing>,
    object: &Value,
    sent: Option<Value>,
) -> Managers {
    let versions = Kinds::of(call);
    let managers = begun(call, existing, sent);
    let old = existing.map(|existing| &*existing.value);
    let updated = apply::update(&managers, writer(call, manager_of(options), &versions), old, object, Form::Printed);
    // As upstream: rather none than wrong ones.
    if call.elsewhere.failure().is_some() { Managers::default() } else { updated }
}

/// The managers of what the server itself writes.
pub(super) fn installed(call: &RequestScope<'_>, existing: Option<&Existing>, object: &Value) -> Managers {
    let versions = Kinds::of(call);
    let managers = begun(call, existing, None);
    let old = existing.map(|existing| &*existing.value);
    apply::update(&managers, writer(call, SERVER, &versions), old, object, Form::Printed)
}

/// The managers of a Scale after a write of it, as admission is given it.
pub(super) fn scaled(call: &RequestScope<'_>, options: &Options<'_>, existing: &Existing, new: &Value) -> Managers {
    let versions = Kinds::of(call);
    let managers = of_scale(call, existing);
    let old = scale::of(call.row, &existing.value);
    apply::update(&managers, writer(call, manager_of(options), &versions), Some(&old), new, Form::Printed)
}

/// The managers of the Scale of what is there.
pub(super) fn of_scale(call: &RequestScope<'_>, existing: &Existing) -> Managers {
    to_scale(call, existing.cached.managers())
}

/// The managers of a workload with those of its Scale.
pub(super) fn with_scale(call: &RequestScope<'_>, existing: &Existing, scale: &Managers) -> Managers {
    to_parent(call, existing.cached.managers(), scale)
}

/// Where a Scale has its replicas.
const REPLICAS: &[&str] = &["spec", "replicas"];

fn path(fields: &[&str]) -> Vec<PathElement> {
    fields.iter().copied().map(PathElement::field).collect()
}

/// Where the versions of a kind have what their Scale shows.
struct Parents<'a>(Kinds<'a>);

impl<'a> Parents<'a> {
    fn of(call: &'a RequestScope<'_>) -> Self {
        Self(Kinds { scales: false, ..Kinds::of(call) })
    }

    /// The path to the replicas in a version; none: it has no Scale. `None`: it isn't served.
    fn replicas(&self, api_version: &str) -> Option<Vec<&str>> {
        let row = self.0.row(api_version)?;
        Some(match &row.custom {
            None => REPLICAS.to_vec(),
            Some(custom) => custom.scale.iter().flat_map(|scale| scale.wanted()).collect(),
        })
    }

    /// The same, where that entry is about them.
    fn replicas_of(&self, entry: &Entry) -> Option<Vec<&str>> {
        let fields = self.replicas(&entry.who.api_version)?;
        (!fields.is_empty() && entry.fields.set().has(&path(&fields))).then_some(fields)
    }
}

/// A Scale's managers: those of the workload that manage its replicas.
fn to_scale(call: &RequestScope<'_>, parent: &Managers) -> Managers {
    let parents = Parents::of(call);
    let fields = apply::pool::of_set(&Set::of(&[REPLICAS]));
    let entry = |entry: &Entry| {
        let who = &entry.who;
        let who = Identity::new(&who.manager, who.operation, SCALE_VERSION, &who.subresource);
        Entry { who, at: entry.at, fields: fields.clone() }
    };
    Managers::new(parent.entries().iter().filter(|of| parents.replicas_of(of).is_some()).map(entry).collect())
}

/// A workload's managers with what became of its Scale's. As upstream, what is new has no time, and managers of versions that
/// are served no more go.
fn to_parent(call: &RequestScope<'_>, parent: &Managers, scale: &Managers) -> Managers {
    let parents = Parents::of(call);
    let same = |a: &Identity, b: &Identity| {
        (&a.manager, a.operation, &a.subresource) == (&b.manager, b.operation, &b.subresource)
    };
    let shown = path(REPLICAS);
    let mut left: Vec<&Entry> = scale.entries().iter().filter(|e| e.fields.set().has(&shown)).collect();
    let mut entries = Vec::new();
    for entry in parent.entries().iter().filter(|entry| parents.0.row(&entry.who.api_version).is_some()) {
        let Some(fields) = parents.replicas_of(entry) else {
            entries.push(entry.clone());
            continue;
        };
        let before = left.len();
        left.retain(|scaled| !same(&scaled.who, &entry.who));
        if left.len() < before {
            entries.push(entry.clone());
            continue;
        }
        let rest = entry.fields.set().difference(&Set::of(&[&fields]));
        if !rest.is_empty() {
            entries.push(Entry { fields: apply::pool::of_set(&rest), ..entry.clone() });
        }
    }
    let fields = parents.replicas(&call.row.api_version).unwrap_or_default();
    for scaled in left {
        let who = &scaled.who;
        let who = Identity::new(&who.manager, who.operation, &call.row.api_version, &who.subresource);
        // An updater that had other fields of the workload through the same path has one entry.
        entries.push(Entry { who, at: None, fields: apply::pool::of_set(&Set::of(&[&fields])) });
    }
    Managers::new(entries)
}

/// What an apply patch makes of an object, or of its Scale, before it is defaulted; and the managers then.
pub(super) fn applied(
    call: &mut RequestScope<'_>,
    options: &Options<'_>,
    existing: Option<&Existing>,
    (patch, force, validation): (&[u8], bool, FieldValidation),
) -> Result<(Value, Managers), ApiError> {
    let read = body::config(patch)?;
    let config = read.object;
    let scales = is_scale(call);
    let (group, version, kind) =
        if scales { scale::KIND } else { (&*call.row.group, &*call.row.version, &*call.row.kind) };
    let text = |field: &str| config[field].as_str().unwrap_or_default();
    let said = GroupVersion::parse(text("apiVersion")).kind(text("kind"));
    if said != (GroupVersionKind { group, version, kind }) {
        return Err(ApiError::BadRequest(format!("invalid object type: {said}")));
    }
    if config["metadata"]["managedFields"].is_array() {
        return Err(ApiError::BadRequest("metadata.managedFields must be nil".into()));
    }
    let live = match existing {
        Some(existing) if scales => scale::of(call.row, &existing.value),
        Some(existing) => (*existing.value).clone(),
        None => {
            let mut nothing = json!({"apiVersion": &*call.row.api_version, "kind": kind});
            drop(normalise(call.row.schema.hold().get(), &mut nothing));
            nothing
        }
    };
    let parent = existing.map_or_else(Managers::default, |existing| existing.cached.managers().clone());
    let managers = if scales { to_scale(call, &parent) } else { parent };
    let versions = Kinds::of(call);
    let applied = {
        let writer = writer(call, manager_of(options), &versions);
        let applied = apply::apply(&managers, writer, &live, &config, force);
        if let Some(why) = call.elsewhere.failure() {
            return Err(why);
        }
        applied.map_err(apply::Failure::into_error)?
    };
    if validation == FieldValidation::Strict && !read.doubled.is_empty() {
        let doubled = read.doubled.join("\n  ");
        return Err(ApiError::BadRequest(format!(
            "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {doubled}"
        )));
    }
    let object = match applied.object {
        None => Ok(live),
        Some(mut object) => {
            drop(take(&mut object));
            let schema = versions.schema(if scales { SCALE_VERSION } else { &call.row.api_version });
            let typed = schema.ok_or_else(|| ApiError::Internal(format!("no type for {kind}")));
            typed.and_then(|schema| body::object(object, &Target { group, version, kind, schema }))
        }
    };
    if validation == FieldValidation::Warn {
        read.doubled.into_iter().for_each(|doubled| call.warn(doubled));
    }
    Ok((object?, applied.managers))
}

/// 409 for an apply that means an object which isn't there.
pub(super) fn check_new_uid(call: &RequestScope<'_>, object: &Value) -> Result<(), ApiError> {
    match object::text(object, "uid") {
        "" => Ok(()),
        uid => {
            let why =
                format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
            Err(ApiError::Conflict(call.resource(), call.name.to_owned(), why))
        }
    }
}
