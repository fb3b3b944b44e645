//! What is served, as one immutable value: a request loads it once and sees one state of the API from its route to its answer.
//! Resources come and go by exchanging it whole; discovery and OpenAPI are derived from it when they are first asked for.

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
pub(crate) mod tests;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use bytes::Bytes;
use machinery_api::features::Features;
use machinery_api::{GroupVersionResource, StorageKey, StoragePrefix};

use apiserver_resources::ResourceInfo;
use apiserver_resources::apiextensions::custom::{VersionOrder, version_order};
use discovery::Discovery;

/// Everything that is served.
pub struct Catalog {
    /// In discovery order.
    resources: Vec<Arc<ResourceInfo>>,
    /// The same by group, version and plural.
    by_name: Vec<Arc<ResourceInfo>>,
    /// One of each group and plural: the version that its objects are stored in, where one of these is.
    by_group: HashMap<Arc<str>, HashMap<Arc<str>, Arc<ResourceInfo>>>,
    /// What is stored, by what its keys begin with.
    by_prefix: HashMap<StoragePrefix, Arc<ResourceInfo>>,
    /// Where clients reach the server (`host:port`).
    address: Arc<str>,
    discovery: OnceLock<Discovery>,
    /// OpenAPI v2's hash, and the document packed: as JSON, as protobuf.
    openapi_hash: OnceLock<String>,
    openapi: [OnceLock<Bytes>; 2],
}

/// Why a resource can't be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Taken {
    /// Another one has its name.
    #[error("{0} is served already")]
    Name(String),
    /// Another one has its keys.
    #[error("{0} are stored there already")]
    Prefix(String),
}

impl Catalog {
    /// Of resources in discovery order; of two with one name or storage the first counts.
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

    /// The built-in kinds by default feature gates.
    #[must_use]
    pub fn built_in(address: &str) -> Self {
        Self::under(&Features::default(), address)
    }

    /// The built-in kinds under feature gates.
    #[must_use]
    pub fn under(features: &Features, address: &str) -> Self {
        Self::new(apiserver_resources::served(apiserver_resources::RESOURCES, features), address)
    }

    /// Everything, in discovery order.
    #[must_use]
    pub fn resources(&self) -> &[Arc<ResourceInfo>] {
        &self.resources
    }

    /// One resource.
    #[must_use]
    pub fn get(&self, name: GroupVersionResource<'_>) -> Option<&Arc<ResourceInfo>> {
        let at = self.by_name.binary_search_by(|resource| resource.gvr().cmp(&name)).ok()?;
        self.by_name.get(at)
    }

    fn any_version(&self, group: &str, plural: &str) -> Option<&Arc<ResourceInfo>> {
        self.by_group.get(group)?.get(plural)
    }

    /// The resource of a group that its objects are stored as, whichever version that is.
    #[must_use]
    pub fn stored(&self, group: &str, plural: &str) -> Option<&Arc<ResourceInfo>> {
        self.any_version(group, plural).filter(|resource| resource.is_storage_version())
    }

    /// Where a resource's objects are stored, whichever version serves them.
    #[must_use]
    pub fn prefix(&self, group: &str, plural: &str) -> Option<StoragePrefix> {
        self.any_version(group, plural)?.prefix.clone()
    }

    /// The resource that a stored key belongs to.
    #[must_use]
    pub fn of_key(&self, key: &str) -> Option<&Arc<ResourceInfo>> {
        StorageKey::prefixes(key).find_map(|prefix| self.by_prefix.get(prefix))
    }

    /// All that is stored.
    pub fn all_stored(&self) -> impl Iterator<Item = &Arc<ResourceInfo>> {
        self.resources.iter().filter(|resource| resource.is_storage_version())
    }

    /// What discovery says.
    #[must_use]
    pub fn discovery(&self) -> &Discovery {
        self.discovery.get_or_init(|| Discovery::new(&self.resources, &self.address))
    }

    /// The hash of OpenAPI v2.
    #[must_use]
    pub fn openapi_hash(&self) -> &str {
        self.openapi_hash.get_or_init(|| openapi::hash_of_all(self))
    }

    /// OpenAPI v2, packed by gzip. Who asks first waits for tens of milliseconds: not for a thread that others wait for.
    #[must_use]
    pub fn openapi(&self, encoding: openapi_v2::Encoding) -> &Bytes {
        // Writing into memory cannot fail.
        self.openapi[encoding as usize].get_or_init(|| openapi_v2::packed(self, encoding).unwrap_or_default())
    }

