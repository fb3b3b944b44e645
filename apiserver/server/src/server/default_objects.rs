//! The default objects of a cluster: written at a start, and the vital ones reconciled while the server runs, with the
//! endpoints of all live API servers.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use apiserver_auth::certificates::Fingerprint;
use futures::future::BoxFuture;
use machinery_api::ApiError;
use tokio_util::sync::CancellationToken;

use super::Apiserver;
use crate::bootstrap::{self, Cluster};
use crate::registry::store_error;
use crate::{live_servers, revocations};

/// The maximum number of bootstrap plans at a start: several servers may write to a shared store.
const BOOTSTRAP_TRIES_MAX: usize = 3;
/// The time for this server's lines in the record of API servers. Each conflict is another server's success, so the number of
/// tries grows with the number of servers that start at once.
const RECORD_MAX: Duration = Duration::from_secs(20);
/// The longest random pause after a conflict, so that servers which start at once don't keep the same pace.
const RECORD_PAUSE_MAX_MS: u64 = 50;
/// The interval at which vital default objects are reconciled (upstream: 10 s).
const RECONCILE_INTERVAL: Duration = Duration::from_secs(10);

impl Apiserver {
    /// Writes the default objects that are missing or incomplete; after that `/readyz` reports success. Call it once
    /// before serving; [`reconcile_bootstrap_objects`](Self::reconcile_bootstrap_objects) reconciles those that a running cluster needs.
    pub fn bootstrap<'a>(&'a self, cluster: &'a Cluster) -> BoxFuture<'a, Result<(), ApiError>> {
        Box::pin(self.install_default_objects(cluster))
    }

    async fn install_default_objects(&self, cluster: &Cluster) -> Result<(), ApiError> {
        let registry = &self.handler.deps.registry;
        // Other servers publish this one's address as soon as it is live.
        self.record_servers(cluster, &BTreeSet::new()).await?;
        let live = live_servers::renew(&registry.cache, cluster.address).await;
        let live = live.map_err(|error| store_error(&error))?;
        self.record_servers(cluster, &live).await?;
        let desired = bootstrap::desired(cluster, &live, &registry.served.load());
        for _ in 0..BOOTSTRAP_TRIES_MAX {
            let mut writes = bootstrap::plan(&*registry.objects, &desired);
            writes.extend(bootstrap::endpoints::removals(&*registry.objects, &desired));
            writes.extend(bootstrap::retirements(&*registry.objects));
            if writes.is_empty() {
                break;
            }
            registry.install(writes).await?;
            // Other servers may write the same objects at the same time.
            registry.sync_cache().await?;
        }
        self.set_ready();
        Ok(())
    }

    /// Records addresses and names of API servers, of this one at least. Fails if they aren't in the record afterwards: then
    /// nothing may publish them.
    async fn record_servers(&self, cluster: &Cluster, live: &BTreeSet<SocketAddr>) -> Result<(), ApiError> {
        let registry = &self.handler.deps.registry;
        let record = [bootstrap::api_servers(cluster, live)];
        let until = registry.env.elapsed() + RECORD_MAX;
        loop {
            let writes = bootstrap::plan(&*registry.objects, &record);
            if writes.is_empty() {
                return Ok(());
            }
            if registry.env.elapsed() >= until {
                let message = "the record of API servers is changed by others at each try";
                return Err(ApiError::Internal(message.into()));
            }
            registry.install(writes).await?;
            registry.sync_cache().await?;
            if !bootstrap::plan(&*registry.objects, &record).is_empty() {
                registry.env.sleep(Duration::from_millis(registry.env.below(RECORD_PAUSE_MAX_MS))).await;
            }
        }
    }

    /// Migrates Services and nodes to changed address blocks. Call it before [`bootstrap`](Self::bootstrap).
    pub async fn migrate_cidrs(&self, migrations: &[bootstrap::cidr_migration::CidrMigration]) -> Result<(), ApiError> {
        let registry = &self.handler.deps.registry;
        registry.install(bootstrap::cidr_migration::plan(&*registry.objects, migrations)).await
    }

    /// The other live API servers of the cluster.
    #[must_use]
    pub fn other_servers(&self, own: SocketAddr) -> Vec<SocketAddr> {
        live_servers::others(&self.handler.deps.registry.cache, own).collect()
    }

    /// The client certificates that any API server of the cluster has revoked. Empty with the embedded store.
    #[must_use]
    pub fn revoked_certificates(&self) -> HashSet<Fingerprint> {
        revocations::all(&self.handler.deps.registry.cache)
    }

