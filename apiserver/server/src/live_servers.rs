//! The live API servers of a cluster: each keeps a key in the store, which expires soon after its server's end.
//!
//! As upstream's lease reconciler (`masterleases`). With the embedded store there is one server and no key.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use apiserver_storage::cache::{Selectors, WatchCache};
use apiserver_storage::store::{Op, Record, StoreError, Txn};
use machinery_api::{ObjectName, StorageKey, StoragePrefix};
use serde_json::json;

/// Below this prefix a server's key is its address.
const PREFIX: &str = "coracle/apiservers";
/// The time from a server's last write of its key to its expiry (upstream's default).
const TTL: Duration = Duration::from_secs(15);

/// The prefix of all servers' keys: they say nothing about a store that is restored from a backup.
pub(crate) fn prefix() -> StoragePrefix {
    StoragePrefix::new(PREFIX)
}

fn key(address: SocketAddr) -> String {
    StorageKey::object(PREFIX, ObjectName::new("", &address.to_string())).into()
}

/// Notes that the server of this address lives, and returns all that do.
///
/// # Errors
/// On errors of the store.
pub(crate) async fn renew(cache: &WatchCache, own: SocketAddr) -> Result<BTreeSet<SocketAddr>, StoreError> {
    let mut live = BTreeSet::from([own]);
    if !cache.is_current() {
        let record = Record::of(&json!({"address": own}));
        let op = Op::Put { key: key(own), record, ttl: Some(TTL) };
        cache.commit(Txn { compares: Vec::new(), ops: vec![op] }).await?;
        live.extend(others(cache, own));
    }
    Ok(live)
}

/// Notes that the server of this address ends, and returns the others.
///
/// # Errors
/// On errors of the store.
pub(crate) async fn release(cache: &WatchCache, own: SocketAddr) -> Result<BTreeSet<SocketAddr>, StoreError> {
    if cache.is_current() {
        return Ok(BTreeSet::new());
    }
    cache.commit(Txn { compares: Vec::new(), ops: vec![Op::Delete { key: key(own) }] }).await?;
    Ok(others(cache, own).collect())
}

/// The other live servers, as far as the watch cache knows.
pub(crate) fn others(cache: &WatchCache, own: SocketAddr) -> impl Iterator<Item = SocketAddr> {
    let prefix = prefix();
    let found = cache.list(prefix.as_str(), None, None, 0, &Selectors::default());
    let keys = found.map(|page| page.items).unwrap_or_default().into_iter();
    let addresses = keys.filter_map(move |cached| prefix.name_of(&cached.key)?.name.parse().ok());
    addresses.filter(move |address| *address != own)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use apiserver_storage::store::Store as _;
    use apiserver_storage::store::late::LateStore;
    use apiserver_storage::store::memory::MemoryStore;
    use machinery_env::Env;

    use super::*;

    #[tokio::test]
    async fn servers_know_each_other_until_they_end() {
        let (env, clock) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let store = Arc::new(LateStore::new(Arc::new(MemoryStore::new(env.clone()))));
        let cache = WatchCache::open(&env, store.clone(), Vec::new()).await.unwrap();
        let [a, b]: [SocketAddr; 2] = ["10.0.0.1:6443", "[::1]:6443"].map(|address| address.parse().unwrap());
        assert_eq!(renew(&cache, a).await.unwrap(), [a].into());
        assert_eq!(renew(&cache, b).await.unwrap(), [a, b].into());
        assert_eq!(release(&cache, b).await.unwrap(), [a].into());
        assert_eq!(renew(&cache, a).await.unwrap(), [a].into());
        clock.advance(TTL + Duration::from_secs(1));
        store.tick().await.unwrap();
        assert_eq!(renew(&cache, b).await.unwrap(), [b].into());
    }
}
