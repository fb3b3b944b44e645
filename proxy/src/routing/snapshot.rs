//! Routes by Service and by ClusterIP for the request path. Shards are replaced one at a time and readers take no lock, so that
//! no request waits for a table update.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use machinery_api::ObjectKey;

use crate::names::cluster_name::in_cluster;
use crate::routing::table::{Change, EndpointName, ServiceRoutes};

/// Shards of a map. A change copies one shard: some 150 pointers with 10,000 Services.
const SHARDS: usize = 64;

/// The routes that were last installed.
#[derive(Debug, Default)]
pub(crate) struct RouteSnapshot {
    by_service: Sharded<Arc<ObjectKey>, Arc<ServiceRoutes>>,
    by_ip: Sharded<IpAddr, Arc<ServiceRoutes>>,
    names: Sharded<IpAddr, Arc<[EndpointName]>>,
    /// The zones of this machine's nodes.
    zones: ArcSwap<BTreeMap<String, String>>,
    /// The namespaces that have a Service.
    namespaces: ArcSwap<HashSet<Arc<str>>>,
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
        routes.is_some_and(|routes| {
            endpoint.is_none_or(|name| !routes.published.of_host(Some(&name.to_ascii_lowercase())).is_empty())
        })
    }

    /// The zone of one of this machine's nodes.
    pub(crate) fn zone_of(&self, node: &str) -> Option<String> {
        self.zones.load().get(node).cloned()
    }

    /// Whether a namespace has a Service.
    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.load().contains(namespace)
    }

    /// The cluster DNS names of an address: of the Service that has it as ClusterIP, else of endpoints.
    pub(crate) fn names_of(&self, ip: IpAddr) -> Vec<String> {
        let routes = self.at(ip).filter(|routes| routes.published.cluster_ips.contains(&ip));
        if let Some(key) = routes.and_then(|routes| routes.key.clone()) {
            return vec![in_cluster(None, &key)];
        }
        let endpoints = self.endpoint_names(ip);
        endpoints.iter().map(|name| in_cluster(Some(&name.host), &name.service)).collect()
    }

    /// The names of an endpoint's address: those with a host name of their own, else those made from the address.
    fn endpoint_names(&self, ip: IpAddr) -> Vec<EndpointName> {
        let all = self.names.get(&ip);
        let all = all.as_deref().unwrap_or_default();
        let own = all.iter().any(|name| name.named);
        all.iter().filter(|name| name.named == own).cloned().collect()
    }

    /// Installs a change of the table.
    pub(crate) fn install(&self, change: &Change) {
        if let Some(service) = &change.service {
            self.by_service.set(&[(Arc::new(service.clone()), change.routes.clone())]);
        }
        self.by_ip.set(&change.cluster_ips);
        self.names.set(&change.reverse);
        let zones = self.zones.load();
        if change.zones.iter().any(|(node, zone)| zones.get(node) != Some(zone)) {
            let mut zones = BTreeMap::clone(&zones);
            zones.extend(change.zones.iter().cloned());
            self.zones.store(Arc::new(zones));
        }
        if let Some((namespace, exists)) = &change.namespace {
            self.namespaces.rcu(|all| {
                let mut all = HashSet::clone(all);
                match exists {
                    true => all.insert(namespace.clone()),
                    false => all.remove(namespace),
                };
                all
            });
        }
    }
}

type Shard<K, V> = ArcSwap<HashMap<K, V>>;

#[derive(Debug)]
struct Sharded<K, V> {
    shards: Box<[Shard<K, V>]>,
    hasher: RandomState,
}

impl<K, V> Default for Sharded<K, V> {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| ArcSwap::default()).collect(), hasher: RandomState::new() }
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Sharded<K, V> {
    fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.shards[self.shard(key)].load().get(key).cloned()
    }

    /// Sets or removes values. Each shard is copied once, however many of its keys change.
    fn set(&self, changes: &[(K, Option<V>)]) {
        let mut by_shard: BTreeMap<usize, Vec<&(K, Option<V>)>> = BTreeMap::new();
        for change in changes {
            by_shard.entry(self.shard(&change.0)).or_default().push(change);
        }
        for (index, changes) in by_shard {
            self.shards[index].rcu(|shard| {
                let mut shard = HashMap::clone(shard);
                for (key, value) in &changes {
                    match value {
                        Some(value) => shard.insert(key.clone(), value.clone()),
                        None => shard.remove(key),
                    };
                }
                shard
            });
        }
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        // The remainder is less than `SHARDS`.
        usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default()
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
