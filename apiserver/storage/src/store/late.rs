//! A store that acknowledges before it feeds, like one in another process: for tests of the layers above it.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::memory::MemoryStore;
use super::{Change, Current, Entry, Outcome, Range, Revision, Sink, Store, StoreError, Txn, Watch};

/// Wraps a store with other writers. Its feed is delayed until one of its own transactions is acknowledged, or until
/// the newest revision is requested.
pub struct LateStore {
    inner: Arc<MemoryStore>,
    delayed: Arc<DelayedFeed>,
}

impl LateStore {
    /// Wraps `inner`, to which others may write directly.
    #[must_use]
    pub fn new(inner: Arc<MemoryStore>) -> Self {
        Self { inner, delayed: Arc::default() }
    }
}

/// The changes that were not fed yet.
#[derive(Default)]
struct DelayedFeed {
    sink: Mutex<Option<Arc<dyn Sink>>>,
    changes: Mutex<Vec<Change>>,
}

impl DelayedFeed {
    fn flush(&self) {
        // Serialized, so that the sink gets the changes in order.
        let sink = self.sink.lock().expect("no panic while it was held");
        let changes = std::mem::take(&mut *self.changes.lock().expect("no panic while it was held"));
        if let (Some(sink), false) = (&*sink, changes.is_empty()) {
            sink.commit(&changes);
        }
    }

    fn with_sink(&self, call: impl FnOnce(&dyn Sink)) {
        if let Some(sink) = &*self.sink.lock().expect("no panic while it was held") {
            call(&**sink);
        }
    }
}

impl Sink for DelayedFeed {
    fn start(&self, state: Vec<Entry>, revision: Revision) {
        self.with_sink(|sink| sink.start(state, revision));
    }

    fn commit(&self, changes: &[Change]) {
        self.changes.lock().expect("no panic while it was held").extend_from_slice(changes);
    }

    fn progress(&self, revision: Revision) {
        self.flush();
        self.with_sink(|sink| sink.progress(revision));
    }

    fn compact(&self, revision: Revision) {
        self.flush();
        self.with_sink(|sink| sink.compact(revision));
    }
}

#[async_trait]
impl Store for LateStore {
    fn revision(&self) -> Revision {
        self.inner.revision()
    }

    fn current(&self) -> Current<'_> {
        Current::WaitFor(Box::pin(async {
            tokio::task::yield_now().await;
            let newest = self.inner.revision();
            self.delayed.flush();
            Ok(newest)
        }))
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

    async fn txn(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let (inner, delayed) = (self.inner.clone(), self.delayed.clone());
        let (acknowledge, acknowledged) = oneshot::channel();
        // Spawned: a transaction that was sent completes, whether or not the caller waits for it.
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            let outcome = inner.txn(txn).await;
            let committed = matches!(outcome, Ok(Outcome::Committed(_)));
            tokio::task::yield_now().await;
            let _ = acknowledge.send(outcome);
            tokio::task::yield_now().await;
            if committed {
                delayed.flush();
            }
        });
        acknowledged.await.map_err(|_| StoreError::Unavailable("the store's task is gone".into()))?
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.inner.watch(prefix, from).await
    }

    async fn feed(&self, sink: Arc<dyn Sink>) -> Result<(), StoreError> {
        *self.delayed.sink.lock().expect("no panic while it was held") = Some(sink);
        self.inner.feed(self.delayed.clone()).await?;
        self.delayed.flush();
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.inner.compact(revision).await
    }

    async fn tick(&self) -> Result<(), StoreError> {
        self.inner.tick().await
    }
}