    /// Whether a group is served; core is none.
    #[must_use]
    pub fn has_group(&self, group: &str) -> bool {
        !group.is_empty() && self.by_name.binary_search_by(|resource| (*resource.group).cmp(group)).is_ok()
    }

    /// Whether all resources of a group come of definitions.
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

    /// Whether a resource's name and keys are nobody else's.
    pub fn check_free(&self, resource: &ResourceInfo) -> Result<(), Taken> {
        if self.get(resource.gvr()).is_some() {
            return Err(Taken::Name(resource.qualified()));
        }
        if resource.is_storage_version()
            && let Some(other) = resource.prefix.as_ref().and_then(|prefix| self.by_prefix.get(prefix))
        {
            return Err(Taken::Prefix(other.qualified()));
        }
        Ok(())
    }

    fn with(&self, resource: Arc<ResourceInfo>) -> Result<Self, Taken> {
        self.check_free(&resource)?;
        let mut resources = self.resources.clone();
        resources.push(resource);
        Ok(Self::new(resources, &self.address))
    }

    /// Without some resources, and with others: customs come after the built-in ones, by group, version and name.
    fn exchanged(&self, gone: &[Arc<ResourceInfo>], come: &[Arc<ResourceInfo>]) -> Result<Self, Taken> {
        let stays = |resource: &&Arc<ResourceInfo>| !gone.iter().any(|gone| gone.gvr() == resource.gvr());
        let mut resources: Vec<_> = self.resources.iter().filter(stays).cloned().collect();
        for new in come {
            let same = |other: &Arc<ResourceInfo>| {
                let keys = new.is_storage_version() && other.is_storage_version() && other.prefix == new.prefix;
                keys || other.gvr() == new.gvr()
            };
            if let Some(other) = resources.iter().find(|other| same(other)) {
                return Err(Taken::Name(other.qualified()));
            }
            resources.push(new.clone());
        }
        resources.sort_by(|a, b| custom_place(a).cmp(&custom_place(b)));
        Ok(Self::new(resources, &self.address))
    }

    fn without(&self, name: GroupVersionResource<'_>) -> Option<(Self, Arc<ResourceInfo>)> {
        let gone = self.get(name)?.clone();
        let left = self.resources.iter().filter(|resource| resource.gvr() != name).cloned().collect();
        Some((Self::new(left, &self.address), gone))
    }
}

/// Where a custom resource stands among its like; built-in ones, which have no place, come first and keep their order.
fn custom_place(resource: &ResourceInfo) -> Option<(&str, VersionOrder<'_>, &str)> {
    resource.custom.is_some().then(|| (&*resource.group, version_order(&resource.version), &*resource.plural))
}

/// The catalog of now.
pub struct Served {
    now: ArcSwap<Catalog>,
}

impl Served {
    /// Begins with a catalog.
    #[must_use]
    pub fn new(catalog: Catalog) -> Self {
        Self { now: ArcSwap::from_pointee(catalog) }
    }

    /// What is served now.
    #[must_use]
    pub fn load(&self) -> Arc<Catalog> {
        self.now.load_full()
    }

    /// Looks at what is served now, without holding it.
    pub fn with<T>(&self, look: impl FnOnce(&Catalog) -> T) -> T {
        look(&self.now.load())
    }

    /// Serves one more resource; whoever calls it sees to it that it is in the watch cache before, and that one call at a time
    /// changes what is served.
    pub(crate) fn add(&self, resource: Arc<ResourceInfo>) -> Result<(), Taken> {
        self.now.store(Arc::new(self.load().with(resource)?));
        Ok(())
    }

    /// Serves some resources no more, and others instead, at once.
    pub(crate) fn exchange(&self, gone: &[Arc<ResourceInfo>], come: &[Arc<ResourceInfo>]) -> Result<(), Taken> {
        self.now.store(Arc::new(self.load().exchanged(gone, come)?));
        Ok(())
    }

    /// Serves a resource no more; `None`: it was not there.
    pub(crate) fn remove(&self, name: GroupVersionResource<'_>) -> Option<Arc<ResourceInfo>> {
        let (left, gone) = self.load().without(name)?;
        self.now.store(Arc::new(left));
        Some(gone)
    }
}
