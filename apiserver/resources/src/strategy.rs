//! What is particular about a kind, as code: the part of a row that facts can't say. A kind's file implements [`Strategy`] for what
//! differs from every other kind.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use machinery_api::features::Features;
use machinery_api::schema::types::Text;
use machinery_api::{ApiError, StorageKey};
use serde_json::Value;

use crate::core::pods;
use crate::core::services::allocate;
use crate::field::{FieldError, quoted};
use crate::objects::ObjectReader;
use crate::{cells, read, rules};

/// One column of a kind's table (`meta.k8s.io/v1 TableColumnDefinition`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The heading.
    pub name: Text,
    /// `string`, `integer`, `date`, …
    pub kind: Text,
    /// `name` for the first column, else mostly empty.
    pub format: Text,
    /// For a person.
    pub description: Text,
    /// 0 is always shown, others with `-o wide`.
    pub priority: i32,
}

/// A key that at most one object holds at a time. It is written with the object and goes with it, in the same transactions.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// Where it is stored.
    pub key: StorageKey,
    /// What says who holds it, in `spec.parentRef`.
    pub object: Value,
}

/// What a strategy may need besides the object. Other objects are looked up in `admission` or the registry, not here.
pub struct Context<'a> {
    /// The request's time, one for everything in it.
    pub now: Timestamp,
    /// The subresource written through, or empty.
    pub subresource: &'a str,
    /// The cluster's own blocks of 127.0.0.0/8 (Services, pods): the only loopback addresses that endpoints may have.
    pub loopback: &'a [ipnet::Ipv4Net],
    /// Who asks; `None`: the server itself.
    pub requester: Option<Requester<'a>>,
    /// Whether an evaluation is to end, as who waits has no patience for more; then what is said of the object means nothing.
    pub interrupt: fn() -> bool,
}

impl Context<'_> {
    /// The server's own look at an object: nobody asks, no loopback address is allowed, and nothing interrupts.
    #[must_use]
    pub fn of_server(now: Timestamp) -> Self {
        Self { now, subresource: "", loopback: &[], requester: None, interrupt: || false }
    }
}

/// Who a request comes from, as kinds write it down.
#[derive(Debug, Clone, Copy)]
pub struct Requester<'a> {
    /// The user's name.
    pub name: &'a str,
    /// The user's uid, where there is one.
    pub uid: &'a str,
    /// Groups, in order.
    pub groups: &'a [String],
    /// Extra attributes.
    pub extra: &'a BTreeMap<String, Vec<String>>,
}

/// What a strategy may need to give an object what only the server can give.
pub struct Allocation<'a> {
    /// Chooses Services' addresses and ports.
    pub services: &'a allocate::Allocator,
    /// What is reserved.
    pub objects: &'a dyn ObjectReader,
    /// Whether nothing is to be stored.
    pub dry_run: bool,
    /// The subresource written through, or empty.
    pub subresource: &'a str,
}

/// Which parts of metadata validation upstream's own update validation of a kind repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataChecks {
    /// None: only the generic code checks it.
    None,
    /// What an update may not change.
    Change,
    /// All that is checked at creation.
    Whole,
    /// Both.
    ChangeThenWhole,
    /// Both, the other way round.
    WholeThenChange,
}

