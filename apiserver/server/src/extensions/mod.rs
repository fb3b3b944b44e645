//! Keeps what is served in step with CustomResourceDefinitions, and their status with what is served.
//!
//! A definition's event is handled in this process as soon as it is in the watch cache: its names are judged, its versions
//! are compiled and served, and then its status says so; whoever reads `Established` can use it. One that is deleted loses
//! its instances first (`finalize`). What is decided is in `apiserver_resources`.

mod finalize;
mod names;
mod register;

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use apiserver_resources::ResourceInfo;
use apiserver_resources::apiextensions::compiled::Compilations;
use apiserver_resources::apiextensions::{conditions, custom};
use apiserver_storage::cache::{Cached, Selectors};
use futures::FutureExt as _;
use machinery_api::{ApiError, GroupVersionResource};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::admission::Options;
use crate::auth::{MASTERS, UserInfo};
use crate::http::handle::RequestHandler;
use crate::registry::{Elsewhere, Registry, RequestScope, cached, object};
use crate::request::options::WriteOptions;

pub(crate) const GROUP: &str = "apiextensions.k8s.io";
pub(crate) const PLURAL: &str = "customresourcedefinitions";
/// After a failure everything is looked at again.
const AGAIN: Duration = Duration::from_secs(1);
/// What was made of a schema and is not used for so long, or up to twice that, goes.
const REST: Duration = Duration::from_mins(5);

/// A definition that is served.
struct Known {
    /// Stands for all that its resources are made of.
    tag: [u8; 32],
    uid: String,
    resources: Vec<Arc<ResourceInfo>>,
    /// The version that is stored, also where it isn't served.
    stored: Arc<ResourceInfo>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Extensions {
    known: Mutex<HashMap<String, Known>>,
    finalizing: Mutex<HashSet<String>>,
    /// What those are called that there are.
    names: Mutex<names::Names>,
    /// Whether what is served has its APIServices.
    is_registered: AtomicBool,
    /// Of which groups and versions there are APIServices.
    registered: Mutex<Option<register::Served>>,
    /// One change of what is served at a time.
    changing: tokio::sync::Mutex<()>,
    /// What is made of their schemas.
    compilations: Arc<Compilations>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text<'a>(definition: &'a Value, pointer: &str) -> &'a str {
    definition.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Stands for what a definition's resources are made of.
fn tag(definition: &Value) -> [u8; 32] {
    let terminating = conditions::is_true(definition, conditions::TERMINATING);
    Sha256::digest(format!("{}\n{}\n{terminating}", definition["spec"], definition["status"]["acceptedNames"])).into()
}

impl Extensions {
    /// All definitions, and the revision that they are of.
    fn all(registry: &Registry) -> (Vec<Arc<Cached>>, u64) {
        let Some(prefix) = registry.served.with(|catalog| catalog.prefix(GROUP, PLURAL)) else {
            return (Vec::new(), registry.cache.revision());
        };
        let page = registry.cache.list(prefix.all().as_str(), None, None, 0, &Selectors::default());
        page.map_or_else(|_| (Vec::new(), registry.cache.revision()), |page| (page.items, page.revision))
    }

    /// Serves what was established before the server started.
    pub(crate) async fn load(&self, registry: &Registry) {
        for cached in Self::all(registry).0 {
            let definition = cached.shared();
            if conditions::is_true(&definition, conditions::ESTABLISHED) {
                self.serve(registry, &definition).await;
            }
        }
    }

    /// Follows definitions until the server stops.
    pub(crate) async fn follow(self: Arc<Self>, front: Weak<RequestHandler>) {
        let mut rest = tokio::time::interval(REST);
        loop {
            let Some(handler) = front.upgrade() else { return };
            let stop = handler.stop.clone();
            let registry = &handler.deps.registry;
            let (items, revision) = Self::all(registry);
            let names: HashSet<String> = items.iter().map(|cached| cached.name().to_owned()).collect();
            let gone: Vec<String> = locked(&self.known).keys().filter(|name| !names.contains(*name)).cloned().collect();
            *locked(&self.names) = names::Names::default();
            items.iter().for_each(|cached| locked(&self.names).put(&cached.shared()));
            for name in names.iter().chain(&gone) {
                self.sync_caught(&handler, name).await;
            }
            let Some(prefix) = registry.served.with(|catalog| catalog.prefix(GROUP, PLURAL)) else { return };
            let watch = registry.cache.watch(prefix.all().as_str(), Some(revision), Selectors::default());
            drop(handler);
            let Ok(mut watch) = watch else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            loop {
                let seen = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    seen = watch.recv() => seen,
                    _ = rest.tick() => {
                        self.compilations.rest();
                        continue;
                    }
                };
                let Ok(seen) = seen else { break };
                let Some(handler) = front.upgrade() else { return };
                self.sync_caught(&handler, seen.object.name()).await;
            }
        }
    }

