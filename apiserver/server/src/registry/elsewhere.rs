//! A store that is elsewhere, for tests of the write path: its acknowledgements and its feed come late, and others write to it.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use apiserver_storage::store::memory::MemoryStore;
use apiserver_storage::store::{Change, Current, Entry, Outcome, Range, Revision, Sink, Store, StoreError, Txn, Watch};

/// What this server has not heard of yet.
#[derive(Default)]
pub(super) struct Unheard {
    sink: Option<Arc<dyn Sink>>,
    changes: Vec<Change>,
}

impl Unheard {
    fn hear(&mut self) {
        if let (Some(sink), false) = (&self.sink, self.changes.is_empty()) {
            sink.commit(&std::mem::take(&mut self.changes));
        }
    }
}

/// A store that others write to. Its feed stands still until this server asks for the newest revision or commits something.
pub(super) struct Elsewhere {
    pub(super) inner: Arc<MemoryStore>,
    pub(super) unheard: Arc<Mutex<Unheard>>,
}

struct Late(Arc<Mutex<Unheard>>);

impl Sink for Late {
    fn start(&self, state: Vec<Entry>, revision: Revision) {
        self.0.lock().unwrap().sink.as_ref().unwrap().start(state, revision);
    }

    fn commit(&self, changes: &[Change]) {
        self.0.lock().unwrap().changes.extend_from_slice(changes);
    }

    fn compact(&self, revision: Revision) {
        let mut unheard = self.0.lock().unwrap();
        unheard.hear();
        unheard.sink.as_ref().unwrap().compact(revision);
    }
}

#[async_trait]
impl Store for Elsewhere {
    fn revision(&self) -> Revision {
        self.inner.revision()
    }

    fn current(&self) -> Current<'_> {
        Current::Ask(Box::pin(async {
            tokio::task::yield_now().await;
            let newest = self.inner.revision();
            self.unheard.lock().unwrap().hear();
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
        // Once it is sent it is done, whether or not anybody waits for the answer.
        let sent = tokio::spawn(async move {
            tokio::task::yield_now().await;
            let outcome = inner.txn(txn).await;
            tokio::task::yield_now().await;
            if let Ok(Outcome::Committed(_)) = outcome {
                unheard.lock().unwrap().hear();
            }
            outcome
        });
        sent.await.unwrap()
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.inner.watch(prefix, from).await
    }

    async fn feed(&self, sink: Arc<dyn Sink>) -> Result<(), StoreError> {
        self.unheard.lock().unwrap().sink = Some(sink);
        self.inner.feed(Arc::new(Late(self.unheard.clone()))).await?;
        self.unheard.lock().unwrap().hear();
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.inner.compact(revision).await
    }

    async fn tick(&self) -> Result<(), StoreError> {
        self.inner.tick().await
    }
}
