//! The behaviour of a kind: the part of a row that is code. A kind's file implements [`Strategy`] where the kind
//! differs from the defaults.

use std::borrow::Cow;
use std::collections::BTreeMap;

use apiserver_schema::types::Text;
use jiff::Timestamp;
use machinery_api::features::Features;
use machinery_api::{ApiError, StorageKey};
use serde_json::Value;

use crate::core::pods;
use crate::core::services::allocate;
use crate::field::{ErrorList, quoted};
use crate::objects::ObjectReader;
use crate::{cells, read, rules};

/// One column of a kind's table (`meta.k8s.io/v1 TableColumnDefinition`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The header.
    pub name: Text,
    /// `string`, `integer`, `date`, …
    pub kind: Text,
    /// `name` for the first column, otherwise mostly empty.
    pub format: Text,
    /// For humans.
    pub description: Text,
    /// 0 is always shown, others with `-o wide`.
    pub priority: i32,
}

/// A key that at most one object holds at a time. The holder's transactions write and delete it.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// The storage key.
    pub key: StorageKey,
    /// The stored value, which names the holder in `spec.parentRef`.
    pub object: Value,
}

/// Input of a strategy beside the object. Other objects are looked up in `admission` or the registry.
pub struct Context<'a> {
    /// The time of the request.
    pub now: Timestamp,
    /// The subresource of the request, or empty.
    pub subresource: &'a str,
    /// The cluster's own blocks of 127.0.0.0/8 (Services, pods): the only loopback addresses that endpoints may have.
    pub loopback: &'a [ipnet::Ipv4Net],
    /// The requesting user; `None` for the server itself.
    pub requester: Option<Requester<'a>>,
    /// Whether an evaluation must end; the result of a cancelled evaluation is meaningless.
    pub interrupt: fn() -> bool,
}

impl Context<'_> {
    /// For internal requests: no requester, no allowed loopback address, no interrupt.
    #[must_use]
    pub fn of_server(now: Timestamp) -> Self {
        Self { now, subresource: "", loopback: &[], requester: None, interrupt: || false }
    }
}

/// The requesting user, as kinds record it.
#[derive(Debug, Clone, Copy)]
pub struct Requester<'a> {
    pub name: &'a str,
    /// The user's uid, where there is one.
    pub uid: &'a str,
    /// Groups, in order.
    pub groups: &'a [String],
    /// Extra attributes.
    pub extra: &'a BTreeMap<String, Vec<String>>,
}

/// Input of [`Strategy::allocate`].
pub struct Allocation<'a> {
    /// Allocates Services' addresses and ports.
    pub services: &'a allocate::Allocator,
    /// Reads reservations.
    pub objects: &'a dyn ObjectReader,
    /// Whether nothing is stored.
    pub dry_run: bool,
    /// The subresource of the request, or empty.
    pub subresource: &'a str,
}

/// The parts of metadata validation that upstream's own update validation of a kind repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataChecks {
    /// None: only generic code validates it.
    None,
    /// The rules of updates.
    Change,
    /// The rules of creates.
    Whole,
    /// First the rules of updates, then those of creates.
    ChangeThenWhole,
    /// First the rules of creates, then those of updates.
    WholeThenChange,
}