    /// The same as [`Self::sync`]: a panic on one definition must not end what follows all of them.
    async fn sync_caught(self: &Arc<Self>, handler: &Arc<RequestHandler>, name: &str) {
        if AssertUnwindSafe(self.sync(handler, name)).catch_unwind().await.is_err() {
            tracing::error!(definition = name, "serving a definition panicked; it is tried again when it changes");
        }
    }

    /// Brings what is served of a definition, and its status, to what they should be.
    async fn sync(self: &Arc<Self>, handler: &Arc<RequestHandler>, name: &str) {
        let registry = &handler.deps.registry;
        let Some(definition) = self.get(registry, name) else {
            let group = name.split_once('.').map_or("", |(_, group)| group);
            locked(&self.names).remove(group, name);
            self.unserve(registry, name).await;
            self.register(registry).await;
            return self.reconsider(registry, group, name).await;
        };
        let group = text(&definition, "/spec/group");
        let now = registry.env.now();
        let judged = conditions::judged(&definition, || locked(&self.names).accepted(group, name), now);
        let mut new = judged.unwrap_or_else(|| (*definition).clone());
        // The next one's names are compared with these before they are seen to be written; an event tells if they are not.
        locked(&self.names).put(&new);
        if conditions::is_true(&new, conditions::NAMES_ACCEPTED) || conditions::is_true(&new, conditions::ESTABLISHED) {
            // Served before it says so.
            if self.serve(registry, &new).await
                && let Some(established) = conditions::established(&new, now)
            {
                new = established;
            }
        }
        self.register(registry).await;
        if new != *definition {
            let released = new["status"]["acceptedNames"] != definition["status"]["acceptedNames"];
            self.write_status(registry, new).await;
            if released {
                self.reconsider(registry, group, name).await;
            }
        }
        if finalize::is_due(&definition) {
            self.start_finalizing(handler, name);
        }
    }

    /// Keeps APIServices of what is served.
    async fn register(&self, registry: &Registry) {
        if self.is_registered.swap(true, Ordering::AcqRel) {
            return;
        }
        let served: register::Served = locked(&self.known)
            .values()
            .flat_map(|known| &known.resources)
            .map(|resource| (resource.group.to_string(), resource.version.to_string()))
            .collect();
        if locked(&self.registered).as_ref() == Some(&served) {
            return;
        }
        match registry.install(register::writes(&*registry.objects, &served)).await {
            Ok(()) => *locked(&self.registered) = Some(served),
            // The next event of a definition tries again.
            Err(error) => {
                self.is_registered.store(false, Ordering::Release);
                tracing::warn!(%error, "APIServices of custom resources could not be written");
            }
        }
    }

    fn get(&self, registry: &Registry, name: &str) -> Option<Arc<Value>> {
        use apiserver_resources::objects::ObjectReader as _;
        registry.objects.get(GROUP, PLURAL, "", name)
    }

    /// Names that another definition had may be free now.
    async fn reconsider(&self, registry: &Registry, group: &str, but: &str) {
        let waiting = locked(&self.names).waiting(group, but);
        for name in waiting {
            let Some(definition) = self.get(registry, &name) else { continue };
            let others = || locked(&self.names).accepted(group, &name);
            if let Some(new) = conditions::judged(&definition, others, registry.env.now()) {
                locked(&self.names).put(&new);
                // Its own event does the rest.
                self.write_status(registry, new).await;
            }
        }
    }