    /// Publishes the certificates that the server of this name revokes, for all servers. Does nothing with the embedded store.
    pub async fn publish_revoked(&self, server: &str, revoked: &HashSet<Fingerprint>) -> Result<(), ApiError> {
        let published = revocations::publish(&self.handler.deps.registry.cache, server, revoked).await;
        published.map_err(|error| store_error(&error))
    }

    /// Reconciles the vital default objects (the first namespaces, the `kubernetes` Service and its endpoints) until
    /// `stop`. Then the other servers' endpoints remain.
    pub async fn reconcile_bootstrap_objects(&self, cluster: &Cluster, stop: CancellationToken) {
        let registry = &self.handler.deps.registry;
        let catalog = registry.served.load();
        let mut reconciled = None;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = registry.env.sleep(RECONCILE_INTERVAL) => {}
            }
            let pass = async {
                let live = live_servers::renew(&registry.cache, cluster.address).await;
                let live = live.map_err(|error| store_error(&error))?;
                self.record_servers(cluster, &live).await?;
                let mut desired = bootstrap::desired(cluster, &live, &catalog);
                desired.retain(bootstrap::Desired::is_vital);
                self.reconcile(&desired, reconciled.as_ref() != Some(&live)).await?;
                Ok::<_, ApiError>(live)
            };
            match pass.await {
                Ok(live) => reconciled = Some(live),
                Err(error) => tracing::warn!(%error, "default objects could not be restored; retrying"),
            }
        }
        let leave = async {
            let live = live_servers::release(&registry.cache, cluster.address).await;
            let live = live.map_err(|error| store_error(&error))?;
            if !live.is_empty() {
                let mut desired = bootstrap::desired(cluster, &live, &catalog);
                desired.retain(bootstrap::Desired::is_endpoint);
                self.reconcile(&desired, true).await?;
            }
            Ok::<_, ApiError>(())
        };
        if let Err(error) = leave.await {
            tracing::warn!(%error, "other API servers remove this one from the Service kubernetes in some seconds");
        }
    }

    /// `changed`: whether servers came or went.
    async fn reconcile(&self, desired: &[bootstrap::Desired], changed: bool) -> Result<(), ApiError> {
        let registry = &self.handler.deps.registry;
        let mut writes = bootstrap::plan(&*registry.objects, desired);
        if changed {
            writes.extend(bootstrap::endpoints::removals(&*registry.objects, desired));
        }
        if writes.is_empty() {
            return Ok(());
        }
        registry.install(writes).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use apiserver_resources::objects::ObjectReader as _;
    use apiserver_storage::store::Store;
    use apiserver_storage::store::late::LateStore;
    use apiserver_storage::store::memory::MemoryStore;
    use machinery_api::names;
    use machinery_env::Env;

    use super::*;
    use crate::bootstrap::joining::keys_of_live_servers;
    use crate::server::Config;

    /// A node's certificate for the server's address may be requested as soon as it is known.
    #[tokio::test]
    async fn names_of_a_server_are_recorded_before_others_can_publish_it() {
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let memory = Arc::new(MemoryStore::new(env.clone()));
        let store = Arc::new(LateStore::new(memory.clone()));
        let server = Apiserver::open(&env, store, Config::of_tests()).await.unwrap();
        let mut cluster = Cluster {
            service_ip: "10.96.0.1".parse().unwrap(),
            services: "10.96.0.0/12".parse().unwrap(),
            address: "192.0.2.1:6443".parse().unwrap(),
            ca_pem: "ca".into(),
            alternative_names: vec!["api.example".into(), "203.0.113.1".into()],
        };
        for address in ["192.0.2.1:6443", "192.0.2.2:6443"] {
            cluster.address = address.parse().unwrap();
            server.bootstrap(&cluster).await.unwrap();
            let written = async |prefix: &str, name: &str| {
                let found = memory.range(prefix, &format!("{prefix}~"), None, 0).await.unwrap();
                let of_it: Vec<u64> = found
                    .entries
                    .iter()
                    .filter(|entry| entry.key.ends_with(name))
                    .map(|entry| entry.modified)
                    .collect();
                assert_eq!(of_it.len(), 1, "{prefix} {name}");
                of_it[0]
            };
            let record = written("/registry/configmaps/kube-system/", names::API_SERVERS).await;
            assert!(record < written(&keys_of_live_servers(), address).await, "{address} is live before its record");
            for endpoints in ["/registry/services/endpoints/default/", "/registry/endpointslices/default/"] {
                assert!(record < written(endpoints, "kubernetes").await, "{endpoints}");
            }
        }
        let record = server.objects().get("", "configmaps", "kube-system", names::API_SERVERS).unwrap();
        let expected = "192.0.2.1\n203.0.113.1\napi.example\n192.0.2.2\n";
        assert_eq!(record["data"][names::API_SERVER_ADDRESSES], expected);
    }
}
