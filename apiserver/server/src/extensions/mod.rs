//! The controller of CustomResourceDefinitions: serves their resources and maintains their status.
//!
//! A definition's event is handled in this process once it is in the watch cache: names are checked, versions are
//! compiled and served, and then the status is updated. A client that reads `Established` can use the resource.
//! Instances of a deleted definition are deleted first (`finalize`). The decisions are in `apiserver_resources`.

mod arrival;
mod finalize;
mod names;
mod register;

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use apiserver_resources::ResourceInfo;
use apiserver_resources::apiextensions::compiled::SchemaCache;
use apiserver_resources::apiextensions::{conditions, custom};
use apiserver_storage::cache::{Cached, Resource, Selectors};
use futures::FutureExt as _;
use machinery_api::{ApiError, GroupVersionResource};
use machinery_env::Env;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::http::handle::RequestHandler;
use crate::registry::fields::SERVER;
use crate::registry::{ObjectConversions, Registry, RequestScope, object};
use apiserver_admission::Options;
use apiserver_auth::{MASTERS, UserInfo};
use apiserver_resources::options::WriteOptions;

pub(crate) const GROUP: &str = "apiextensions.k8s.io";
pub(crate) const PLURAL: &str = "customresourcedefinitions";
/// The delay before everything is reconciled again after a failed watch.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Compiled schemas that are unused for this long, or up to twice that, are dropped.
const COMPILATION_TTL: Duration = Duration::from_mins(5);

/// A served definition.
struct ServedDefinition {
    /// A digest of all inputs of its resources.
    tag: [u8; 32],
    uid: String,
    resources: Vec<Arc<ResourceInfo>>,
    /// The storage version, even if it is not served.
    stored: Arc<ResourceInfo>,
}

/// The state of the controller.
#[derive(Default)]
pub(crate) struct Extensions {
    definitions: Mutex<HashMap<String, ServedDefinition>>,
    finalizing: Mutex<HashSet<String>>,
    /// The accepted names of all definitions.
    names: Mutex<names::NameIndex>,
    /// Whether the APIServices are up to date.
    apiservices_current: AtomicBool,
    /// The group versions that have APIServices.
    registered_versions: Mutex<Option<register::GroupVersions>>,
    /// Serializes changes of the served resources.
    changing: tokio::sync::Mutex<()>,
    /// Compiled schemas.
    compilations: Arc<SchemaCache>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text<'a>(definition: &'a Value, pointer: &str) -> &'a str {
    definition.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The digest of the inputs of a definition's resources.
fn inputs_digest(definition: &Value) -> [u8; 32] {
    let terminating = conditions::is_true(definition, conditions::TERMINATING);
    Sha256::digest(format!("{}\n{}\n{terminating}", definition["spec"], definition["status"]["acceptedNames"])).into()
}

impl Extensions {
    /// All definitions, and the revision of the list.
    fn list_definitions(registry: &Registry) -> (Vec<Arc<Cached>>, u64) {
        let Some(prefix) = registry.served.with(|catalog| catalog.prefix(GROUP, PLURAL)) else {
            return (Vec::new(), registry.cache.revision());
        };
        let page = registry.cache.list(prefix.all().as_str(), None, None, 0, &Selectors::default());
        page.map_or_else(|_| (Vec::new(), registry.cache.revision()), |page| (page.items, page.revision))
    }

    /// Serves the definitions that were established before the server started.
    pub(crate) async fn load(&self, registry: &Registry) {
        for cached in Self::list_definitions(registry).0 {
            let definition = cached.shared();
            if conditions::is_true(&definition, conditions::ESTABLISHED) {
                self.serve(registry, &definition).await;
            }
        }
    }

