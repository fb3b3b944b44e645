//! A served resource, built from a [`Row`] at startup or from a CustomResourceDefinition at runtime. Immutable and
//! reference-counted, so that a removed resource is freed.

use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use machinery_api::features::Features;
use machinery_api::{GroupVersionKind, GroupVersionResource, ObjectName, StorageKey, StoragePrefix};

use crate::apiextensions::custom::CustomResource;
use crate::apiextensions::custom::PublishedSchema;
use crate::objects::ObjectSource;
use crate::resource_type::ResourceType;
use crate::{Deletion, Review, Row, Storage, Strategy, Subresource, SubresourceKind, Verb};
use apiserver_schema::{SharedType, Target, built_in};

/// One resource of the API in one version.
#[derive(Debug, Clone)]
pub struct ResourceInfo {
    /// API group; empty for core.
    pub group: Arc<str>,
    /// API version.
    pub version: Arc<str>,
    /// `apps/v1` or `v1`.
    pub api_version: Arc<str>,
    pub kind: Arc<str>,
    /// The path segment.
    pub plural: Arc<str>,
    /// The singular name in discovery.
    pub singular: Arc<str>,
    /// The short names in discovery.
    pub short_names: Vec<Arc<str>>,
    /// The categories in discovery.
    pub categories: Vec<Arc<str>>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// The type of its objects, with all types that it refers to.
    pub schema: ResourceType,
    /// The schema of a custom resource, as published (with `x-kubernetes-selectable-fields` if it has any). `None`:
    /// [`schema`](Self::schema) is published.
    pub openapi: Option<Arc<PublishedSchema>>,
    /// The supported verbs.
    pub verbs: Vec<Verb>,
    /// In discovery order.
    pub subresources: Vec<Subresource>,
    /// The storage prefix; `None`: objects are never stored.
    pub prefix: Option<StoragePrefix>,
    /// Computes the objects of a resource that stores none.
    pub source: Option<Arc<dyn ObjectSource>>,
    /// The resource of the storage version, if that is another one.
    pub stored_as: Option<Arc<ResourceInfo>>,
    /// The kind of review that a create evaluates; `None`: no review.
    pub review: Option<Review>,
    /// Creates are forwarded to a subresource of another resource's object, which the body names.
    pub forwards_to: Option<(Arc<ResourceInfo>, SubresourceKind)>,
    /// Fields whose equality is indexed for lists and watches.
    pub indexed_fields: Arc<[Arc<str>]>,
    /// Whether lists by label equality use an index.
    pub indexes_labels: bool,
    /// Whether errors show an empty list or map as given instead of as absent.
    pub shows_empty: bool,
    /// The deletion procedure of objects.
    pub deletion: Deletion,
    /// Time after which objects expire; `None`: never.
    pub ttl: Option<Duration>,
    /// Warning returned on every request, for a deprecated resource.
    pub deprecated: Option<Arc<str>>,
    /// Warning returned on create or update while the kind has no controller.
    pub inert: Option<Arc<str>>,
    /// The kind's own behaviour.
    pub strategy: SharedStrategy,
    /// The definition of a custom resource.
    pub custom: Option<Arc<CustomResource>>,
}

/// A strategy, either static or owned by its resource.
#[derive(Clone)]
pub enum SharedStrategy {
    /// Of a built-in kind.
    Static(&'static dyn Strategy),
    /// Of a custom resource, freed with it.
    Owned(Arc<dyn Strategy>),
}

impl Deref for SharedStrategy {
    type Target = dyn Strategy;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Static(strategy) => *strategy,
            Self::Owned(strategy) => &**strategy,
        }
    }
}

impl fmt::Debug for SharedStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Strategy")
    }
}

impl ResourceInfo {
    /// From a built-in row under the default feature gates, without references to other resources.
    #[must_use]
    pub fn of(row: &Row) -> Self {
        Self::under(row, &Features::default())
    }

