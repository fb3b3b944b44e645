//! THE TABLE: one row per kind; one file per kind (defaults, preparation, validation, columns, example).
//!
//! Everything else in this crate is generic over a [`Row`]: routes, discovery, OpenAPI, storage prefixes, subresources,
//! printer columns, defaulting, validation, and which verbs exist.

pub use core::services::allocate;
mod apps;
mod authorization;
mod batch;
pub mod cells;
mod coordination;
mod core;
mod discovery;
pub mod field;
mod info;
pub mod metadata;
mod node;
pub mod objects;
mod rbac;
pub mod read;
pub mod rules;
mod scheduling;
mod workloads;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;
use machinery_api::schema::types::Text;
use machinery_api::{ApiError, GroupVersion, StorageKey};
use serde_json::Value;

use field::FieldError;

pub use info::{ResourceInfo, SharedStrategy, served};
use objects::Objects;

/// What a resource or subresource can be asked for, as in discovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// POST on the collection.
    Create,
    /// DELETE on an object.
    Delete,
    /// DELETE on the collection.
    DeleteCollection,
    /// GET on an object.
    Get,
    /// GET on the collection.
    List,
    /// PATCH on an object.
    Patch,
    /// PUT on an object.
    Update,
    /// GET with `watch`.
    Watch,
}

impl Verb {
    /// As RBAC and discovery spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Get => "get",
            Self::List => "list",
            Self::Patch => "patch",
            Self::Update => "update",
            Self::Watch => "watch",
        }
    }
}

/// All verbs of an ordinary resource.
pub const ALL_VERBS: &[Verb] = &[
    Verb::Create,
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Update,
    Verb::Watch,
];

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

/// What a subresource does with a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubresourceKind {
    /// `status`: get, update, patch of the same kind; only status (and what the strategy lets through) is written.
    Status,
    /// `scale`: `autoscaling/v1 Scale` over replicas.
    Scale,
    /// `finalize` of a Namespace: update only, writes `spec.finalizers`.
    Finalize,
    /// `binding` of a Pod: create only, kind Binding.
    Binding,
    /// `log` of a Pod: streamed from the node.
    Log,
    /// `token` of a ServiceAccount: create only, kind TokenRequest.
    Token,
}

/// One subresource of a row.
#[derive(Debug, Clone, Copy)]
pub struct Subresource {
    /// The path segment.
    pub name: &'static str,
    /// What it does.
    pub what: SubresourceKind,
    /// Group, version and kind of its body where it differs from the row's (`autoscaling`, `v1`, `Scale`).
    pub body: Option<(&'static str, &'static str, &'static str)>,
    /// As in discovery.
    pub verbs: &'static [Verb],
}

/// How a row's objects live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Under `/registry/<prefix>/[namespace/]name`, as upstream (`pods`, `services/specs`, `minions` …).
    Stored(&'static str),
    /// Never stored: create computes an answer (access reviews, token reviews, `bindings`).
    Virtual,
}

/// A question that is asked by creating an object, which is never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Review {
    /// Whose a token is.
    Token,
    /// Who asks.
    SelfSubject,
    /// Which rules the asking user has.
    SelfRules,
    /// What a user may do.
    Access,
    /// The same in one namespace.
    LocalAccess,
    /// What the asking user may do.
    SelfAccess,
}

/// How a row's objects end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// At once, after their grace, or when their finalizers are gone; dependents as the client's policy says.
    Plain,
    /// The same, without dependents: upstream collects no garbage below these.
    WithoutDependents,
    /// A delete makes it Terminating; it goes when `spec.finalizers` is empty, too (Namespaces).
    Finalized,
}

impl Storage {
    /// The prefix below `/registry/`.
    #[must_use]
    pub fn prefix(self) -> Option<&'static str> {
        match self {
            Self::Stored(prefix) => Some(prefix),
            Self::Virtual => None,
        }
    }
}

/// A key that at most one object holds at a time. It is written with the object and goes with it, in the same transactions.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// Where it is stored.
    pub key: StorageKey,
    /// What says who holds it, in `spec.parentRef`.
    pub object: Value,
}

/// One kind of the API.
pub struct Row {
    /// API group; empty for core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// The path segment.
    pub plural: &'static str,
    /// As in discovery.
    pub singular: &'static str,
    /// As in discovery.
    pub short_names: &'static [&'static str],
    /// As in discovery.
    pub categories: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// The type's name in the schema table (`io.k8s.api.core.v1.Pod`).
    pub schema: &'static str,
    /// What can be asked.
    pub verbs: &'static [Verb],
    /// Subresources in discovery order.
    pub subresources: &'static [Subresource],
    /// Where objects live.
    pub storage: Storage,
    /// Two rows over one storage (core and events.k8s.io Events): the stored form is the row's that has `true` here.
    pub storage_version: bool,
    /// Subresources that a later version serves, and since which: they are no unknown paths.
    pub later: &'static [(&'static str, &'static str)],
    /// What a create on this collection asks; `None`: it is no question.
    pub review: Option<Review>,
    /// A create on this collection is one on a subresource of another row's object, which the body names.
    pub stands_for: Option<(&'static Row, SubresourceKind)>,
    /// Fields whose equality is indexed for lists and watches.
    pub indexed_fields: &'static [&'static str],
    /// Whether lists by label equality use an index.
    pub indexes_labels: bool,
    /// Whether findings show a list or map that was given empty as such, not as absent.
    pub shows_empty: bool,
    /// How objects end.
    pub deletion: Deletion,
    /// For how long an object lives that nobody deletes; `None`: for ever.
    pub ttl: Option<Duration>,
    /// What is particular about the kind.
    pub strategy: &'static dyn Strategy,
    /// A valid object, as YAML: tests walk the table with it. No namespace, no status.
    pub example: &'static str,
}

