//! The in-memory store: for tests and simulation, and the reference implementation of the contract suite.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use machinery_env::Env;
use tokio::sync::watch;

use super::plan::{PendingWrites, StoreState, check};
use super::{Change, Current, Entry, History, Outcome, Range, Revision, Sink, Store, StoreError, Txn, Watch};

struct MemoryState {
    state: StoreState,
    sink: Option<Arc<dyn Sink>>,
}

/// A store in memory.
pub struct MemoryStore {
    shared: Arc<MemoryShared>,
    env: Env,
}

struct MemoryShared {
    inner: Mutex<MemoryState>,
    moved: watch::Sender<Revision>,
}

impl MemoryShared {
    fn lock(&self) -> MutexGuard<'_, MemoryState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History for MemoryShared {
    fn since(&self, prefix: &str, after: Revision, most: usize) -> Result<(Vec<Change>, Revision), StoreError> {
        self.lock().state.since(prefix, after, most)
    }
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new(env: Env) -> Self {
        let inner = MemoryState { state: StoreState::new(0), sink: None };
        Self { shared: Arc::new(MemoryShared { inner: Mutex::new(inner), moved: watch::Sender::new(0) }), env }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.env.now().as_millisecond()).unwrap_or(0)
    }

    fn write(&self, inner: &mut MemoryState, txn: Txn) -> Outcome {
        let mut pending = PendingWrites::default();
        let outcome = inner.state.plan(&mut pending, txn, self.now_ms());
        if !pending.writes.is_empty() {
            let changes = inner.state.apply(pending.writes);
            if let Some(sink) = &inner.sink {
                sink.commit(&changes);
            }
            self.shared.moved.send_replace(inner.state.versions.revision());
        }
        outcome
    }

    fn forget(inner: &mut MemoryState, revision: Revision) -> Result<(), StoreError> {
        inner.state.compact(revision)?;
        if let Some(sink) = &inner.sink {
            sink.compact(revision);
        }
        Ok(())
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn revision(&self) -> Revision {
        self.shared.lock().state.versions.revision()
    }

    fn current(&self) -> Current<'_> {
        Current::Fed
    }

    fn compacted(&self) -> Revision {
        self.shared.lock().state.versions.compacted()
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Entry>, StoreError> {
        self.shared.lock().state.get(key, at)
    }

    async fn range(&self, from: &str, to: &str, at: Option<Revision>, limit: usize) -> Result<Range, StoreError> {
        self.shared.lock().state.range(from, to, at, limit)
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome, StoreError> {
        check(&txn)?;
        let mut inner = self.shared.lock();
        Ok(self.write(&mut inner, txn))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.shared.since(prefix, from, 0)?;
        Ok(Watch::new(self.shared.clone(), self.shared.moved.subscribe(), prefix, from))
    }

    async fn feed(&self, sink: Arc<dyn Sink>) -> Result<(), StoreError> {
        let mut inner = self.shared.lock();
        let base = inner.state.versions.compacted();
        sink.start(inner.state.base(), base);
        sink.commit(&inner.state.changes_since(base)?);
        inner.sink = Some(sink);
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        Self::forget(&mut self.shared.lock(), revision)
    }

    async fn tick(&self) -> Result<(), StoreError> {
        let mut inner = self.shared.lock();
        while let Some(txn) = inner.state.expired(self.now_ms()) {
            self.write(&mut inner, txn);
        }
        if let Some(revision) = inner.state.compaction_due(self.env.elapsed()) {
            Self::forget(&mut inner, revision)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract;
    use super::*;

    #[tokio::test]
    async fn keeps_the_contract() {
        contract::all(&|env| contract::ready(Arc::new(MemoryStore::new(env)))).await;
    }
}
