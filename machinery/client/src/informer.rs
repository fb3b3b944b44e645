//! Keeps one [`ObjectCache`] in step with the server: one reflector a kind, shared by all roles of a process.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard, Weak};
use std::time::Duration;

use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cache::{Change, ObjectCache};
use crate::discovery;
use crate::object::{Kind, Typed, key_of, version_of};
use crate::pending::{PendingWrite, WriteWaiters};
use crate::reflector::{Reflector, ReflectorEvent};
use machinery_env::Env;

/// Called with each change and the resulting cache, under the cache's lock: must be quick and not call the informer.
pub type Listener = dyn Fn(&ObjectCache, &Change) + Send + Sync;

/// Interval of discovery where every kind is watched (as upstream's garbage collector).
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(30);
/// Delay of discovery after a change of the custom resource definitions: upstream needs a moment to serve them.
const DISCOVERY_DELAY: Duration = Duration::from_millis(500);

/// The running reflector of a kind.
struct RunningReflector {
    stop: CancellationToken,
    /// The Rust type of the objects; `None` for metadata only.
    type_name: Option<&'static str>,
}

/// A shared informer: a cache, its reflectors and its listeners.
pub struct Informer {
    client: Client,
    env: Env,
    stop: CancellationToken,
    view: RwLock<ObjectCache>,
    listeners: Mutex<Vec<Weak<Listener>>>,
    reflectors: Mutex<BTreeMap<Kind, RunningReflector>>,
    /// Counts the cache's changes, to wake tasks that wait for a condition.
    progress: watch::Sender<u64>,
    /// Tasks that wait for a certain write.
    waiters: Mutex<WriteWaiters>,
    /// `None`: not every kind is watched. `false`: discovery has not completed yet.
    discovered: Mutex<Option<bool>>,
}

impl std::fmt::Debug for Informer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Informer").finish_non_exhaustive()
    }
}