impl Row {
    /// A plain namespaced kind, for rows to override what differs.
    pub const NAMESPACED: Self = Self {
        group: "",
        version: "v1",
        kind: "",
        plural: "",
        singular: "",
        short_names: &[],
        categories: &[],
        namespaced: true,
        schema: "",
        verbs: ALL_VERBS,
        subresources: &[],
        storage: Storage::Virtual,
        storage_version: true,
        later: &[],
        review: None,
        stands_for: None,
        indexed_fields: &[],
        indexes_labels: false,
        shows_empty: false,
        deletion: Deletion::Plain,
        ttl: None,
        strategy: &Plain,
        example: "",
    };

    /// A plain cluster-wide kind, for rows to override what differs.
    pub const CLUSTER: Self = Self { namespaced: false, ..Self::NAMESPACED };

    /// `deployments.apps` or `pods`.
    #[must_use]
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.into() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `apps/v1` or `v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        GroupVersion { group: self.group, version: self.version }.to_string()
    }
}

/// What a strategy may need besides the object. Lookups into other objects go through `admission` or `verbs`, not here.
pub struct Context<'a> {
    /// The request's time, one for everything in it.
    pub now: Timestamp,
    /// The subresource written through, or empty.
    pub subresource: &'a str,
    /// The cluster's own blocks of 127.0.0.0/8 (Services, pods): the only loopback addresses that endpoints may have.
    pub loopback: &'a [ipnet::Ipv4Net],
}

/// What a strategy may need to give an object what only the server can give.
pub struct Allocation<'a> {
    /// Chooses Services' addresses and ports.
    pub services: &'a allocate::Allocator,
    /// What is reserved.
    pub objects: &'a dyn Objects,
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

/// What is particular about a kind. Values are complete JSON objects with `apiVersion`, `kind` and `metadata`; generic
/// metadata (name, uid, timestamps, generation's counting, deletion fields, finalizers) is done in `verbs`, and
/// generic metadata validation (names, labels, annotations, owner references, finalizers) too: see each method.
pub trait Strategy: Send + Sync {
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

    /// Whether this change (after `prepare_update`) raises the generation: by default, any change of
    /// `spec` that means something (absent and empty are the same).
    fn generation_changes(&self, new: &Value, old: &Value) -> bool {
        !core::pods::update::same(read::get(new, "spec"), read::get(old, "spec"))
    }

    /// The rule for `metadata.name`.
    fn name_rule(&self) -> rules::NameRule {
        rules::NameRule::Subdomain
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
            let label = field::quoted(label);
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
    fn of_stored(&self, object: Value) -> Value {
        object
    }

    /// See [`of_stored`](Self::of_stored).
    fn to_stored(&self, object: Value) -> Value {
        object
    }
}

/// A strategy with no rule of its own.
struct Plain;

impl Strategy for Plain {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}

/// The `status` subresource that most kinds have.
const STATUS: Subresource = Subresource {
    name: "status",
    what: SubresourceKind::Status,
    body: None,
    verbs: &[Verb::Get, Verb::Patch, Verb::Update],
};

/// The `scale` subresource of workloads.
const SCALE: Subresource = Subresource {
    name: "scale",
    what: SubresourceKind::Scale,
    body: Some(("autoscaling", "v1", "Scale")),
    verbs: &[Verb::Get, Verb::Patch, Verb::Update],
};

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

/// Every row that is served, in discovery order.
pub static RESOURCES: &[&Row] = &[
    &core::bindings::ROW,
    &core::configmaps::ROW,
    &core::events::CORE,
    &core::namespaces::ROW,
    &core::nodes::ROW,
    &core::pods::ROW,
    &core::secrets::ROW,
    &core::serviceaccounts::ROW,
    &core::services::ROW,
    &apps::deployments::ROW,
    &apps::replicasets::ROW,
    &authorization::reviews::SELF_SUBJECT,
    &authorization::reviews::TOKEN,
    &authorization::reviews::LOCAL_ACCESS,
    &authorization::reviews::SELF_ACCESS,
    &authorization::reviews::SELF_RULES,
    &authorization::reviews::ACCESS,
    &batch::jobs::ROW,
    &coordination::leases::ROW,
    &discovery::endpointslices::ROW,
    &core::events::EVENTS,
    &node::runtimeclasses::ROW,
    &rbac::CLUSTER_ROLE_BINDINGS,
    &rbac::CLUSTER_ROLES,
    &rbac::ROLE_BINDINGS,
    &rbac::ROLES,
    &scheduling::priorityclasses::ROW,
];
