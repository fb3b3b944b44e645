//! Field management (`managedFields`) of every write: connects [`apiserver_schema::apply`], which decides, to rows,
//! versions and subresources. Managers are kept next to an object's value, never in it.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use apiserver_schema::apply::{
    self, Entry, Form, Identity, Ignored, Managers, PathElement, Set, Versions, Writer, body,
};
use apiserver_schema::{FieldValidation, SharedType, Target, TypeRef, built_in, normalise};
use machinery_api::{ApiError, GroupVersion, GroupVersionKind};
use serde_json::{Value, json};

use super::change::Existing;
use super::conversions::ObjectConversions;
use super::object::{self, metadata_mut};
use super::{PatchType, RequestScope, scale};
use apiserver_admission::Options;
use apiserver_catalog::Catalog;
use apiserver_resources::apiextensions::custom::Conversion;
use apiserver_resources::options::WriteOptions;
use apiserver_resources::{ResetFields, ResourceInfo};

/// The field manager of the server's own writes.
pub(crate) const SERVER: &str = "kube-apiserver";

/// The versions of a row's kind, or of its Scale.
struct KindVersions<'a> {
    catalog: &'a Catalog,
    row: &'a ResourceInfo,
    subresource: &'a str,
    scales: bool,
    held: VersionTypes<'a>,
    conversions: &'a ObjectConversions,
}

/// The types of versions, each acquired at its first use.
#[derive(Default)]
struct VersionTypes<'a>(OnceLock<(&'a ResourceInfo, Cow<'a, SharedType>, Box<VersionTypes<'a>>)>);

