//! Runs the store's contract on the reads of the server: a store behind the watch cache, which is fed before or after
//! the acknowledgement. Reads sync the cache first, as the registry does before it relies on an absent object.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use machinery_api::{StorageKey, StoragePrefix};
use machinery_env::Env;

use super::watching::Watch as CacheWatch;
use super::{Cached, EventType, Resource, Selectors, VersionError, WatchCache};
use crate::store::contract::{self, WATCHED};
use crate::store::late::LateStore;
use crate::store::memory::MemoryStore;
use crate::store::{
    Change, Current, Entry, History, Outcome, Range, Record, Revision, Sink, Store, StoreError, Txn, Watch, prefix_end,
};

/// A watch cache as a [`Store`].
struct CacheStore(Arc<WatchCache>);

impl CacheStore {
    async fn open(store: Arc<dyn Store>) -> Arc<dyn Store> {
        let resources = WATCHED.map(|prefix| Resource::plain(StoragePrefix::new(prefix)));
        Arc::new(Self(WatchCache::open(&Env::real(), store, resources.into()).await.unwrap()))
    }

    fn list(&self, prefix: &str, at: Option<Revision>) -> Result<(Vec<Entry>, Revision), StoreError> {
        let page = self.0.list(prefix, at, None, 0, &Selectors::default()).map_err(failed)?;
        Ok((page.items.iter().map(|cached| entry(cached)).collect(), page.revision))
    }
}

fn entry(cached: &Cached) -> Entry {
    let (key, record) = (cached.key.clone(), Record::plain(&cached.stored()));
    Entry { key, record, created: cached.created, modified: cached.modified }
}

fn failed(error: VersionError) -> StoreError {
    match error {
        VersionError::Compacted(revision) => StoreError::Compacted(revision),
        VersionError::Future(revision) => StoreError::Future(revision),
        VersionError::Unregistered => panic!("the contract watches what is not registered"),
    }
}

/// An open watch of the cache.
struct CacheStoreWatch(Mutex<CacheWatch>);

impl History for CacheStoreWatch {
    fn since(&self, _: &str, after: Revision, most: usize) -> Result<(Vec<Change>, Revision), StoreError> {
        let mut watch = self.0.lock().unwrap();
        let mut changes = Vec::new();
        while changes.len() < most {
            let Some(seen) = watch.try_recv().map_err(failed)? else { break };
            changes.push(Change {
                revision: seen.event.revision,
                key: seen.object.key.clone(),
                entry: (seen.kind != EventType::Deleted).then(|| entry(&seen.object)),
                previous: seen.event.previous.as_deref().map(entry),
            });
        }
        Ok((changes, watch.progress().unwrap_or(after)))
    }
}

#[async_trait]
impl Store for CacheStore {
    fn revision(&self) -> Revision {
        self.0.revision()
    }

    fn current(&self) -> Current<'_> {
        self.0.store().current()
    }

    fn compacted(&self) -> Revision {
        match self.list("/", Some(0)) {
            Err(StoreError::Compacted(revision)) => revision,
            _ => 0,
        }
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Entry>, StoreError> {
        self.0.sync().await?;
        match at {
            None => Ok(self.0.get(key).map(|cached| entry(&cached))),
            Some(_) => Ok(self.list(key, at)?.0.into_iter().find(|entry| &*entry.key == key)),
        }
    }

    async fn range(&self, from: &str, to: &str, at: Option<Revision>, limit: usize) -> Result<Range, StoreError> {
        self.0.sync().await?;
        let mut prefixes = std::iter::once(from).chain(StorageKey::prefixes(from));
        let prefix = prefixes.find(|prefix| prefix_end(prefix) == to).expect("the contract reads below a prefix");
        let (mut entries, revision) = self.list(prefix, at)?;
        entries.retain(|entry| &*entry.key >= from);
        let all = entries.len();
        entries.truncate(if limit == 0 { all } else { limit });
        let remaining = match entries.last() {
            Some(last) if entries.len() < all => self.0.count_after(prefix, &last.key, revision).map_err(failed)?,
            _ => 0,
        };
        Ok(Range { entries, revision, remaining })
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.0.commit(txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        let watch = self.0.watch(prefix, Some(from), Selectors::default()).map_err(failed)?;
        Ok(Watch::new(Arc::new(CacheStoreWatch(Mutex::new(watch))), self.0.published.subscribe(), prefix, from))
    }

    async fn feed(&self, _: Arc<dyn Sink>) -> Result<(), StoreError> {
        Err(StoreError::Unavailable("a cache takes no writes".into()))
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.0.store().compact(revision).await
    }

    async fn tick(&self) -> Result<(), StoreError> {
        self.0.store().tick().await
    }
}

#[tokio::test]
async fn a_cache_that_is_fed_first_keeps_the_contract() {
    contract::read_and_written(&|env| Box::pin(CacheStore::open(Arc::new(MemoryStore::new(env))))).await;
}

#[tokio::test]
async fn a_cache_fed_later_keeps_the_contract() {
    let late = |env| Arc::new(LateStore::new(Arc::new(MemoryStore::new(env))));
    contract::read_and_written(&|env| Box::pin(CacheStore::open(late(env)))).await;
}