    /// Runs the controller until the server stops.
    pub(crate) async fn run(self: Arc<Self>, weak_handler: Weak<RequestHandler>, env: Env) {
        let mut sweep = env.interval(COMPILATION_TTL);
        loop {
            let Some(handler) = weak_handler.upgrade() else { return };
            let stop = handler.stop.clone();
            let registry = &handler.deps.registry;
            let (items, revision) = Self::list_definitions(registry);
            let names: HashSet<String> = items.iter().map(|cached| cached.name().to_owned()).collect();
            let gone: Vec<String> =
                lock(&self.definitions).keys().filter(|name| !names.contains(*name)).cloned().collect();
            *lock(&self.names) = names::NameIndex::default();
            items.iter().for_each(|cached| lock(&self.names).insert_names(&cached.shared()));
            for name in names.iter().chain(&gone) {
                self.sync_catching_panics(&handler, name).await;
            }
            handler.definitions_served.send_replace(revision);
            let Some(prefix) = registry.served.with(|catalog| catalog.prefix(GROUP, PLURAL)) else { return };
            let watch = registry.cache.watch(prefix.all().as_str(), Some(revision), Selectors::default());
            drop(handler);
            let Ok(mut watch) = watch else {
                env.sleep(RETRY_DELAY).await;
                continue;
            };
            loop {
                let event = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    event = watch.recv() => event,
                    _ = sweep.tick() => {
                        self.compilations.rest();
                        continue;
                    }
                };
                let Ok(event) = event else { break };
                let Some(handler) = weak_handler.upgrade() else { return };
                self.sync_catching_panics(&handler, event.object.name()).await;
                handler.definitions_served.send_replace(event.event.revision);
            }
        }
    }

    /// Like [`Self::sync`], but catches panics, so that one definition cannot end the controller.
    async fn sync_catching_panics(self: &Arc<Self>, handler: &Arc<RequestHandler>, name: &str) {
        if AssertUnwindSafe(self.sync(handler, name)).catch_unwind().await.is_err() {
            tracing::error!(
                definition = name,
                "reconciling a CustomResourceDefinition panicked; its next change retries"
            );
        }
    }

    /// Reconciles the served resources and the status of a definition.
    async fn sync(self: &Arc<Self>, handler: &Arc<RequestHandler>, name: &str) {
        let registry = &handler.deps.registry;
        let Some(definition) = self.get(registry, name) else {
            let group = name.split_once('.').map_or("", |(_, group)| group);
            lock(&self.names).remove(group, name);
            self.unserve(registry, name).await;
            self.reconcile_apiservices(registry).await;
            return self.recheck_waiting(registry, group, name).await;
        };
        let group = text(&definition, "/spec/group");
        let now = registry.env.now();
        let judged = conditions::judged(&definition, || lock(&self.names).accepted(group, name), now);
        let mut new = judged.unwrap_or_else(|| (*definition).clone());
        // Recorded before the write is in the cache, so that the next definition's names are checked against these. A
        // failed write produces another event.
        lock(&self.names).insert_names(&new);
        if conditions::is_true(&new, conditions::NAMES_ACCEPTED) || conditions::is_true(&new, conditions::ESTABLISHED) {
            // The resources are served before the status reports it.
            if self.serve(registry, &new).await
                && let Some(established) = conditions::established(&new, now)
            {
                new = established;
            }
        }
        self.reconcile_apiservices(registry).await;
        if new != *definition {
            let released = new["status"]["acceptedNames"] != definition["status"]["acceptedNames"];
            self.write_status(registry, new).await;
            if released {
                self.recheck_waiting(registry, group, name).await;
            }
        }
        if finalize::needs_finalizing(&definition) {
            self.start_finalizing(handler, name);
        }
    }

    /// Reconciles the APIServices of the served group versions.
    async fn reconcile_apiservices(&self, registry: &Registry) {
        if self.apiservices_current.swap(true, Ordering::AcqRel) {
            return;
        }
        let served: register::GroupVersions = lock(&self.definitions)
            .values()
            .flat_map(|entry| &entry.resources)
            .map(|resource| (resource.group.to_string(), resource.version.to_string()))
            .collect();
        if lock(&self.registered_versions).as_ref() == Some(&served) {
            return;
        }
        match registry.install(register::writes(&*registry.objects, &served)).await {
            Ok(()) => *lock(&self.registered_versions) = Some(served),
            // The next event of a definition retries.
            Err(error) => {
                self.apiservices_current.store(false, Ordering::Release);
                tracing::warn!(%error, "failed to write the APIServices of custom resources");
            }
        }
    }

    fn get(&self, registry: &Registry, name: &str) -> Option<Arc<Value>> {
        use apiserver_resources::objects::ObjectReader as _;
        registry.objects.get(GROUP, PLURAL, "", name)
    }

    /// Re-checks definitions that wait for names that may be free now.
    async fn recheck_waiting(&self, registry: &Registry, group: &str, but: &str) {
        let waiting = lock(&self.names).waiting(group, but);
        for name in waiting {
            let Some(definition) = self.get(registry, &name) else { continue };
            let others = || lock(&self.names).accepted(group, &name);
            if let Some(new) = conditions::judged(&definition, others, registry.env.now()) {
                lock(&self.names).insert_names(&new);
                // The update's own event continues.
                self.write_status(registry, new).await;
            }
        }
    }

    /// Serves the current versions of a definition; false if that fails.
    async fn serve(&self, registry: &Registry, definition: &Value) -> bool {
        let _guard = self.changing.lock().await;
        let (name, uid, tag) =
            (text(definition, "/metadata/name"), text(definition, "/metadata/uid"), inputs_digest(definition));
        if lock(&self.definitions).get(name).is_some_and(|entry| entry.tag == tag && entry.uid == uid) {
            return true;
        }
        let terminating = conditions::is_true(definition, conditions::TERMINATING);
        let compiled = match custom::resources(definition, terminating, &self.compilations) {
            Ok(compiled) => compiled,
            Err(why) => {
                tracing::warn!(definition = name, why, "a CustomResourceDefinition can't be served");
                return false;
            }
        };
        let mut compiled: Vec<Arc<ResourceInfo>> = compiled.into_iter().map(Arc::new).collect();
        let Some(stored) = compiled.first().cloned() else { return false };
        if !custom::serves_storage_version(definition) {
            compiled.remove(0);
        }
        let old = lock(&self.definitions).remove(name);
        let before = old.as_ref().map_or(&[][..], |old| &old.resources);
        // The cache is registered first, so that a request that finds the resource can list it. Watches of an older
        // form are restarted.
        if let (Some(old), Some(prefix)) = (&old, &stored.prefix)
            && !only_terminating(old, &stored, &compiled)
        {
            registry.cache.unregister(prefix.as_str()).await;
        }
        if let Some(resource) = Resource::of(&stored) {
            registry.cache.register(resource).await;
        }
        if let Err(conflict) = registry.served.replace(before, &compiled) {
            tracing::warn!(definition = name, %conflict, "a CustomResourceDefinition can't be served");
            return false;
        }
        self.apiservices_current.store(false, Ordering::Release);
        let entry = ServedDefinition { tag, uid: uid.to_owned(), resources: compiled, stored };
        lock(&self.definitions).insert(name.to_owned(), entry);
        true
    }

    async fn unserve(&self, registry: &Registry, name: &str) {
        let _guard = self.changing.lock().await;
        let Some(entry) = lock(&self.definitions).remove(name) else { return };
        self.apiservices_current.store(false, Ordering::Release);
        if registry.served.replace(&entry.resources, &[]).is_ok()
            && let Some(prefix) = &entry.stored.prefix
        {
            registry.cache.unregister(prefix.as_str()).await;
        }
    }

    /// The storage version of a served definition.
    fn stored(&self, name: &str) -> Option<Arc<ResourceInfo>> {
        lock(&self.definitions).get(name).map(|entry| entry.stored.clone())
    }

    /// Writes a definition's status and finalizers. After a conflict the other writer's change produces another event.
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
            conversions: ObjectConversions::default(),
        };
        let options = WriteOptions { agent: SERVER.into(), ..WriteOptions::default() };
        match registry.replace(&mut call, definition, Options::Write(&options)).await {
            Ok(_) => true,
            Err(ApiError::Conflict(..) | ApiError::NotFound(..)) => false,
            Err(error) => {
                tracing::warn!(definition = name, %error, "failed to write the status of a CustomResourceDefinition");
                false
            }
        }
    }
}

/// Whether only termination started: watches then continue until the definition is deleted.
fn only_terminating(old: &ServedDefinition, stored: &ResourceInfo, compiled: &[Arc<ResourceInfo>]) -> bool {
    let same = |a: &ResourceInfo, b: &ResourceInfo| match (&a.custom, &b.custom) {
        (Some(a), Some(b)) => a.open_api_tag == b.open_api_tag && a.definition.generation == b.definition.generation,
        _ => false,
    };
    same(&old.stored, stored)
        && old.resources.len() == compiled.len()
        && old.resources.iter().zip(compiled).all(|(a, b)| a.gvr() == b.gvr() && same(a, b))
}