    /// Serves a definition's versions as they are now; false: they can't be.
    async fn serve(&self, registry: &Registry, definition: &Value) -> bool {
        let _one = self.changing.lock().await;
        let (name, uid, tag) = (text(definition, "/metadata/name"), text(definition, "/metadata/uid"), tag(definition));
        if locked(&self.known).get(name).is_some_and(|known| known.tag == tag && known.uid == uid) {
            return true;
        }
        let terminating = conditions::is_true(definition, conditions::TERMINATING);
        let made = match custom::resources(definition, terminating, &self.compilations) {
            Ok(made) => made,
            Err(why) => {
                tracing::warn!(definition = name, why, "a CustomResourceDefinition can't be served");
                return false;
            }
        };
        let mut made: Vec<Arc<ResourceInfo>> = made.into_iter().map(Arc::new).collect();
        let Some(stored) = made.first().cloned() else { return false };
        if !custom::serves_storage_version(definition) {
            made.remove(0);
        }
        let old = locked(&self.known).remove(name);
        let before = old.as_ref().map_or(&[][..], |old| &old.resources);
        // A request that finds the resource can list it; who watches an older form of it begins anew.
        if let (Some(old), Some(prefix)) = (&old, &stored.prefix)
            && !only_terminating(old, &stored, &made)
        {
            registry.cache.unregister(prefix.as_str()).await;
        }
        if let Some(resource) = cached(&stored) {
            registry.cache.register(resource).await;
        }
        if let Err(taken) = registry.served.exchange(before, &made) {
            tracing::warn!(definition = name, %taken, "a CustomResourceDefinition can't be served");
            return false;
        }
        self.is_registered.store(false, Ordering::Release);
        let known = Known { tag, uid: uid.to_owned(), resources: made, stored };
        locked(&self.known).insert(name.to_owned(), known);
        true
    }

    async fn unserve(&self, registry: &Registry, name: &str) {
        let _one = self.changing.lock().await;
        let Some(known) = locked(&self.known).remove(name) else { return };
        self.is_registered.store(false, Ordering::Release);
        if registry.served.exchange(&known.resources, &[]).is_ok()
            && let Some(prefix) = &known.stored.prefix
        {
            registry.cache.unregister(prefix.as_str()).await;
        }
    }

    /// The stored version of a definition that is served.
    fn stored(&self, name: &str) -> Option<Arc<ResourceInfo>> {
        locked(&self.known).get(name).map(|known| known.stored.clone())
    }

    /// Writes a definition's status, and its finalizers with it. Somebody else's change comes back as an event.
    async fn write_status(&self, registry: &Registry, definition: Value) -> bool {
        let catalog = registry.served.load();
        let named = GroupVersionResource { group: GROUP, version: "v1", resource: PLURAL };
        let Some(row) = catalog.get(named) else { return false };
        let user = UserInfo::component("system:apiserver", Some(MASTERS));
        let name = object::text(&definition, "name").to_owned();
        let mut call = RequestScope {
            catalog: &catalog,
            row,
            subresource: row.subresources.iter().find(|subresource| subresource.name == "status").copied(),
            namespace: "",
            name: &name,
            user: &user,
            now: registry.env.now(),
            warnings: Vec::new(),
            elsewhere: Elsewhere::default(),
        };
        let options = WriteOptions::default();
        match registry.replace(&mut call, definition, Options::Write(&options)).await {
            Ok(_) => true,
            Err(ApiError::Conflict(..) | ApiError::NotFound(..)) => false,
            Err(error) => {
                tracing::warn!(definition = name, %error, "a CustomResourceDefinition's status could not be written");
                false
            }
        }
    }
}

/// Whether nothing changed but that a definition is ending: its watches go on until it has.
fn only_terminating(old: &Known, stored: &ResourceInfo, made: &[Arc<ResourceInfo>]) -> bool {
    let same = |a: &ResourceInfo, b: &ResourceInfo| match (&a.custom, &b.custom) {
        (Some(a), Some(b)) => a.open_api_tag == b.open_api_tag && a.definition.generation == b.definition.generation,
        _ => false,
    };
    same(&old.stored, stored)
        && old.resources.len() == made.len()
        && old.resources.iter().zip(made).all(|(a, b)| a.gvr() == b.gvr() && same(a, b))
}
