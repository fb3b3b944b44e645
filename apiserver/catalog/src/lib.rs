//! All served resources as one immutable value. A request loads the catalog once and sees one state of the API from
//! routing to response. Changes replace it as a whole; discovery and OpenAPI are derived on first use.
//!
//! Absent on purpose: stored objects, requests, tokio, a clock.
#![warn(missing_docs)]

mod custom;
mod declared;
mod descriptions;
pub mod discovery;
mod discovery_protobuf;
mod gnostic;
mod gnostic_v3;
mod message;
pub mod openapi;
pub mod openapi_v2;
mod operations;
pub mod order;
mod roots;
mod schemas;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use bytes::Bytes;
use machinery_api::features::Features;
use machinery_api::{GroupVersionResource, StorageKey, StoragePrefix};

use apiserver_resources::ResourceInfo;
use apiserver_resources::apiextensions::custom::{VersionOrder, version_order};
use discovery::Discovery;

/// The set of served resources.
pub struct Catalog {
    /// In discovery order.
    resources: Vec<Arc<ResourceInfo>>,
    /// Sorted by group, version and plural.
    by_name: Vec<Arc<ResourceInfo>>,
    /// One resource per group and plural: the storage version if it is served.
    by_group: HashMap<Arc<str>, HashMap<Arc<str>, Arc<ResourceInfo>>>,
    /// Stored resources by key prefix.
    by_prefix: HashMap<StoragePrefix, Arc<ResourceInfo>>,
    /// The server's address for clients (`host:port`).
    address: Arc<str>,
    discovery: OnceLock<Discovery>,
    /// The hash of OpenAPI v2, and the gzipped document as JSON and as protobuf.
    openapi_hash: OnceLock<String>,
    openapi: [OnceLock<Bytes>; 2],
}

/// Why a resource cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResourceConflict {
    /// Another resource has the name.
    #[error("{0} is already served")]
    Name(String),
    /// Another resource has the key prefix.
    #[error("the key prefix is used by {0}")]
    Prefix(String),
}

impl Catalog {
    /// Builds a catalog from resources in discovery order. Of two with one name or prefix the first wins.
    #[must_use]
    pub fn new(resources: Vec<Arc<ResourceInfo>>, address: &str) -> Self {
        let mut by_name = resources.clone();
        by_name.sort_by(|a, b| a.gvr().cmp(&b.gvr()));
        by_name.dedup_by(|later, first| later.gvr() == first.gvr());
        let mut by_group = HashMap::<Arc<str>, HashMap<Arc<str>, Arc<ResourceInfo>>>::new();
        for resource in &by_name {
            let of_group = by_group.entry(resource.group.clone()).or_default();
            let one = of_group.entry(resource.plural.clone()).or_insert_with(|| resource.clone());
            if resource.is_storage_version() && !one.is_storage_version() {
                *one = resource.clone();
            }
        }
        let mut by_prefix = HashMap::new();
        for resource in resources.iter().filter(|resource| resource.is_storage_version()) {
            if let Some(prefix) = &resource.prefix {
                by_prefix.entry(prefix.clone()).or_insert_with(|| resource.clone());
            }
        }
        Self {
            resources,
            by_name,
            by_group,
            by_prefix,
            address: address.into(),
            discovery: OnceLock::new(),
            openapi_hash: OnceLock::new(),
            openapi: Default::default(),
        }
    }

    /// The built-in kinds with default feature gates.
    #[must_use]
    pub fn built_in(address: &str) -> Self {
        Self::with_features(&Features::default(), address)
    }

    /// The built-in kinds with these feature gates.
    #[must_use]
    pub fn with_features(features: &Features, address: &str) -> Self {
        Self::new(apiserver_resources::served(apiserver_resources::RESOURCES, features), address)
    }

    /// All resources in discovery order.
    #[must_use]
    #[inline]
    pub fn resources(&self) -> &[Arc<ResourceInfo>] {
        &self.resources
    }

    /// Finds a resource by group, version and plural.
    #[must_use]
    #[inline]
    pub fn get(&self, name: GroupVersionResource<'_>) -> Option<&Arc<ResourceInfo>> {
        let at = self.by_name.binary_search_by(|resource| resource.gvr().cmp(&name)).ok()?;
        self.by_name.get(at)
    }

    #[inline]
    fn any_version(&self, group: &str, plural: &str) -> Option<&Arc<ResourceInfo>> {
        self.by_group.get(group)?.get(plural)
    }

    /// The storage version of a group's resource.
    #[must_use]
    #[inline]
    pub fn stored(&self, group: &str, plural: &str) -> Option<&Arc<ResourceInfo>> {
        self.any_version(group, plural).filter(|resource| resource.is_storage_version())
    }

    /// The key prefix of a resource, whichever version is served.
    #[must_use]
    #[inline]
    pub fn prefix(&self, group: &str, plural: &str) -> Option<StoragePrefix> {
        self.any_version(group, plural)?.prefix.clone()
    }

    /// The resource that a stored key belongs to.
    #[must_use]
    pub fn of_key(&self, key: &str) -> Option<&Arc<ResourceInfo>> {
        StorageKey::prefixes(key).find_map(|prefix| self.by_prefix.get(prefix))
    }

    /// All resources that are storage versions.
    pub fn all_stored(&self) -> impl Iterator<Item = &Arc<ResourceInfo>> {
        self.resources.iter().filter(|resource| resource.is_storage_version())
    }

    /// The discovery documents.
    #[must_use]
    pub fn discovery(&self) -> &Discovery {
        self.discovery.get_or_init(|| Discovery::new(&self.resources, &self.address))
    }

    /// The hash of OpenAPI v2.
    #[must_use]
    pub fn openapi_hash(&self) -> &str {
        self.openapi_hash.get_or_init(|| openapi::hash_of_all(self))
    }

