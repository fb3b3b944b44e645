//! A resource as it is served: made of a [`Row`] at a start, or of what somebody adds while the server runs. Owned and
//! shared, so that one that goes leaves nothing behind; nothing in it changes.

use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use machinery_api::features::Features;
use machinery_api::{GroupVersionKind, GroupVersionResource, ObjectName, StorageKey, StoragePrefix};

use crate::apiextensions::custom::CustomResource;
use crate::apiextensions::custom::Published;
use crate::objects::ObjectSource;
use crate::resource_type::ResourceType;
use crate::{Deletion, Review, Row, Storage, Strategy, Subresource, SubresourceKind, Verb};
use machinery_api::schema::{SharedType, Target, built_in};

/// One resource of the API in one version.
#[derive(Debug, Clone)]
pub struct ResourceInfo {
    /// API group; empty for core.
    pub group: Arc<str>,
    /// API version.
    pub version: Arc<str>,
    /// `apps/v1` or `v1`.
    pub api_version: Arc<str>,
    /// Kind.
    pub kind: Arc<str>,
    /// The path segment.
    pub plural: Arc<str>,
    /// As in discovery.
    pub singular: Arc<str>,
    /// As in discovery.
    pub short_names: Vec<Arc<str>>,
    /// As in discovery.
    pub categories: Vec<Arc<str>>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// The type of its objects, with all that it refers to.
    pub schema: ResourceType,
    /// The schema that it brings and is published with (with `x-kubernetes-selectable-fields`, where it has any); `None`: the
    /// type says it all.
    pub openapi: Option<Arc<Published>>,
    /// What can be asked.
    pub verbs: Vec<Verb>,
    /// In discovery order.
    pub subresources: Vec<Subresource>,
    /// Where objects live; `None`: they are never stored.
    pub prefix: Option<StoragePrefix>,
    /// Makes objects when they are asked for, of a resource that stores none.
    pub source: Option<Arc<dyn ObjectSource>>,
    /// The resource in whose version objects are stored, where that is another one.
    pub stored_as: Option<Arc<ResourceInfo>>,
    /// What a create on this collection asks; `None`: it is no question.
    pub review: Option<Review>,
    /// A create on this collection is one on a subresource of another resource's object, which the body names.
    pub stands_for: Option<(Arc<ResourceInfo>, SubresourceKind)>,
    /// Fields whose equality is indexed for lists and watches.
    pub indexed_fields: Arc<[Arc<str>]>,
    /// Whether lists by label equality use an index.
    pub indexes_labels: bool,
    /// Whether findings show a list or map that was given empty as such, not as absent.
    pub shows_empty: bool,
    /// How objects end.
    pub deletion: Deletion,
    /// For how long an object lives that nobody deletes; `None`: for ever.
    pub ttl: Option<Duration>,
    /// What a client is told who asks anything of it.
    pub deprecated: Option<Arc<str>>,
    /// What a client is told who makes or changes one, where nothing acts on the kind yet.
    pub inert: Option<Arc<str>>,
    /// What is particular about the kind.
    pub strategy: SharedStrategy,
    /// Of a resource that a CustomResourceDefinition defines: its definition.
    pub custom: Option<Arc<CustomResource>>,
}

/// A strategy: a built-in kind's, or one that came with its resource.
#[derive(Clone)]
pub enum SharedStrategy {
    /// Of a built-in kind.
    Static(&'static dyn Strategy),
    /// Of one that may go.
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
    /// Of a built-in row by default feature gates, without what it shares with others.
    #[must_use]
    pub fn of(row: &Row) -> Self {
        Self::under(row, &Features::default())
    }

    /// Of a built-in row under feature gates, without what it shares with others.
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
            stands_for: None,
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

    /// Names the resource.
    #[must_use]
    pub fn gvr(&self) -> GroupVersionResource<'_> {
        GroupVersionResource { group: &self.group, version: &self.version, resource: &self.plural }
    }

    /// Names the kind.
    #[must_use]
    pub fn gvk(&self) -> GroupVersionKind<'_> {
        GroupVersionKind { group: &self.group, version: &self.version, kind: &self.kind }
    }

    /// `deployments.apps` or `pods`.
    #[must_use]
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_string() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Whether what is read from the cache is shown as it is: custom resources are brought into their version before.
    #[must_use]
    pub fn shows_stored(&self) -> bool {
        self.stored_as.is_none() || self.custom.is_some()
    }

    /// The kind of lists.
    #[must_use]
    pub fn list_kind(&self) -> String {
        self.custom.as_ref().map_or_else(|| format!("{}List", self.kind), |custom| custom.list_kind.to_string())
    }

    /// The resource in whose version objects are stored.
    #[must_use]
    pub fn stored(&self) -> &Self {
        self.stored_as.as_deref().unwrap_or(self)
    }

    /// Whether objects are stored in this version.
    #[must_use]
    pub fn is_storage_version(&self) -> bool {
        self.prefix.is_some() && self.stored_as.is_none()
    }

    /// Where an object is stored; `None`: nowhere.
    #[must_use]
    pub fn key(&self, object: ObjectName<'_>) -> Option<StorageKey> {
        self.prefix.as_ref().map(|prefix| prefix.object(object))
    }

    /// What bodies about it hold; `types`: its own, held.
    #[must_use]
    pub fn target<'a>(&'a self, types: &'a SharedType) -> Target<'a> {
        let GroupVersionKind { group, version, kind } = self.gvk();
        Target { group, version, kind, schema: types.get() }
    }
}

/// The rows of a table as they are served under feature gates, in its order, with what they share resolved.
#[must_use]
pub fn served(table: &[&Row], features: &Features) -> Vec<Arc<ResourceInfo>> {
    let find = |wanted: &Row| table.iter().position(|row| std::ptr::eq(*row, wanted));
    let mut made: HashMap<usize, Arc<ResourceInfo>> = HashMap::new();
    // Those that others refer to first: they refer to nobody.
    let refers = |row: &Row| (!row.storage_version, row.stands_for.is_some());
    let mut order: Vec<usize> = (0..table.len()).collect();
    order.sort_by_key(|at| refers(table[*at]));
    for at in order {
        let row = table[at];
        let mut info = ResourceInfo::under(row, features);
        if !row.storage_version && row.storage != Storage::Virtual {
            let stored = |other: &&Row| other.storage == row.storage && other.storage_version;
            info.stored_as = table.iter().position(stored).and_then(|at| made.get(&at).cloned());
        }
        if let Some((other, what)) = row.stands_for {
            info.stands_for = find(other).and_then(|at| Some((made.get(&at)?.clone(), what)));
        }
        made.insert(at, Arc::new(info));
    }
    (0..table.len()).filter_map(|at| made.remove(&at)).collect()
}