impl Drop for Informer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Informer {
    /// An informer without watches. It ends with `stop`.
    #[must_use]
    pub fn new(client: Client, env: Env, stop: &CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            client,
            env,
            stop: stop.child_token(),
            view: RwLock::default(),
            listeners: Mutex::default(),
            reflectors: Mutex::default(),
            progress: watch::Sender::new(0),
            waiters: Mutex::default(),
            discovered: Mutex::default(),
        })
    }

    /// Watches a kind from now on; repeated calls do nothing.
    ///
    /// # Panics
    /// If the kind is watched as another type: reads of this type would find nothing.
    pub fn watch<K: Typed>(self: &Arc<Self>) {
        let reflector = Reflector::of::<K>(self.client.clone(), self.env.clone());
        self.start(Kind::of::<K>(), Some(std::any::type_name::<K>()), None, reflector);
    }

    /// Watches the objects of a kind that these selectors select (empty: all), as [`Informer::watch`]. A later call for the
    /// kind does nothing.
    ///
    /// # Panics
    /// As [`Informer::watch`].
    pub fn watch_selected<K: Typed>(self: &Arc<Self>, field_selector: &str, label_selector: &str) {
        let reflector = Reflector::of::<K>(self.client.clone(), self.env.clone());
        let reflector = reflector.selecting(field_selector).labelled(label_selector);
        self.start(Kind::of::<K>(), Some(std::any::type_name::<K>()), None, reflector);
    }

    /// Lists a kind that can't be watched at an interval; see [`ObjectCache::replaced_at`].
    ///
    /// # Panics
    /// As [`Informer::watch`].
    pub fn poll<K: Typed>(self: &Arc<Self>, every: Duration) {
        let reflector = Reflector::of::<K>(self.client.clone(), self.env.clone());
        self.start(Kind::of::<K>(), Some(std::any::type_name::<K>()), Some(every), reflector);
    }

    /// Watches the metadata of a kind, unless the kind is watched already.
    pub fn watch_metadata(self: &Arc<Self>, kind: Kind) {
        let reflector = Reflector::of_metadata(self.client.clone(), self.env.clone(), kind.clone());
        self.start(kind, None, None, reflector);
    }

    /// Watches the metadata of every kind that can be listed, watched and deleted and isn't watched otherwise, except
    /// for events (many, and without owners). Kinds are added and removed with the server's discovery.
    pub fn watch_everything(self: &Arc<Self>) {
        let mut discovered = self.discovered.lock().unwrap_or_else(PoisonError::into_inner);
        if discovered.is_none() {
            *discovered = Some(false);
            tokio::spawn(run_discovery(
                Arc::downgrade(self),
                (self.client.clone(), self.env.clone()),
                self.stop.clone(),
            ));
        }
    }

    fn start(
        self: &Arc<Self>,
        kind: Kind,
        type_name: Option<&'static str>,
        every: Option<Duration>,
        reflector: Reflector,
    ) {
        let mut reflectors = self.reflectors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = reflectors.get(&kind) {
            if present.type_name.is_some() || type_name.is_none() {
                let same = type_name.is_none() || present.type_name == type_name;
                assert!(
                    same,
                    "{} are watched as {:?} already, not as {type_name:?}",
                    kind.resource(),
                    present.type_name
                );
                return;
            }
            // Metadata no longer suffices: restart with whole objects.
            present.stop.cancel();
            self.change(&kind, |view| view.close(&kind));
        }
        let stop = self.stop.child_token();
        self.change(&kind, |view| {
            match every {
                Some(_) => view.open_polled(&kind),
                None => view.open(&kind),
            }
            Vec::new()
        });
        reflectors.insert(kind.clone(), RunningReflector { stop: stop.clone(), type_name });
        let informer = Arc::downgrade(self);
        tokio::spawn(async move {
            let on_event = |event| match informer.upgrade() {
                Some(informer) => informer.on_event(&kind, event, &stop),
                None => ControlFlow::Break(()),
            };
            let follow = async {
                match every {
                    Some(every) => reflector.poll(every, on_event).await,
                    None => reflector.run(on_event).await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = follow => {}
            }
        });
    }

    /// Applies a reflector's event to the cache.
    fn on_event(&self, kind: &Kind, event: ReflectorEvent, stop: &CancellationToken) -> ControlFlow<()> {
        let mut flow = ControlFlow::Continue(());
        self.change(kind, |view| {
            // Another reflector may have replaced this one: the cache's lock decides.
            if stop.is_cancelled() {
                flow = ControlFlow::Break(());
                return Vec::new();
            }
            match event {
                ReflectorEvent::Replaced(objects, version) => view.replace(kind, objects, version),
                ReflectorEvent::Applied(object) => view.put(kind, object).into_iter().collect(),
                ReflectorEvent::Deleted(object) => {
                    let metadata = object.metadata();
                    view.remove(kind, &key_of(metadata), version_of(metadata)).into_iter().collect()
                }
                ReflectorEvent::Progress(version) => {
                    view.progress(kind, version);
                    Vec::new()
                }
                ReflectorEvent::Interrupted(_) => {
                    view.interrupt(kind);
                    Vec::new()
                }
            }
        });
        flow
    }

    /// Registers a listener for every change from now on, and passes every cached object to it as a new one. The
    /// informer holds a weak reference: dropping the listener unregisters it.
    pub fn listen(&self, listener: &Arc<Listener>) {
        let view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        view.as_changes().for_each(|change| listener(&view, &change));
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(listener));
    }

    /// Reads the cache. Keep it short: the cache is locked meanwhile.
    pub fn read<R>(&self, look: impl FnOnce(&ObjectCache) -> R) -> R {
        look(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until the cache fulfils a condition.
    pub async fn until(&self, wanted: impl Fn(&ObjectCache) -> bool) {
        let mut progress = self.progress.subscribe();
        loop {
            progress.mark_unchanged();
            if self.read(&wanted) {
                return;
            }
            // The sender lives in `self`, so waiting cannot fail.
            let _ = progress.changed().await;
        }
    }

    /// Waits until the cache shows all these writes.
    pub(super) async fn await_writes(&self, writes: &[PendingWrite]) {
        for write in writes {
            loop {
                // Register before the check: a change between the two must not be missed.
                let woken = self.waiters.lock().unwrap_or_else(PoisonError::into_inner).register(write);
                if self.read(|view| write.is_visible(view)) {
                    break;
                }
                // An error only if a later registration dropped this waiter: check again all the same.
                let _ = woken.await;
            }
        }
    }

    /// Waits until every watched kind was listed once.
    pub async fn synced(&self) {
        self.until(|view| {
            let discovered = *self.discovered.lock().unwrap_or_else(PoisonError::into_inner);
            discovered != Some(false) && view.all_synced()
        })
        .await;
    }

    /// Changes the cache and calls the listeners.
    fn change(&self, kind: &Kind, act: impl FnOnce(&mut ObjectCache) -> Vec<Change>) {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        view.set_elapsed(self.env.elapsed());
        let changes = act(&mut view);
        let view = RwLockWriteGuard::downgrade(view);
        if !changes.is_empty() {
            let listeners: Vec<Arc<Listener>> = {
                let mut all = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
                all.retain(|l| l.strong_count() > 0);
                all.iter().filter_map(Weak::upgrade).collect()
            };
            for change in &changes {
                listeners.iter().for_each(|listener| listener(&view, change));
            }
        }
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner).wake(&view, kind, &changes);
        drop(view);
        self.progress.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Starts and stops metadata watches so that they match the served kinds.
    fn reconcile_metadata_watches(self: &Arc<Self>, found: discovery::DiscoveredKinds) {
        let gone: Vec<Kind> = {
            let mut reflectors = self.reflectors.lock().unwrap_or_else(PoisonError::into_inner);
            let unknown = |kind: &Kind| found.failed.contains_key(&*kind.group);
            let gone: Vec<Kind> = reflectors
                .iter()
                .filter(|(kind, f)| f.type_name.is_none() && !found.kinds.contains(kind) && !unknown(kind))
                .map(|(kind, _)| kind.clone())
                .collect();
            for kind in &gone {
                if let Some(reflector) = reflectors.remove(kind) {
                    reflector.stop.cancel();
                }
            }
            gone
        };
        for kind in found.kinds {
            self.watch_metadata(kind);
        }
        *self.discovered.lock().unwrap_or_else(PoisonError::into_inner) = Some(true);
        gone.iter().for_each(|kind| self.change(kind, |view| view.close(kind)));
        self.view.write().unwrap_or_else(PoisonError::into_inner).undiscovered = found.failed;
        self.progress.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// Runs discovery at an interval.
async fn run_discovery(informer: Weak<Informer>, (client, env): (Client, Env), stop: CancellationToken) {
    let definitions = |view: &ObjectCache| {
        view.kinds()
            .find(|k| k.plural == "customresourcedefinitions" && k.group == "apiextensions.k8s.io")
            .and_then(|k| view.seen(k))
    };
    loop {
        let result = discovery::discover_kinds(&client).await;
        let Some(informer) = informer.upgrade() else { return };
        let retry = match result {
            Ok(found) => {
                informer.reconcile_metadata_watches(found);
                DISCOVERY_INTERVAL
            }
            Err(error) => {
                tracing::warn!(%error, "discovery failed");
                Duration::from_secs(1)
            }
        };
        let known = informer.read(definitions);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = env.sleep(retry) => {}
            () = informer.until(|view| definitions(view) != known) => {
                env.sleep(DISCOVERY_DELAY).await;
            }
        }
    }
}
