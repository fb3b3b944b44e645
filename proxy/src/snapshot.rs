//! Routes by Service and by ClusterIP for the request path. Shards are replaced one at a time and readers take no lock, so that
//! no request waits for a table update.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use machinery_api::ObjectKey;

use crate::table::{Change, ServiceRoutes};

/// Shards of a map. A change copies one shard: some 150 pointers with 10,000 Services.
const SHARDS: usize = 64;

/// The routes that were last installed.
#[derive(Debug, Default)]
pub(crate) struct RouteSnapshot {
    by_service: Sharded<Arc<ObjectKey>>,
    by_ip: Sharded<IpAddr>,
}

impl RouteSnapshot {
    /// The routes of a Service.
    pub(crate) fn of(&self, service: &ObjectKey) -> Option<Arc<ServiceRoutes>> {
        self.by_service.get(service)
    }

    /// The routes of the Service that has this ClusterIP.
    pub(crate) fn at(&self, ip: IpAddr) -> Option<Arc<ServiceRoutes>> {
        self.by_ip.get(&ip)
    }

    /// Whether a Service exists, and an endpoint of the given host name.
    pub(crate) fn exists(&self, service: &ObjectKey, endpoint: Option<&str>) -> bool {
        let routes = self.of(service);
        routes.is_some_and(|routes| endpoint.is_none_or(|name| routes.hostnames.contains(name)))
    }

    /// Installs a change of the table.
    pub(crate) fn install(&self, change: &Change) {
        if let Some(service) = &change.service {
            self.by_service.set(Arc::new(service.clone()), change.routes.clone());
        }
        for (ip, routes) in &change.cluster_ips {
            self.by_ip.set(*ip, routes.clone());
        }
    }
}

type Shard<K> = ArcSwap<HashMap<K, Arc<ServiceRoutes>>>;

#[derive(Debug)]
struct Sharded<K> {
    shards: Box<[Shard<K>]>,
    hasher: RandomState,
}

impl<K> Default for Sharded<K> {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| ArcSwap::default()).collect(), hasher: RandomState::new() }
    }
}

impl<K: Clone + Eq + Hash> Sharded<K> {
    fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<Arc<ServiceRoutes>>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.shard(key).load().get(key).cloned()
    }

    fn set(&self, key: K, routes: Option<Arc<ServiceRoutes>>) {
        self.shard(&key).rcu(|shard| {
            let mut shard = HashMap::clone(shard);
            match &routes {
                Some(routes) => shard.insert(key.clone(), routes.clone()),
                None => shard.remove(&key),
            };
            shard
        });
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> &Shard<K> {
        // The remainder is less than `SHARDS`.
        &self.shards[usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_see_a_change_and_keep_their_snapshot() {
        let snapshot = RouteSnapshot::default();
        let key = |n: usize| ObjectKey::new("shop", format!("s{n}"));
        let ip = |n: u8| IpAddr::from([127, 64, 0, n]);
        let change = |n: u8, routes: Option<Arc<ServiceRoutes>>| Change {
            service: Some(key(n.into())),
            cluster_ips: vec![(ip(n), routes.clone())],
            routes,
            ..Change::default()
        };
        for n in 0..200 {
            snapshot.install(&change(n, Some(Arc::default())));
        }
        let held = snapshot.of(&key(7)).unwrap();
        assert!(Arc::ptr_eq(&held, &snapshot.at(ip(7)).unwrap()));
        snapshot.install(&change(7, None));
        assert!(snapshot.of(&key(7)).is_none() && snapshot.at(ip(7)).is_none() && !snapshot.exists(&key(7), None));
        assert_eq!((0..200).filter(|n| snapshot.exists(&key(*n), None)).count(), 199);
        assert!(!snapshot.exists(&key(8), Some("a-0")), "no such endpoint");
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
