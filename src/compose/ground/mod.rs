//! Shared resources of a cluster's roles, by subject: store, addresses, keys, modules, API server and pods. Nothing here runs
//! by itself.

pub(super) mod addresses;
mod api;
mod keys;
mod modules;
mod pods;
mod store;

use machinery_env::Env;
use machinery_roles::Stops;
use machinery_serve::accept::Listener;
use tokio_util::sync::CancellationToken;
use tools_command::data_dir::{DataDir, Lock};
use wasm_runtime::engine::Engine;

use self::addresses::Addresses;
use self::api::Api;
use self::keys::Keys;
use self::modules::Modules;
use self::pods::Pods;
use self::store::ClusterStore;
use super::Part;
use super::identities::ComponentIdentity;
use super::metrics::Metrics;
use crate::config::ClusterConfig;

/// Shared resources of the roles of a cluster.
pub(super) struct Ground {
    pub(super) env: Env,
    pub(super) config: ClusterConfig,
    pub(super) data: DataDir,
    pub(super) stops: Stops,
    /// Cancelled when the cluster is ready: starts tasks that no start waits for.
    pub(super) ready: CancellationToken,
    pub(super) metrics: Metrics,
    pub(super) store: ClusterStore,
    pub(super) addresses: Addresses,
    pub(super) keys: Keys,
    pub(super) modules: Modules,
    pub(super) api: Api,
    pub(super) pods: Pods,
    pub(super) lock: Lock,
}

/// Bound sockets of the servers.
pub(super) struct Listeners {
    pub(super) api: Listener,
    pub(super) registry: Listener,
}

impl Ground {
    /// Claims folder and addresses, opens the store, and writes the bootstrap objects. `prepared` is the engine, if it was
    /// made before.
    ///
    /// # Errors
    /// If one of them is unavailable.
    pub(super) async fn prepare(
        env: &Env,
        (config, prepared): (ClusterConfig, Option<Engine>),
        up_to: Part,
        data: &DataDir,
    ) -> anyhow::Result<(Self, Listeners)> {
        let lock = data.lock()?;
        let mut store = ClusterStore::open(env, &config.api, data).await?;
        let (addresses, api_listener) = Addresses::claim(&config, &store, up_to, data).await?;
        let keys = Keys::open(env, &config.api.options, &addresses, data)?;
        store.elect(env, &keys.pki, data).await?;
        let (metrics, stops) = (Metrics::new(&config.features), Stops::default());
        let (modules, registry_listener) = Modules::open(env, (&config, prepared), data, &keys.pki)?;
        let api = Api::open(env, &config, (&store, &addresses, &keys, &modules), (&metrics, &stops)).await?;
        let pods = Pods::new(env, &config, &addresses, &keys)?;
        let ground = Self {
            env: env.clone(),
            data: data.clone(),
            ready: CancellationToken::new(),
            config,
            stops,
            metrics,
            store,
            addresses,
            keys,
            modules,
            api,
            pods,
            lock,
        };
        api::bootstrap(&ground).await?;
        Ok((ground, Listeners { api: api_listener, registry: registry_listener }))
    }

    /// A client of this process's API server.
    pub(super) fn client(&self, identity: ComponentIdentity) -> kube::Client {
        identity.client(&self.env, &self.api.service)
    }
}