    /// OpenAPI v2, gzipped. The first call takes tens of milliseconds, so it must not run on a thread that other work
    /// waits for.
    #[must_use]
    pub fn openapi(&self, encoding: openapi_v2::Encoding) -> &Bytes {
        // Writes to memory cannot fail.
        self.openapi[encoding as usize].get_or_init(|| openapi_v2::build_gzipped(self, encoding).unwrap_or_default())
    }

    /// Whether a group is served; false for core.
    #[must_use]
    pub fn has_group(&self, group: &str) -> bool {
        !group.is_empty() && self.by_name.binary_search_by(|resource| (*resource.group).cmp(group)).is_ok()
    }

    /// Whether the group is served and has only custom resources.
    #[must_use]
    pub fn is_custom(&self, group: &str) -> bool {
        let from = self.by_name.partition_point(|resource| &*resource.group < group);
        let mut of_group = self.by_name[from..].iter().take_while(|resource| &*resource.group == group).peekable();
        of_group.peek().is_some() && of_group.all(|resource| resource.custom.is_some())
    }

    /// Whether a version of a group is served.
    #[must_use]
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        let of = |resource: &Arc<ResourceInfo>| (&*resource.group, &*resource.version).cmp(&(group, version));
        self.by_name.binary_search_by(of).is_ok()
    }

    /// Checks that no other resource has the name or key prefix.
    ///
    /// # Errors
    /// Another resource has one of them.
    pub fn check_free(&self, resource: &ResourceInfo) -> Result<(), ResourceConflict> {
        if self.get(resource.gvr()).is_some() {
            return Err(ResourceConflict::Name(resource.qualified()));
        }
        if resource.is_storage_version()
            && let Some(other) = resource.prefix.as_ref().and_then(|prefix| self.by_prefix.get(prefix))
        {
            return Err(ResourceConflict::Prefix(other.qualified()));
        }
        Ok(())
    }

    fn with_added(&self, resource: Arc<ResourceInfo>) -> Result<Self, ResourceConflict> {
        self.check_free(&resource)?;
        let mut resources = self.resources.clone();
        resources.push(resource);
        Ok(Self::new(resources, &self.address))
    }

    /// Removes resources and adds others. Custom resources come after the built-in ones, by group, version and name.
    fn with_replaced(
        &self,
        removed: &[Arc<ResourceInfo>],
        added: &[Arc<ResourceInfo>],
    ) -> Result<Self, ResourceConflict> {
        let is_kept = |resource: &&Arc<ResourceInfo>| !removed.iter().any(|removed| removed.gvr() == resource.gvr());
        let mut resources: Vec<_> = self.resources.iter().filter(is_kept).cloned().collect();
        for new in added {
            let same = |other: &Arc<ResourceInfo>| {
                let keys = new.is_storage_version() && other.is_storage_version() && other.prefix == new.prefix;
                keys || other.gvr() == new.gvr()
            };
            if let Some(other) = resources.iter().find(|other| same(other)) {
                return Err(ResourceConflict::Name(other.qualified()));
            }
            resources.push(new.clone());
        }
        resources.sort_by(|a, b| custom_sort_key(a).cmp(&custom_sort_key(b)));
        Ok(Self::new(resources, &self.address))
    }

    fn with_removed(&self, name: GroupVersionResource<'_>) -> Option<(Self, Arc<ResourceInfo>)> {
        let removed = self.get(name)?.clone();
        let remaining = self.resources.iter().filter(|resource| resource.gvr() != name).cloned().collect();
        Some((Self::new(remaining, &self.address), removed))
    }
}

/// The sort key of custom resources. Built-in ones have none, come first, and keep their order.
fn custom_sort_key(resource: &ResourceInfo) -> Option<(&str, VersionOrder<'_>, &str)> {
    resource.custom.is_some().then(|| (&*resource.group, version_order(&resource.version), &*resource.plural))
}

/// The current catalog, replaced atomically.
pub struct SharedCatalog {
    now: ArcSwap<Catalog>,
}

impl SharedCatalog {
    /// Starts with a catalog.
    #[must_use]
    pub fn new(catalog: Catalog) -> Self {
        Self { now: ArcSwap::from_pointee(catalog) }
    }

    /// The current catalog.
    #[must_use]
    #[inline]
    pub fn load(&self) -> Arc<Catalog> {
        self.now.load_full()
    }

    /// Runs a function on the current catalog without cloning the `Arc`.
    pub fn with<T>(&self, read: impl FnOnce(&Catalog) -> T) -> T {
        read(&self.now.load())
    }

    /// Adds a resource. The caller registers it with the watch cache before, and serializes calls that change the
    /// catalog.
    ///
    /// # Errors
    /// Another resource has the name or key prefix; the catalog is unchanged.
    pub fn add(&self, resource: Arc<ResourceInfo>) -> Result<(), ResourceConflict> {
        self.now.store(Arc::new(self.load().with_added(resource)?));
        Ok(())
    }

    /// Replaces resources atomically.
    ///
    /// # Errors
    /// Another resource has the name or key prefix of an added one; the catalog is unchanged.
    pub fn replace(&self, removed: &[Arc<ResourceInfo>], added: &[Arc<ResourceInfo>]) -> Result<(), ResourceConflict> {
        self.now.store(Arc::new(self.load().with_replaced(removed, added)?));
        Ok(())
    }

    /// Removes a resource; `None` if it is not served.
    pub fn remove(&self, name: GroupVersionResource<'_>) -> Option<Arc<ResourceInfo>> {
        let (remaining, removed) = self.load().with_removed(name)?;
        self.now.store(Arc::new(remaining));
        Some(removed)
    }
}