    /// From a built-in row under feature gates, without references to other resources.
    #[must_use]
    pub fn under(row: &Row, features: &Features) -> Self {
        let texts = |list: &[&str]| list.iter().map(|text| Arc::from(*text)).collect();
        Self {
            group: row.group.into(),
            version: row.version.into(),
            api_version: row.api_version().into(),
            kind: row.kind.into(),
            plural: row.plural.into(),
            singular: row.singular.into(),
            short_names: texts(row.short_names),
            categories: texts(row.categories),
            namespaced: row.namespaced,
            schema: SharedType::named(built_in(), row.schema).expect("a row names a type of the table").into(),
            openapi: None,
            verbs: row.verbs.to_vec(),
            subresources: row.subresources.to_vec(),
            prefix: row.storage.prefix().map(StoragePrefix::new),
            source: None,
            stored_as: None,
            review: row.review,
            forwards_to: None,
            indexed_fields: row.indexed_fields.iter().map(|field| Arc::from(*field)).collect(),
            indexes_labels: row.indexes_labels,
            shows_empty: row.shows_empty,
            deletion: row.deletion,
            ttl: row.ttl,
            deprecated: row.deprecated.map(Arc::from),
            inert: row.inert.map(Arc::from),
            strategy: SharedStrategy::Static(row.strategy.under(features).unwrap_or(row.strategy)),
            custom: None,
        }
    }

    #[must_use]
    pub fn gvr(&self) -> GroupVersionResource<'_> {
        GroupVersionResource { group: &self.group, version: &self.version, resource: &self.plural }
    }

    #[must_use]
    pub fn gvk(&self) -> GroupVersionKind<'_> {
        GroupVersionKind { group: &self.group, version: &self.version, kind: &self.kind }
    }

    /// `deployments.apps` or `pods`.
    #[must_use]
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_string() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Whether cached objects are served as they are: those of custom resources are already converted.
    #[must_use]
    pub fn serves_cached_form(&self) -> bool {
        self.stored_as.is_none() || self.custom.is_some()
    }

    /// The kind of lists.
    #[must_use]
    pub fn list_kind(&self) -> String {
        self.custom.as_ref().map_or_else(|| format!("{}List", self.kind), |custom| custom.list_kind.to_string())
    }

    /// The resource of the storage version.
    #[must_use]
    pub fn stored(&self) -> &Self {
        self.stored_as.as_deref().unwrap_or(self)
    }

    /// Whether objects are stored in this version.
    #[must_use]
    pub fn is_storage_version(&self) -> bool {
        self.prefix.is_some() && self.stored_as.is_none()
    }

    /// The storage key of an object; `None` if objects aren't stored.
    #[must_use]
    pub fn key(&self, object: ObjectName<'_>) -> Option<StorageKey> {
        self.prefix.as_ref().map(|prefix| prefix.object(object))
    }

    /// The decoding target of bodies; `types` is the resource's held type.
    #[must_use]
    pub fn target<'a>(&'a self, types: &'a SharedType) -> Target<'a> {
        let GroupVersionKind { group, version, kind } = self.gvk();
        Target { group, version, kind, schema: types.get() }
    }
}

/// The rows of a table under feature gates, in the same order, with references between resources resolved.
#[must_use]
pub fn served(table: &[&Row], features: &Features) -> Vec<Arc<ResourceInfo>> {
    let find = |wanted: &Row| table.iter().position(|row| std::ptr::eq(*row, wanted));
    let mut made: HashMap<usize, Arc<ResourceInfo>> = HashMap::new();
    // Referenced resources come first, since they refer to no others.
    let refers = |row: &Row| (!row.storage_version, row.forwards_to.is_some());
    let mut order: Vec<usize> = (0..table.len()).collect();
    order.sort_by_key(|at| refers(table[*at]));
    for at in order {
        let row = table[at];
        let mut info = ResourceInfo::under(row, features);
        if !row.storage_version && row.storage != Storage::Virtual {
            let stored = |other: &&Row| other.storage == row.storage && other.storage_version;
            info.stored_as = table.iter().position(stored).and_then(|at| made.get(&at).cloned());
        }
        if let Some((other, what)) = row.forwards_to {
            info.forwards_to = find(other).and_then(|at| Some((made.get(&at)?.clone(), what)));
        }
        made.insert(at, Arc::new(info));
    }
    (0..table.len()).filter_map(|at| made.remove(&at)).collect()
}