/// Fields that a way of writing doesn't write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwritten {
    /// These, with all that is below them.
    Below(&'static [&'static [&'static str]]),
    /// All but what these paths lead to (`None`: any element).
    AllBut(&'static [&'static [Option<&'static str>]]),
}

impl Unwritten {
    /// A write of the status that writes no metadata either.
    pub const METADATA_TOO: Self = Self::Below(&[&["metadata"], &["spec"]]);
}

/// What is particular about a kind. Values are complete JSON objects with `apiVersion`, `kind` and `metadata`; generic
/// metadata (name, uid, timestamps, generation's counting, deletion fields, finalizers) is done in the registry, and
/// generic metadata validation (names, labels, annotations, owner references, finalizers) too: see each method.
pub trait Strategy: Send + Sync {
    /// The strategy of the kind under feature gates; `None`: this one.
    fn under(&self, features: &Features) -> Option<&'static dyn Strategy> {
        let _ = features;
        None
    }

    /// Which fields a write through a subresource, or of the object itself (empty), doesn't write: nobody comes to manage
    /// them by it (upstream's `GetResetFields`).
    fn unwritten(&self, subresource: &str) -> Unwritten {
        match subresource {
            "status" => Unwritten::Below(&[&["spec"]]),
            _ => Unwritten::Below(&[&["status"]]),
        }
    }

    /// Fills in defaults that the schema's declared ones don't cover (upstream's `SetDefaults_…`). Runs on every
    /// decoded body, and on the result of a patch; must be idempotent.
    fn default(&self, object: &mut Value) {
        let _ = object;
    }

    /// Clears and sets what a client may not decide at creation (status, generation of kinds that count it).
    /// The default drops `status`.
    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) {
        let _ = context;
        if let Some(map) = object.as_object_mut() {
            map.remove("status");
        }
    }

    /// The same for an update through `context.subresource`: by default the main resource keeps the old status, and
    /// `status` keeps everything but status.
    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
    }

    /// Whether `metadata.generation` is kept (starts at 1, rises when `generation_changes`).
    fn counts_generation(&self) -> bool {
        false
    }

    /// Whether a new object has its first generation: where not, it has none until it changes.
    fn starts_generation(&self) -> bool {
        self.counts_generation()
    }

    /// Whether this change (after `prepare_update`) raises the generation: by default, any change of
    /// `spec` that means something (absent and empty are the same).
    fn generation_changes(&self, new: &Value, old: &Value) -> bool {
        !pods::update::same(read::get(new, "spec"), read::get(old, "spec"))
    }

    /// The rule for `metadata.name`.
    fn name_rule(&self) -> rules::NameRule {
        rules::NameRule::Subdomain
    }

    /// What `generateName` becomes has random letters at its end; where not, it is the name itself.
    fn generates_names(&self) -> bool {
        true
    }

    /// How often, and how, the kind's own update validation checks the metadata again (see [`metadata`]).
    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::Change
    }

    /// The same where it differs by subresource.
    fn metadata_checks_of(&self, subresource: &str) -> MetadataChecks {
        if subresource.is_empty() { self.metadata_checks() } else { MetadataChecks::Change }
    }

    /// Whether a finalizer must have a domain or be one of Kubernetes' own: the kinds of upstream's core validation.
    fn checks_finalizers(&self) -> bool {
        true
    }

    /// What stands alone: found before anything else is looked at, metadata included (`old`: of an update).
    fn validate_first(&self, context: &Context<'_>, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let _ = (context, object, old);
        Vec::new()
    }

    /// Whether [`validate`](Self::validate) checks the metadata itself, as it does not come first.
    fn orders_metadata(&self) -> bool {
        false
    }

    /// Object validation at creation, without generic metadata.
    fn validate(&self, context: &Context<'_>, object: &Value) -> Vec<FieldError>;

    /// Object validation of an update through `context.subresource`, without generic metadata.
    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let _ = old;
        self.validate(context, new)
    }

    /// The same, with the findings that the request doesn't fail for: the client gets them as `Warning` headers.
    fn validate_update_with_warnings(
        &self,
        context: &Context<'_>,
        new: &Value,
        old: &Value,
        warnings: &mut Vec<String>,
    ) -> Vec<FieldError> {
        let _ = warnings;
        self.validate_update(context, new, old)
    }

    /// Fills in what only the server can give (addresses, ports), or refuses what was asked for and can't be had. Runs after
    /// [`validate_first`](Self::validate_first); `old` is there for updates.
    fn allocate(&self, allocation: &Allocation<'_>, new: &mut Value, old: Option<&Value>) -> Result<(), ApiError> {
        let _ = (allocation, new, old);
        Ok(())
    }

    /// Storage prefixes of what [`claims`](Self::claims) names.
    fn claim_prefixes(&self) -> &'static [&'static str] {
        &[]
    }

    /// What an object of this kind holds for itself alone.
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

    /// Whether an update without a resourceVersion is taken.
    fn unconditional_update(&self) -> bool {
        true
    }

    /// Why this object may not be deleted at all (the sentence after `is forbidden: `).
    fn refuses_delete(&self, object: &Value) -> Option<&'static str> {
        let _ = object;
        None
    }

    /// What the first delete makes of an object whose end is the server's own to bring about: it stays until that is done.
    fn begins_deletion(&self, object: &Value, now: Timestamp) -> Option<Value> {
        let _ = (object, now);
        None
    }

    /// Whether a delete answers with the object (true) or with a Status.
    fn delete_answers_object(&self) -> bool {
        false
    }

    /// Seconds of graceful deletion for this object where the client names none; `None`: the kind has no grace.
    fn grace_seconds(&self, object: &Value) -> Option<i64> {
        let _ = object;
        None
    }

    /// Whether a client may ask for graceful deletion of this object; where not, it goes at once whatever was asked.
    fn grace_allowed(&self, object: &Value) -> bool {
        let _ = object;
        true
    }

    /// The propagation policy of a delete that names none (`batch/v1` Jobs orphan).
    fn orphans_by_default(&self) -> bool {
        false
    }

    /// Whether a delete that names no policy and so orphans says so.
    fn warns_of_orphans(&self) -> bool {
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

    /// What field selectors beyond `metadata.name` and `metadata.namespace` compare: an object's values, in the order of
    /// [`selectable_labels`](Self::selectable_labels).
    fn selectable(&self, object: &Value) -> Vec<String> {
        let _ = object;
        Vec::new()
    }

    /// The field labels that selectors may name beyond those.
    fn selectable_labels(&self) -> &[Text] {
        &[]
    }

    /// What upstream's conversion says of a field label that selectors may not name.
    fn unknown_label(&self, label: &str) -> String {
        if self.selectable_labels().is_empty() {
            let label = quoted(label);
            return format!("{label} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"");
        }
        format!("field label not supported: {label}")
    }

    /// What upstream's conversion puts into an object that holds nothing (a bookmark's) beside what every type prints.
    fn of_nothing(&self, object: &mut Value) {
        let _ = object;
    }

    /// A field label of this row's version in the words of the stored one (only for rows that share a storage).
    fn stored_label<'a>(&self, label: &'a str) -> Cow<'a, str> {
        Cow::Borrowed(label)
    }

    /// From the stored form into this row's version, and back (only for rows that share a storage).
    fn read_storage_version(&self, object: Value) -> Value {
        object
    }

    /// See [`read_storage_version`](Self::of_stored).
    fn write_storage_version(&self, object: Value) -> Value {
        object
    }
}

/// A strategy with no rule of its own.
pub(super) struct Plain;

impl Strategy for Plain {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}

/// The main resource keeps the old status; `status` keeps all but status (and takes annotations and finalizers as upstream does not).
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