/// Fields that a request doesn't write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetFields {
    /// The fields at these paths.
    Below(&'static [&'static [&'static str]]),
    /// All fields except those at these paths (`None`: any item).
    AllBut(&'static [&'static [Option<&'static str>]]),
}

impl ResetFields {
    /// A status write that doesn't write metadata.
    pub const METADATA_TOO: Self = Self::Below(&[&["metadata"], &["spec"]]);
}

/// The behaviour of a kind. Values are complete JSON objects with `apiVersion`, `kind` and `metadata`. The registry
/// handles generic metadata (name, uid, timestamps, generation, deletion fields, finalizers) and its validation
/// (names, labels, annotations, owner references, finalizers); exceptions are documented at the methods.
pub trait Strategy: Send + Sync {
    /// The kind's strategy under feature gates; `None`: this one.
    fn under(&self, features: &Features) -> Option<&'static dyn Strategy> {
        let _ = features;
        None
    }

    /// Fields that a write through a subresource (empty: the main resource) doesn't write, and whose managers it
    /// doesn't change (upstream's `GetResetFields`).
    fn reset_fields(&self, subresource: &str) -> ResetFields {
        match subresource {
            "status" => ResetFields::Below(&[&["spec"]]),
            _ => ResetFields::Below(&[&["status"]]),
        }
    }

    /// Sets defaults beyond those of the schema (upstream's `SetDefaults_…`). Runs on every decoded body, and on the
    /// result of a patch; must be idempotent.
    fn default(&self, object: &mut Value) {
        let _ = object;
    }

    /// Resets fields that a client can't set on create (status, generation of kinds that count it).
    /// The default drops `status`.
    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) {
        let _ = context;
        if let Some(map) = object.as_object_mut() {
            map.remove("status");
        }
    }

    /// Resets fields that a client can't set on update through `context.subresource`. By default the main resource
    /// keeps the old status, and `status` keeps everything else.
    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
    }

    /// Whether `metadata.generation` is counted (starts at 1, incremented if `generation_changes`).
    fn counts_generation(&self) -> bool {
        false
    }

    /// Whether a new object has generation 1; otherwise it has none until its first change.
    fn starts_generation(&self) -> bool {
        self.counts_generation()
    }

    /// Whether an update (after `prepare_update`) increments the generation. By default, any semantic change of
    /// `spec` (absent equals empty).
    fn generation_changes(&self, new: &Value, old: &Value) -> bool {
        !pods::update::semantically_equal(read::get(new, "spec"), read::get(old, "spec"))
    }

    /// Whether an explicitly empty list or map in place of an absent one increments the generation, too: upstream compares
    /// these kinds by `reflect.DeepEqual`.
    fn generation_counts_empty(&self) -> bool {
        false
    }

    /// The rule for `metadata.name`.
    fn name_rule(&self) -> rules::NameRule {
        rules::NameRule::Subdomain
    }

    /// Whether `generateName` gets a random suffix; otherwise it is the name itself.
    fn generates_names(&self) -> bool {
        true
    }

    /// How the kind's own update validation repeats the metadata validation (see [`metadata`]).
    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::Change
    }

    /// As [`metadata_checks`](Self::metadata_checks), by subresource.
    fn metadata_checks_of(&self, subresource: &str) -> MetadataChecks {
        if subresource.is_empty() { self.metadata_checks() } else { MetadataChecks::Change }
    }

    /// Whether finalizers must have a domain or be one of Kubernetes' own: the kinds of upstream's core validation.
    fn checks_finalizers(&self) -> bool {
        true
    }

    /// Exclusive errors, found before all other validation, metadata included (`old`: on update).
    fn validate_first(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        let _ = (context, object, old, errors);
    }

    /// Whether [`validate`](Self::validate) validates the metadata of a new object itself, since it doesn't come first.
    fn validates_metadata(&self) -> bool {
        false
    }

    /// Validation of a new object, or of an update of `old` through `context.subresource`, without generic metadata.
    /// Adds to `errors`, which has those of the metadata, in upstream's order.
    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList);

    /// Allocates values that only the server can choose (addresses, ports), or rejects requested ones that are
    /// unavailable. Runs after [`validate_first`](Self::validate_first); `old` is set for updates.
    fn allocate(&self, allocation: &Allocation<'_>, new: &mut Value, old: Option<&Value>) -> Result<(), ApiError> {
        let _ = (allocation, new, old);
        Ok(())
    }

    /// Storage prefixes of the [`claims`](Self::claims).
    fn claim_prefixes(&self) -> &'static [&'static str] {
        &[]
    }

    /// The keys that an object holds exclusively.
    fn claims(&self, object: &Value) -> Vec<Claim> {
        let _ = object;
        Vec::new()
    }

    /// Upstream's `Warning` headers for a created or updated object.
    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let _ = (object, old);
        Vec::new()
    }

    /// Whether PUT on a name that doesn't exist creates it.
    fn create_on_update(&self) -> bool {
        false
    }

    /// Whether an update without a resourceVersion is accepted.
    fn unconditional_update(&self) -> bool {
        true
    }

    /// Why this object can't be deleted (the message after `is forbidden: `).
    fn delete_denied_reason(&self, object: &Value) -> Option<&'static str> {
        let _ = object;
        None
    }

    /// The object after its first delete, if the server itself must finish the deletion; it remains until then.
    fn start_deletion(&self, object: &Value, now: Timestamp) -> Option<Value> {
        let _ = (object, now);
        None
    }

    /// Whether a delete returns the object instead of a Status.
    fn delete_answers_object(&self) -> bool {
        false
    }

    /// Grace period of a deletion whose client specifies none, in seconds; `None`: the kind has no grace period.
    fn grace_seconds(&self, object: &Value) -> Option<i64> {
        let _ = object;
        None
    }

    /// Whether a client may request graceful deletion of this object; otherwise it is deleted at once.
    fn grace_allowed(&self, object: &Value) -> bool {
        let _ = object;
        true
    }

    /// Whether a delete without a propagation policy orphans dependents (`batch/v1` Jobs).
    fn orphans_by_default(&self) -> bool {
        false
    }

    /// Whether a delete that orphans by default returns a warning.
    fn warns_on_default_orphaning(&self) -> bool {
        false
    }

    /// Table columns; by default Name and Age.
    fn columns(&self) -> &[Column] {
        cells::NAME_AND_AGE
    }

    /// One row's cells, as many as [`columns`](Self::columns).
    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        cells::name_and_age(object, now)
    }

    /// The values of an object for field selectors beyond `metadata.name` and `metadata.namespace`, in the order of
    /// [`selectable_labels`](Self::selectable_labels).
    fn selectable(&self, object: &Value) -> Vec<String> {
        let _ = object;
        Vec::new()
    }

    /// The field labels of those selectors.
    fn selectable_labels(&self) -> &[Text] {
        &[]
    }

    /// The error of upstream's conversion for an unsupported field label.
    fn unknown_label(&self, label: &str) -> String {
        if self.selectable_labels().is_empty() {
            let label = quoted(label);
            return format!("{label} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"");
        }
        format!("field label not supported: {label}")
    }

    /// Fields that upstream's conversion adds to an empty object (a bookmark's), beside those of every type.
    fn fill_empty_object(&self, object: &mut Value) {
        let _ = object;
    }

    /// Why upstream can't convert a decoded object to its internal version, in its words.
    fn conversion_error(&self, object: &Value) -> Option<String> {
        let _ = object;
        None
    }

    /// The form in which upstream tracks the fields of a decoded object, where that isn't the object itself: with what
    /// its defaulting and its conversion to the internal version and back set, and this strategy sets later.
    fn tracked_form<'a>(&self, object: &'a Value) -> Cow<'a, Value> {
        Cow::Borrowed(object)
    }

    /// Converts a field label of this row's version to the stored version (only for rows that share a storage).
    fn stored_label<'a>(&self, label: &'a str) -> Cow<'a, str> {
        Cow::Borrowed(label)
    }

    /// Converts from the stored form to this row's version (only for rows that share a storage).
    fn read_storage_version(&self, object: Value) -> Value {
        object
    }

    /// Converts from this row's version to the stored form.
    fn write_storage_version(&self, object: Value) -> Value {
        object
    }
}

/// A strategy with only the default behaviour.
pub(super) struct Plain;

impl Strategy for Plain {
    fn validate(&self, _: &Context<'_>, _: &Value, _: Option<&Value>, _: &mut ErrorList) {}
}

/// The main resource keeps the old status; `status` keeps the rest, but takes annotations and finalizers, unlike
/// upstream.
pub fn prepare_update_by_default(context: &Context<'_>, new: &mut Value, old: &Value) {
    let Some(map) = new.as_object_mut() else { return };
    if context.subresource == "status" {
        for (key, value) in old.as_object().into_iter().flatten() {
            if key != "status" && key != "metadata" {
                map.insert(key.clone(), value.clone());
            }
        }
        map.retain(|key, _| key == "status" || key == "metadata" || old.get(key).is_some());
    } else {
        match old.get("status") {
            Some(status) => map.insert("status".into(), status.clone()),
            None => map.remove("status"),
        };
    }
}
