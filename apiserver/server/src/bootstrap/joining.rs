//! What an API server takes from a store that several servers share, before it serves: the cluster's addresses, and
//! whether it has the cluster's keys.

use apiserver_storage::store::{Compare, Op, Outcome, Record, Store, StoreError, Txn};
use ipnet::Ipv4Net;
use machinery_api::{ObjectName, StorageKey};
use serde_json::{Value, json};

use crate::live_servers;

/// The fingerprints of the keys that all API servers of a cluster share, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterKeys {
    /// SHA-256 of the authority's certificate (DER).
    pub authority: String,
    /// The id of the key that signs service account tokens.
    pub service_account: String,
}

/// The key in the store, and its name below the store's prefix for messages.
fn keys_key() -> StorageKey {
    StorageKey::object("coracle", ObjectName::new("", "keys"))
}

/// The name of the record of a cluster's keys, below the store's prefix.
#[must_use]
pub fn keys_record() -> String {
    keys_key().within_registry().to_owned()
}

/// The prefix of the keys of live servers, which no backup has.
#[must_use]
pub fn keys_of_live_servers() -> String {
    live_servers::prefix().as_str().to_owned()
}

/// The keys of the cluster in a store; `None` in a new one.
///
/// # Errors
/// On errors of the store.
pub async fn stored_keys(store: &dyn Store) -> Result<Option<ClusterKeys>, StoreError> {
    let found = store.get(keys_key().as_str(), None).await?;
    Ok(found.map(|entry| read_keys(&entry.record)))
}

/// Records the keys in a new store. In another one, returns which of them is not the cluster's.
///
/// # Errors
/// On errors of the store.
pub async fn claim_keys(store: &dyn Store, own: &ClusterKeys) -> Result<Option<&'static str>, StoreError> {
    let key: String = keys_key().into();
    let record = Record::of(&json!({"authority": own.authority, "serviceAccountKey": own.service_account}));
    let txn = Txn {
        compares: vec![Compare { key: key.clone(), modified: 0 }],
        ops: vec![Op::Put { key, record, ttl: None }],
    };
    let Outcome::Conflict(found) = store.txn(txn).await? else { return Ok(None) };
    let Some(found) = found.into_iter().flatten().next() else { return Ok(None) };
    let found = read_keys(&found.record);
    let other_authority = (found.authority != own.authority).then_some("authority (ca.crt)");
    let other_key = (found.service_account != own.service_account).then_some("key of service account tokens (sa.key)");
    Ok(other_authority.or(other_key))
}

fn read_keys(record: &Record) -> ClusterKeys {
    let object: Value = serde_json::from_slice(&record.body()).unwrap_or_default();
    let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    ClusterKeys { authority: text("authority"), service_account: text("serviceAccountKey") }
}

/// The first block of the ServiceCIDR `kubernetes`: the cluster's own; `None` in a new store.
///
/// # Errors
/// On errors of the store.
pub async fn stored_service_cidr(store: &dyn Store) -> Result<Option<Ipv4Net>, StoreError> {
    let key = StorageKey::object("servicecidrs", ObjectName::new("", "kubernetes"));
    let Some(entry) = store.get(key.as_str(), None).await? else { return Ok(None) };
    let object: Value = serde_json::from_slice(&entry.record.body()).unwrap_or_default();
    let cidrs = object["spec"]["cidrs"].as_array().into_iter().flatten();
    Ok(cidrs.filter_map(|cidr| cidr.as_str()?.parse().ok()).next())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use apiserver_storage::store::memory::MemoryStore;
    use machinery_env::Env;

    use super::*;
    use crate::bootstrap::Cluster;
    use crate::server::{Apiserver, Config};

    #[tokio::test]
    async fn servers_of_one_store_have_the_same_keys_and_addresses() {
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let store = Arc::new(MemoryStore::new(env.clone()));
        assert_eq!(stored_keys(&*store).await.unwrap(), None);
        let keys = ClusterKeys { authority: "a".into(), service_account: "s".into() };
        assert_eq!(claim_keys(&*store, &keys).await.unwrap(), None);
        assert_eq!(claim_keys(&*store, &keys).await.unwrap(), None);
        assert_eq!(stored_keys(&*store).await.unwrap(), Some(keys.clone()));
        for (other, what) in [
            (ClusterKeys { authority: "b".into(), ..keys.clone() }, "authority"),
            (ClusterKeys { service_account: "t".into(), ..keys.clone() }, "sa.key"),
        ] {
            let refused = claim_keys(&*store, &other).await.unwrap();
            assert!(refused.is_some_and(|refused| refused.contains(what)), "{refused:?}");
        }
        assert_eq!(keys_record(), "/coracle/keys");

        assert_eq!(stored_service_cidr(&*store).await.unwrap(), None);
        let server = Apiserver::open(&env, store.clone(), Config::of_tests()).await.unwrap();
        let cluster = Cluster {
            service_ip: "10.96.0.1".parse().unwrap(),
            services: "10.96.0.0/12".parse().unwrap(),
            address: "127.0.0.1:6443".parse().unwrap(),
            ca_pem: "ca".into(),
            alternative_names: Vec::new(),
        };
        server.bootstrap(&cluster).await.unwrap();
        assert_eq!(stored_service_cidr(&*store).await.unwrap(), Some("10.96.0.0/12".parse().unwrap()));
    }
}
