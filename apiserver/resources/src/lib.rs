//! THE TABLE: one row per kind; one file per kind (defaults, preparation, validation, columns, example).
//!
//! Everything else in this crate is generic over a [`Row`]: routes, discovery, OpenAPI, storage prefixes, subresources,
//! printer columns, defaulting, validation, and which verbs exist.

pub use admissionregistration::{checking, expressions};
pub use core::componentstatuses;
pub use core::services::allocate;
pub use policy::evictions;
mod admissionregistration;
pub mod apiextensions;
mod apiregistration;
mod apps;
mod authorization;
mod autoscaling;
mod batch;
pub mod cells;
mod certificates;
mod choices;
mod conditions;
mod coordination;
mod core;
pub mod default_objects;
mod discovery;
pub mod field;
mod flowcontrol;
mod go_structs;
mod info;
pub mod metadata;
mod networking;
mod node;
pub mod objects;
pub mod options;
mod policy;
pub mod query;
mod rbac;
pub mod read;
mod resource;
pub mod resource_type;
pub mod rules;
mod scheduling;
mod storage;
mod strategy;
mod webhook_client;

#[cfg(test)]
mod tests;

use std::time::Duration;

use machinery_api::GroupVersion;

pub use info::{ResourceInfo, SharedStrategy, served};
use strategy::Plain;
pub use strategy::{
    Allocation, Claim, Column, Context, MetadataChecks, Requester, ResetFields, Strategy, prepare_update_by_default,
};

/// The verbs of a resource or subresource, as in discovery.
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

/// The operation of a subresource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubresourceKind {
    /// `status`: get, update, patch of the same kind; only status (and fields that the strategy allows) is written.
    Status,
    /// `ephemeralcontainers` of a Pod: get, update, patch of the same kind; the strategy selects the written part.
    Part,
    /// `scale`: `autoscaling/v1 Scale` over replicas.
    Scale,
    /// `finalize` of a Namespace: update only, writes `spec.finalizers`.
    Finalize,
    /// `binding` of a Pod: create only, kind Binding.
    Binding,
    /// `eviction` of a Pod: create only, kind Eviction.
    Eviction,
    /// `log` of a Pod: streamed from the node.
    Log,
    /// `attach`, `exec`, `portforward` of a Pod: the connection is tunnelled to its node.
    Connect,
    /// `proxy` of a Pod, Service or Node: requests of any method and path below it are forwarded.
    Proxy(ProxyBackend),
    /// `token` of a ServiceAccount: create only, kind TokenRequest.
    Token,
    /// A metric of `custom.metrics.k8s.io`: get only.
    Metric,
}

impl SubresourceKind {
    /// Whether a request may last indefinitely.
    #[must_use]
    pub const fn is_long_running(self) -> bool {
        matches!(self, Self::Log | Self::Connect | Self::Proxy(_))
    }
}

/// One subresource of a row.
#[derive(Debug, Clone, Copy)]
pub struct Subresource {
    /// The path segment.
    pub name: &'static str,
    pub what: SubresourceKind,
    /// Group, version and kind of its body where it differs from the row's (`autoscaling`, `v1`, `Scale`).
    pub body: Option<(&'static str, &'static str, &'static str)>,
    /// The verbs in discovery.
    pub verbs: &'static [Verb],
}

/// The backend of a `proxy` subresource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyBackend {
    /// The pod, on one of its ports.
    Pod,
    /// One of the pods behind the Service.
    Service,
    /// The node's kubelet.
    Node,
}

/// The subresource `proxy`, whose options are a kind of `v1`.
pub(crate) const fn proxy(to: ProxyBackend, options: &'static str) -> Subresource {
    Subresource {
        name: "proxy",
        what: SubresourceKind::Proxy(to),
        body: Some(("", "v1", options)),
        verbs: &[Verb::Create, Verb::Delete, Verb::Get, Verb::Patch, Verb::Update],
    }
}

/// The storage of a row's objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Under `/registry/<prefix>/[namespace/]name`, as upstream (`pods`, `services/specs`, `minions` …).
    Stored(&'static str),
    /// Never stored: create computes an answer (access reviews, token reviews, `bindings`).
    Virtual,
}

/// A review, which a create evaluates without storing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Review {
    /// Authenticates a token.
    Token,
    /// Returns the requesting user.
    SelfSubject,
    /// Lists the rules of the requesting user.
    SelfRules,
    /// Authorizes a user.
    Access,
    /// Authorizes a user in one namespace.
    LocalAccess,
    /// Authorizes the requesting user.
    SelfAccess,
}

/// The deletion procedure of a row's objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// Immediate, after the grace period, or once finalizers are gone; dependents follow the client's policy.
    Plain,
    /// As `Plain`, without dependents: upstream has no garbage collection below these.
    WithoutDependents,
    /// A delete makes it Terminating; it is removed once `spec.finalizers` is empty, too (Namespaces).
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

