//! The API server over its store, and its bootstrap objects.

use std::net::Ipv4Addr;
use std::sync::Arc;

use apiserver::bootstrap::cidr_migration::CidrMigration;
use apiserver::server::{self, ApiService, Apiserver};
use apiserver_auth::pki;
use apiserver_resources::objects::ObjectReader as _;
use machinery_client::Informer;
use machinery_env::Env;
use machinery_roles::Stops;
use tools_command::data_dir::write_atomically;

use super::Ground;
use super::addresses::Addresses;
use super::keys::Keys;
use super::modules::Modules;
use super::store::ClusterStore;
use crate::compose::identities::ComponentIdentity;
use crate::compose::image_metadata::chain_extensions;
use crate::compose::metrics::Metrics;
use crate::compose::{address_change, apiserver as role, node_configuration, registry, storage};
use crate::config::ClusterConfig;

/// The API server, which listens when its role starts.
pub(in crate::compose) struct Api {
    pub(in crate::compose) apiserver: Apiserver,
    /// The in-process API server.
    pub(in crate::compose) service: ApiService,
    /// Its persistent bootstrap state.
    pub(in crate::compose) bootstrap: apiserver::bootstrap::Cluster,
    /// One cache for controllers and scheduler: each object is stored and decoded once.
    pub(in crate::compose) informer: Arc<Informer>,
}

impl Api {
    /// Reads the store.
    ///
    /// # Errors
    /// If the store's content can't be used.
    pub(super) async fn open(
        env: &Env,
        config: &ClusterConfig,
        (store, addresses, keys, modules): (&ClusterStore, &Addresses, &Keys, &Modules),
        (metrics, stops): (&Metrics, &Stops),
    ) -> anyhow::Result<Self> {
        let apiserver = Apiserver::open_with(
            env,
            store.store.clone(),
            server::Config {
                address: addresses.api.to_string(),
                signing_key: keys.pki.service_account().clone(),
                services: addresses.network.of_services(),
                toleration_seconds: config.api.toleration_seconds.into(),
                features: config.features,
                kubelets: role::kubelets(env, &keys.pki)?,
                registry: metrics.registry(),
            },
            chain_extensions(
                env,
                &config.nodes,
                &config.api,
                modules.images.as_ref(),
                (&modules.blobs, &modules.registry),
            ),
        )
        .await?;
        let service = apiserver.service();
        let manager = ComponentIdentity::ControllerManager.client(env, &service);
        let bootstrap = apiserver::bootstrap::Cluster {
            service_ip: addresses.service_ip.into(),
            services: addresses.network.services,
            address: addresses.api,
            ca_pem: keys.pki.ca_pem().to_owned(),
            alternative_names: config.api.options.tls_san.clone(),
        };
        Ok(Self { apiserver, service, bootstrap, informer: Informer::new(manager, env.clone(), &stops.components) })
    }
}

/// Writes the bootstrap objects and the kubeconfig.
pub(super) async fn bootstrap(ground: &Ground) -> anyhow::Result<()> {
    let Ground { env, config, data, addresses, keys, modules, api, .. } = ground;
    let migrations: Vec<CidrMigration> = addresses.network.migrations(kubernetes_address(&api.apiserver));
    if let Some(other) = api.apiserver.other_servers(addresses.api).first().filter(|_| !migrations.is_empty()) {
        anyhow::bail!(
            "the cluster's addresses ({}) are in use on this machine, and can't move while the API server at \
             {other} runs: stop one of the two, or what uses the addresses",
            migrations[0].from
        );
    }
    api.apiserver.migrate_cidrs(&migrations).await?;
    api.apiserver.bootstrap(&api.bootstrap).await?;
    let kubeconfig = pki::kubeconfig(&addresses.server_url(), keys.pki.ca_pem(), "coracle", keys.pki.admin());
    write_atomically(&data.kubeconfig(), kubeconfig.as_bytes())?;
    let admin = ground.client(ComponentIdentity::Admin);
    registry::advertise(&admin, &modules.registry.address).await?;
    let instance = data.instance(env)?;
    let pool = config.controllers.balancers.pool();
    node_configuration::publish(&admin, &addresses.network, pool, (&instance, &modules.registry.address)).await?;
    if config.nodes.count > 0 {
        storage::create_default_class(&admin).await?;
    }
    address_change::announce(&admin, env, &migrations).await
}

/// The address of the Service `kubernetes` in the last run.
fn kubernetes_address(apiserver: &Apiserver) -> Option<Ipv4Addr> {
    let service = apiserver.objects().get("", "services", "default", "kubernetes")?;
    service["spec"]["clusterIP"].as_str()?.parse().ok()
}
