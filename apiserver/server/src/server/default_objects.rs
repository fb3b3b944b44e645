//! The default objects of a cluster: written at a start, and the vital ones reconciled while the server runs, with the
//! endpoints of all live API servers.

use std::collections::HashSet;
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
        let live = live_servers::renew(&registry.cache, cluster.address).await;
        let live = live.map_err(|error| store_error(&error))?;
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