impl<'a> VersionTypes<'a> {
    fn of(&self, row: &'a ResourceInfo) -> TypeRef<'_> {
        let (held, types, others) = self.0.get_or_init(|| (row, row.schema.hold(), Box::default()));
        if std::ptr::eq(*held, row) { types.get() } else { others.of(row) }
    }
}

impl<'a> KindVersions<'a> {
    fn of(call: &'a RequestScope<'_>) -> Self {
        let scales = call.is_scale();
        Self {
            catalog: call.catalog,
            row: call.row,
            subresource: call.subresource_name(),
            scales,
            held: VersionTypes::default(),
            conversions: &call.conversions,
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

const SCALE_VERSION: &str = "autoscaling/v1";

impl Versions for KindVersions<'_> {
    fn schema(&self, api_version: &str) -> Option<TypeRef<'_>> {
        if self.scales {
            let (group, version, kind) = scale::KIND;
            return (api_version == SCALE_VERSION).then(|| built_in().of_kind(group, version, kind)).flatten();
        }
        self.row(api_version).map(|row| self.held.of(row))
    }

    fn convert(&self, object: &Value, from: &str, to: &str) -> Option<Value> {
        let (from, to) = (self.row(from)?, self.row(to)?);
        let mut shown = if converts_by_webhook(to) {
            self.conversions.get(object, &to.api_version)?
        } else {
            convert_by_strategy(object, from, to)?
        };
        drop(normalise(to.schema.hold().get(), &mut shown));
        Some(shown)
    }

    fn ignored(&self, _: &str) -> Ignored {
        if self.scales {
            return Ignored::Nothing;
        }
        match self.row.strategy.reset_fields(self.subresource) {
            ResetFields::Below(paths) => Ignored::Below(Arc::new(Set::of(paths))),
            ResetFields::AllBut(paths) => Ignored::AllBut(paths),
        }
    }
}

/// Whether objects of a row are converted by a webhook.
fn converts_by_webhook(row: &ResourceInfo) -> bool {
    row.custom.as_ref().is_some_and(|custom| matches!(custom.definition.conversion, Conversion::Webhook(_)))
}

/// Converts an object to another version by the kind's strategy.
fn convert_by_strategy(object: &Value, from: &ResourceInfo, to: &ResourceInfo) -> Option<Value> {
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

/// Removes `managedFields` from a client's object and returns it.
pub(super) fn take_managed_fields(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

/// Whether a patch may touch `managedFields`, so that it must be applied to an object that includes them.
pub(super) fn touches_managers(kind: PatchType, patch: &[u8]) -> bool {
    let has = |text: &[u8]| memchr::memmem::find(patch, text).is_some();
    // Also JSON pointers to metadata or to the whole object, and escaped names.
    has(b"managedFields") || has(b"\\u") || (kind == PatchType::Json && (has(b"/metadata\"") || has(b"\"\"")))
}

/// The object with `managedFields`, for a patch that may touch them.
pub(super) fn object_with_managers(existing: &Existing) -> Value {
    with_managed_fields((*existing.value).clone(), existing.cached.managers())
}

/// The object of a response, with `managedFields`.
#[must_use]
pub fn with_managed_fields(mut object: Value, managers: &Managers) -> Value {
    if let Some(value) = managers.to_value() {
        metadata_mut(&mut object).insert("managedFields".into(), value);
    }
    object
}

fn writer<'a>(call: &'a RequestScope<'_>, manager: &'a str, versions: &'a KindVersions<'_>) -> Writer<'a> {
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

/// The managers before a write: the object's, or those that a client sent. Invalid ones are ignored, and through a
/// subresource all are.
fn managers_before(call: &RequestScope<'_>, existing: Option<&Existing>, sent: Option<Value>) -> Managers {
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

/// The managers after a write of an object, for admission.
pub(super) fn managers_after_write(
    call: &RequestScope<'_>,
    options: &Options<'_>,
    existing: Option<&Existing>,
    object: &Value,
    sent: Option<Value>,
) -> Managers {
    let versions = KindVersions::of(call);
    let managers = managers_before(call, existing, sent);
    let old = existing.map(|existing| &*existing.value);
    let object = &*call.row.strategy.tracked_form(object);
    let updated = apply::update(&managers, writer(call, manager_of(options), &versions), old, object, Form::Printed);
    // As upstream: no managers are better than wrong ones.
    if call.conversions.failure().is_some() { Managers::default() } else { updated }
}

/// The managers of a new object that isn't stored, such as a review.
pub(crate) fn managers_of_virtual(call: &RequestScope<'_>, options: &WriteOptions, object: &Value) -> Managers {
    managers_after_write(call, &Options::Write(options), None, object, None)
}

/// The managers after the server's own write.
pub(super) fn managers_after_install(call: &RequestScope<'_>, existing: Option<&Existing>, object: &Value) -> Managers {
    let versions = KindVersions::of(call);
    let managers = managers_before(call, existing, None);
    let old = existing.map(|existing| &*existing.value);
    // Upstream's components send protobuf, which has no empty lists.
    let mut sent = call.row.strategy.tracked_form(object).into_owned();
    super::body::normalise(call.row, &mut sent);
    apply::update(&managers, writer(call, SERVER, &versions), old, &sent, Form::Printed)
}

/// The managers of a Scale after a write of it, for admission.
pub(super) fn managers_after_scale(
    call: &RequestScope<'_>,
    options: &Options<'_>,
    existing: &Existing,
    new: &Value,
) -> Managers {
    let versions = KindVersions::of(call);
    let managers = managers_of_scale(call, existing);
    let old = scale::of(call.row, &existing.value);
    apply::update(&managers, writer(call, manager_of(options), &versions), Some(&old), new, Form::Printed)
}

/// The managers of an existing object's Scale.
pub(super) fn managers_of_scale(call: &RequestScope<'_>, existing: &Existing) -> Managers {
    to_scale(call, existing.cached.managers())
}

/// The managers of a workload, merged with those of its Scale.
pub(super) fn merge_scale_managers(call: &RequestScope<'_>, existing: &Existing, scale: &Managers) -> Managers {
    to_parent(call, existing.cached.managers(), scale)
}

/// The path to a Scale's replicas.
const REPLICAS: &[&str] = &["spec", "replicas"];

fn path(fields: &[&str]) -> Vec<PathElement> {
    fields.iter().copied().map(PathElement::field).collect()
}

/// The versions of a workload's kind, for the paths to the fields of its Scale.
struct ScaleParents<'a>(KindVersions<'a>);

impl<'a> ScaleParents<'a> {
    fn of(call: &'a RequestScope<'_>) -> Self {
        Self(KindVersions { scales: false, ..KindVersions::of(call) })
    }

    /// The path to the replicas in a version; empty if it has no Scale, `None` if it isn't served.
    fn replicas(&self, api_version: &str) -> Option<Vec<&str>> {
        let row = self.0.row(api_version)?;
        Some(match &row.custom {
            None => REPLICAS.to_vec(),
            Some(custom) => custom.scale.iter().flat_map(|scale| scale.wanted()).collect(),
        })
    }

    /// The same, if that entry manages them.
    fn replicas_of(&self, entry: &Entry) -> Option<Vec<&str>> {
        let fields = self.replicas(&entry.who.api_version)?;
        (!fields.is_empty() && entry.fields.set().has(&path(&fields))).then_some(fields)
    }
}

/// A Scale's managers: those of the workload that manage its replicas.
fn to_scale(call: &RequestScope<'_>, parent: &Managers) -> Managers {
    let parents = ScaleParents::of(call);
    let fields = apply::pool::of_set(&Set::of(&[REPLICAS]));
    let entry = |entry: &Entry| {
        let who = &entry.who;
        let who = Identity::new(&who.manager, who.operation, SCALE_VERSION, &who.subresource);
        Entry { who, at: entry.at, fields: fields.clone() }
    };
    Managers::new(parent.entries().iter().filter(|of| parents.replicas_of(of).is_some()).map(entry).collect())
}

/// A workload's managers after a write of its Scale. As upstream, new entries have no time, and those of versions that
/// are no longer served are dropped.
fn to_parent(call: &RequestScope<'_>, parent: &Managers, scale: &Managers) -> Managers {
    let parents = ScaleParents::of(call);
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
        // An updater of other fields of the workload through the same subresource has one entry.
        entries.push(Entry { who, at: None, fields: apply::pool::of_set(&Set::of(&[&fields])) });
    }
    Managers::new(entries)
}

/// The result of an apply patch to an object or its Scale, before defaulting, and the managers after it.
pub(super) fn apply_patch(
    call: &RequestScope<'_>,
    options: &Options<'_>,
    existing: Option<&Existing>,
    (patch, force, validation): (&[u8], bool, FieldValidation),
    warnings: &mut Vec<String>,
) -> Result<(Value, Managers), ApiError> {
    let read = body::config(patch)?;
    let config = read.object;
    let scales = call.is_scale();
    let (group, version, kind) =
        if scales { scale::KIND } else { (&*call.row.group, &*call.row.version, &*call.row.kind) };
    let text = |field: &str| config[field].as_str().unwrap_or_default();
    let declared = GroupVersion::parse(text("apiVersion")).kind(text("kind"));
    if declared != (GroupVersionKind { group, version, kind }) {
        return Err(ApiError::BadRequest(format!("invalid object type: {declared}")));
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
    let versions = KindVersions::of(call);
    let applied = {
        let writer = writer(call, manager_of(options), &versions);
        let applied = apply::apply(&managers, writer, &live, &config, force);
        if let Some(why) = call.conversions.failure() {
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
            drop(take_managed_fields(&mut object));
            let schema = versions.schema(if scales { SCALE_VERSION } else { &call.row.api_version });
            let typed = schema.ok_or_else(|| ApiError::Internal(format!("no type for {kind}")));
            typed.and_then(|schema| body::object(object, &Target { group, version, kind, schema }))
        }
    };
    if validation == FieldValidation::Warn {
        warnings.extend(read.doubled);
    }
    Ok((object?, applied.managers))
}

/// 409 for an apply with the uid of an object that doesn't exist.
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
