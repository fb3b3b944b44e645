//! The checks of a takeover before its commit: a mistake that would fail the start afterwards leaves the running process as it
//! is. They change nothing, as the running process still owns the data folder.

use std::path::PathBuf;

use anyhow::Context as _;
use apiserver_auth::pki;
use apiserver_storage::options::StoreConfig;
use apiserver_storage::store::embedded::EmbeddedStore;
use apiserver_storage::store::etcd::EtcdStore;
use machinery_env::Env;

use super::{Part, shared_store};
use crate::config::ClusterConfig;
use crate::network::Network;
use tools_command::data_dir::DataDir;

/// Checks store, keys and addresses of a cluster.
///
/// # Errors
/// If the start would fail for one of them.
pub(crate) async fn check_cluster(env: &Env, config: &ClusterConfig, data: &DataDir) -> anyhow::Result<()> {
    pki::check(&data.pki())?;
    let network = match &config.api.store {
        StoreConfig::Etcd(etcd) => {
            let store = EtcdStore::open(etcd, env.clone()).await;
            let store = store.with_context(|| format!("--store etcd:{}", etcd.endpoints.join(",")))?;
            // Without nodes it claims no addresses, which the running process has.
            Some(shared_store::network(&store, &config.network, data, Part::Control).await?)
        }
        embedded => {
            let path = embedded_path(embedded, data)?;
            data.check_store_not_lost(&path, !path.join("format").exists())?;
            EmbeddedStore::check_format(&path)?;
            Network::remembered(&config.network, &data.network())?
        }
    };
    network.map(|network| network.check(config.controllers.balancers.pool())).transpose()?;
    Ok(())
}

/// The folder of an embedded store.
///
/// # Errors
/// If the working folder isn't known.
pub(super) fn embedded_path(store: &StoreConfig, data: &DataDir) -> anyhow::Result<PathBuf> {
    match store {
        StoreConfig::Folder(path) => {
            std::path::absolute(path).with_context(|| format!("--store sled:{}", path.display()))
        }
        _ => Ok(data.store()),
    }
}
