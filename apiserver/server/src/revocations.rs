//! The revoked client certificates of all API servers of a cluster. Each publishes the list of its own folder in the
//! store; every server refuses the certificates of all lists. A list outlives its server.
//!
//! With the embedded store there is one server, and its folder has the list.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use apiserver_auth::certificates::Fingerprint;
use apiserver_storage::cache::{Selectors, WatchCache};
use apiserver_storage::store::{Op, Record, StoreError, Txn};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use machinery_api::{ObjectName, StorageKey, StoragePrefix, StorageScope};
use serde_json::{Value, json};

/// Below this prefix a server's lists are in folders of its name.
const PREFIX: &str = "coracle/revoked";
/// The fingerprints of one record: half a megabyte, within etcd's limit of a request.
const PART_MAX: usize = 10_000;

fn key(server: &str, part: usize) -> String {
    StorageKey::object(PREFIX, ObjectName::new(server, &part.to_string())).into()
}

/// The records of a server's list, by key.
fn parts(server: &str, revoked: &HashSet<Fingerprint>) -> BTreeMap<String, Value> {
    let sorted: Vec<String> = revoked.iter().collect::<BTreeSet<_>>().iter().map(|one| STANDARD.encode(one)).collect();
    let chunks = sorted.chunks(PART_MAX).enumerate();
    chunks.map(|(part, fingerprints)| (key(server, part), json!({"sha256": fingerprints}))).collect()
}

/// The stored records of a scope, by key.
fn stored(cache: &WatchCache, scope: &StorageScope) -> BTreeMap<String, Value> {
    let found = cache.list(scope.as_str(), None, None, 0, &Selectors::default());
    let items = found.map(|page| page.items).unwrap_or_default().into_iter();
    items.map(|item| (item.key.to_string(), item.value())).collect()
}

/// The certificates that any server of the cluster has revoked, as far as the watch cache knows.
pub(crate) fn all(cache: &WatchCache) -> HashSet<Fingerprint> {
    let records = stored(cache, &StoragePrefix::new(PREFIX).all()).into_values();
    let lists = records.flat_map(|record| record["sha256"].as_array().cloned().unwrap_or_default());
    lists.filter_map(|one| STANDARD.decode(one.as_str()?).ok()?.try_into().ok()).collect()
}

/// Replaces the list of one server, if it changed.
///
/// # Errors
/// On errors of the store.
pub(crate) async fn publish(
    cache: &WatchCache,
    server: &str,
    revoked: &HashSet<Fingerprint>,
) -> Result<(), StoreError> {
    if cache.is_current() {
        return Ok(());
    }
    let (old, new) = (stored(cache, &StoragePrefix::new(PREFIX).namespace(server)), parts(server, revoked));
    let mut ops = Vec::new();
    for (key, list) in &new {
        if old.get(key) != Some(list) {
            ops.push(Op::Put { key: key.clone(), record: Record::of(list), ttl: None });
        }
    }
    ops.extend(old.into_keys().filter(|key| !new.contains_key(key)).map(|key| Op::Delete { key }));
    for op in ops {
        cache.commit(Txn { compares: Vec::new(), ops: vec![op] }).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use apiserver_storage::store::late::LateStore;
    use apiserver_storage::store::memory::MemoryStore;
    use machinery_env::Env;

    use super::*;

    #[tokio::test]
    async fn revocations_of_one_server_hold_for_all() {
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let store = Arc::new(LateStore::new(Arc::new(MemoryStore::new(env.clone()))));
        let cache = WatchCache::open(&env, store, Vec::new()).await.unwrap();
        let many: HashSet<Fingerprint> = (0..=PART_MAX as u32)
            .map(|n| {
                let mut one = [7; 32];
                one[..4].copy_from_slice(&n.to_le_bytes());
                one
            })
            .collect();
        let lost: HashSet<Fingerprint> = [[0xab; 32]].into();
        publish(&cache, "a", &many).await.unwrap();
        publish(&cache, "ab", &lost).await.unwrap();
        cache.sync().await.unwrap();
        assert_eq!(all(&cache), &many | &lost);
        let before = cache.revision();
        publish(&cache, "a", &many).await.unwrap();
        assert_eq!(cache.revision(), before, "an equal list is not written again");
        publish(&cache, "a", &HashSet::new()).await.unwrap();
        cache.sync().await.unwrap();
        assert_eq!(all(&cache), lost);
    }
}
