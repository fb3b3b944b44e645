//! A store that acknowledges before it feeds, as one in another process does: for tests of what lies over it.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::memory::MemoryStore;
use super::{Change, Current, Entry, Outcome, Range, Revision, Sink, Store, StoreError, Txn, Watch};

/// Over a store that others may write to. Its feed stands still until a transaction of its own is acknowledged, or somebody
/// asks which revision is the newest.
pub struct LateStore {
    inner: Arc<MemoryStore>,
    unheard: Arc<Unheard>,
}

impl LateStore {
    /// Over `inner`, which others may write to directly.
    #[must_use]
    pub fn new(inner: Arc<MemoryStore>) -> Self {
        Self { inner, unheard: Arc::default() }
    }
}

/// What the feed's reader has not heard of yet.
#[derive(Default)]
struct Unheard {
    sink: Mutex<Option<Arc<dyn Sink>>>,
    changes: Mutex<Vec<Change>>,
}

impl Unheard {
    fn hear(&self) {
        // One at a time, so that the reader hears changes in their order.
        let sink = self.sink.lock().expect("no panic while it was held");
        let changes = std::mem::take(&mut *self.changes.lock().expect("no panic while it was held"));
        if let (Some(sink), false) = (&*sink, changes.is_empty()) {
            sink.commit(&changes);
        }
    }

    fn told(&self, tell: impl FnOnce(&dyn Sink)) {
        if let Some(sink) = &*self.sink.lock().expect("no panic while it was held") {
            tell(&**sink);
        }
    }
}

impl Sink for Unheard {
    fn start(&self, state: Vec<Entry>, revision: Revision) {
        self.told(|sink| sink.start(state, revision));
    }

    fn commit(&self, changes: &[Change]) {
        self.changes.lock().expect("no panic while it was held").extend_from_slice(changes);
    }

    fn compact(&self, revision: Revision) {
        self.hear();
        self.told(|sink| sink.compact(revision));
    }
}

#[async_trait]
impl Store for LateStore {
    fn revision(&self) -> Revision {
        self.inner.revision()
    }

    fn current(&self) -> Current<'_> {
        Current::Ask(Box::pin(async {
            tokio::task::yield_now().await;
            let newest = self.inner.revision();
            self.unheard.hear();
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
        let (inner, unheard) = (self.inner.clone(), self.unheard.clone());
        let (acknowledge, acknowledged) = oneshot::channel();
        // Once it is sent it is done, whether or not anybody waits for the answer.
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            let outcome = inner.txn(txn).await;
            let committed = matches!(outcome, Ok(Outcome::Committed(_)));
            tokio::task::yield_now().await;
            let _ = acknowledge.send(outcome);
            tokio::task::yield_now().await;
            if committed {
                unheard.hear();
            }
        });
        acknowledged.await.map_err(|_| StoreError::Unavailable("the store's task is gone".into()))?
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.inner.watch(prefix, from).await
    }

    async fn feed(&self, sink: Arc<dyn Sink>) -> Result<(), StoreError> {
        *self.unheard.sink.lock().expect("no panic while it was held") = Some(sink);
        self.inner.feed(self.unheard.clone()).await?;
        self.unheard.hear();
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.inner.compact(revision).await
    }

    async fn tick(&self) -> Result<(), StoreError> {
        self.inner.tick().await
    }
}