/// One kind of the API.
pub struct Row {
    /// API group; empty for core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    pub kind: &'static str,
    /// The path segment.
    pub plural: &'static str,
    /// The singular name in discovery.
    pub singular: &'static str,
    /// The short names in discovery.
    pub short_names: &'static [&'static str],
    /// The categories in discovery.
    pub categories: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// The type's name in the schema table (`io.k8s.api.core.v1.Pod`).
    pub schema: &'static str,
    /// The supported verbs.
    pub verbs: &'static [Verb],
    /// Subresources in discovery order.
    pub subresources: &'static [Subresource],
    /// The storage of objects.
    pub storage: Storage,
    /// Whether this row's version is the stored one, if several rows share a storage (core and events.k8s.io Events).
    pub storage_version: bool,
    /// The kind of review that a create evaluates; `None`: no review.
    pub review: Option<Review>,
    /// Creates are forwarded to a subresource of another row's object, which the body names.
    pub forwards_to: Option<(&'static Row, SubresourceKind)>,
    /// Fields whose equality is indexed for lists and watches.
    pub indexed_fields: &'static [&'static str],
    /// Whether lists by label equality use an index.
    pub indexes_labels: bool,
    /// Whether errors show an empty list or map as given instead of as absent.
    pub shows_empty: bool,
    /// The deletion procedure of objects.
    pub deletion: Deletion,
    /// Time after which objects expire; `None`: never.
    pub ttl: Option<Duration>,
    /// Warning returned on every request, for a kind that upstream has deprecated.
    pub deprecated: Option<&'static str>,
    /// Warning returned on create or update while the kind has no controller or data plane.
    pub inert: Option<&'static str>,
    /// The kind's own behaviour.
    pub strategy: &'static dyn Strategy,
    /// A valid object, as YAML, for tests over the table. No namespace, no status.
    pub example: &'static str,
}

impl Row {
    /// A plain namespaced kind; rows override the differences.
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
        review: None,
        forwards_to: None,
        indexed_fields: &[],
        indexes_labels: false,
        shows_empty: false,
        deletion: Deletion::Plain,
        ttl: None,
        deprecated: None,
        inert: None,
        strategy: &Plain,
        example: "",
    };

    /// A plain cluster-scoped kind; rows override the differences.
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

/// All served rows, in discovery order.
pub static RESOURCES: &[&Row] = &[
    &core::bindings::ROW,
    &core::configmaps::ROW,
    &core::endpoints::ROW,
    &core::events::CORE,
    &core::limitranges::ROW,
    &core::namespaces::ROW,
    &core::nodes::ROW,
    &core::persistentvolumeclaims::ROW,
    &core::persistentvolumes::ROW,
    &core::pods::ROW,
    &core::podtemplates::ROW,
    &core::replicationcontrollers::ROW,
    &core::resourcequotas::ROW,
    &core::secrets::ROW,
    &core::serviceaccounts::ROW,
    &core::services::ROW,
    &apiregistration::apiservices::ROW,
    &admissionregistration::mutating::POLICY,
    &admissionregistration::mutating::BINDING,
    &admissionregistration::validating::POLICY,
    &admissionregistration::validating::BINDING,
    &admissionregistration::webhooks::MUTATING,
    &admissionregistration::webhooks::VALIDATING,
    &apiextensions::definitions::ROW,
    &apps::controllerrevisions::ROW,
    &apps::daemonsets::ROW,
    &apps::deployments::ROW,
    &apps::replicasets::ROW,
    &apps::statefulsets::ROW,
    &authorization::reviews::SELF_SUBJECT,
    &authorization::reviews::TOKEN,
    &authorization::reviews::LOCAL_ACCESS,
    &authorization::reviews::SELF_ACCESS,
    &authorization::reviews::SELF_RULES,
    &authorization::reviews::ACCESS,
    &autoscaling::horizontalpodautoscalers::V2,
    &autoscaling::horizontalpodautoscalers::V1,
    &batch::cronjobs::ROW,
    &batch::jobs::ROW,
    &certificates::requests::ROW,
    &coordination::leases::ROW,
    &discovery::endpointslices::ROW,
    &core::events::EVENTS,
    &flowcontrol::flowschemas::ROW,
    &flowcontrol::prioritylevelconfigurations::ROW,
    &networking::ingressclasses::ROW,
    &networking::ingresses::ROW,
    &networking::ipaddresses::ROW,
    &networking::networkpolicies::ROW,
    &networking::servicecidrs::ROW,
    &node::runtimeclasses::ROW,
    &policy::poddisruptionbudgets::ROW,
    &rbac::CLUSTER_ROLE_BINDINGS,
    &rbac::CLUSTER_ROLES,
    &rbac::ROLE_BINDINGS,
    &rbac::ROLES,
    &resource::deviceclasses::ROW,
    &resource::resourceclaims::ROW,
    &resource::resourceclaimtemplates::ROW,
    &resource::resourceslices::ROW,
    &scheduling::priorityclasses::ROW,
    &storage::csidrivers::ROW,
    &storage::csinodes::ROW,
    &storage::csistoragecapacities::ROW,
    &storage::storageclasses::ROW,
    &storage::volumeattachments::ROW,
    &storage::volumeattributesclasses::ROW,
];
