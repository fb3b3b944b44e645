//! The store under the API server: the real one without a disk, with transactions that take time, fail, and are
//! acknowledged late or never. Checkers use its commits as the truth.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use apiserver_storage::store::memory::MemoryStore;
use apiserver_storage::store::{
    Change, Current, Entry, Op, Outcome, Range, Revision, Sink, Store, StoreError, Txn, Watch,
};
use async_trait::async_trait;

use crate::clock;
use crate::log::log;
use crate::sabotage::{self, Sabotage};
use crate::world::World;

/// The simulated store.
pub(crate) struct SimStore {
    inner: MemoryStore,
    world: Arc<World>,
    changes_of_pods: Arc<AtomicU64>,
    writes_of_pods: AtomicU64,
}

impl SimStore {
    pub(crate) fn new(world: Arc<World>) -> Self {
        let inner = MemoryStore::new(world.env.clone());
        Self { inner, world, changes_of_pods: Arc::default(), writes_of_pods: AtomicU64::new(0) }
    }

    async fn pause(&self) {
        let most = self.world.weather().delay_ms;
        let wait = self.world.random.millis(0, most);
        if wait > Duration::ZERO {
            clock::sleep(wait).await;
        }
    }

    /// Whether a broken store loses this transaction.
    fn forgets(&self, txn: &Txn) -> bool {
        self.world.sabotage == Sabotage::StoreForgets
            && txn.ops.iter().any(|op| matches!(op, Op::Put { key, .. } if key.starts_with("/registry/pods/")))
            && self.writes_of_pods.fetch_add(1, Ordering::Relaxed) == 5
    }
}

/// Forwards commits, to the history first.
struct Tap {
    sink: Arc<dyn Sink>,
    world: Arc<World>,
    changes_of_pods: Arc<AtomicU64>,
}

impl Sink for Tap {
    fn start(&self, state: Vec<Entry>, revision: Revision) {
        self.sink.start(state, revision);
    }

    fn commit(&self, changes: &[Change]) {
        let steps = self.world.history.commit(changes);
        let missed = (self.world.sabotage == Sabotage::CacheMissesChange).then(|| {
            let pods = |change: &Change| change.key.starts_with("/registry/pods/") && change.previous.is_some();
            changes.iter().position(|c| pods(c) && self.changes_of_pods.fetch_add(1, Ordering::Relaxed) == 7)
        });
        match missed.flatten() {
            Some(missed) => {
                let mut rest = changes.to_vec();
                rest.remove(missed);
                self.sink.commit(&rest);
            }
            None => self.sink.commit(changes),
        }
        self.world.committed(&steps);
    }

    fn progress(&self, revision: Revision) {
        self.sink.progress(revision);
    }

    fn compact(&self, revision: Revision) {
        self.sink.compact(revision);
    }
}

#[async_trait]
impl Store for SimStore {
    fn revision(&self) -> Revision {
        self.inner.revision()
    }

    fn current(&self) -> Current<'_> {
        self.inner.current()
    }

    fn compacted(&self) -> Revision {
        self.inner.compacted()
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Entry>, StoreError> {
        self.inner.get(key, at).await
    }

    async fn range(&self, from: &str, to: &str, at: Option<Revision>, limit: usize) -> Result<Range, StoreError> {
        self.inner.range(from, to, at, limit).await
    }

    async fn txn(&self, mut txn: Txn) -> Result<Outcome, StoreError> {
        self.pause().await;
        txn.ops.iter_mut().for_each(|op| sabotage::corrupt_stored(self.world.sabotage, &self.world.history, op));
        let fails = self.world.random.chance(self.world.weather().store);
        if fails && self.world.random.chance(500) {
            log!(self.world, "store: refuses");
            return Err(StoreError::Unavailable("simulated".into()));
        }
        if self.forgets(&txn) {
            return Ok(Outcome::Committed(self.inner.revision() + 1));
        }
        let outcome = self.inner.txn(txn).await;
        // The caller may have been cancelled, or the server may die, before the acknowledgement.
        self.pause().await;
        if fails {
            log!(self.world, "store: does not acknowledge");
            return Err(StoreError::Unavailable("simulated".into()));
        }
        outcome
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.inner.watch(prefix, from).await
    }

    async fn feed(&self, sink: Arc<dyn Sink>) -> Result<(), StoreError> {
        let changes_of_pods = self.changes_of_pods.clone();
        self.inner.feed(Arc::new(Tap { sink, world: self.world.clone(), changes_of_pods })).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.inner.compact(revision).await
    }

    async fn tick(&self) -> Result<(), StoreError> {
        self.inner.tick().await
    }
}
