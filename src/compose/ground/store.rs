//! The store of a cluster, and this process's name among those that share it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use apiserver::server::read_first_format;
use apiserver_auth::pki::Pki;
use apiserver_storage::options::StoreConfig;
use apiserver_storage::store::Store;
use apiserver_storage::store::embedded::{EmbeddedStore, Options};
use apiserver_storage::store::etcd::EtcdStore;
use machinery_env::Env;
use tools_command::data_dir::DataDir;
use tools_command::environment::host_name;

use crate::compose::preflight::embedded_path;
use crate::compose::shared_store;
use crate::config::ApiServerConfig;
use tools_joining::accept::fetch_missing;

/// The store of a cluster.
pub(in crate::compose) struct ClusterStore {
    pub(in crate::compose) store: Arc<dyn Store>,
    /// `None` over etcd.
    pub(in crate::compose) embedded: Option<Arc<EmbeddedStore>>,
    /// This process's name among those that share the store. `None` with the embedded store: the data folder's lock
    /// excludes others, so there is no election, and a start needn't wait for an old lease.
    pub(in crate::compose) candidate: Option<String>,
}

impl ClusterStore {
    /// Opens the store. A server that joins a cluster gets its keys.
    ///
    /// # Errors
    /// If the store can't be opened, or the keys can't be had.
    pub(super) async fn open(env: &Env, config: &ApiServerConfig, data: &DataDir) -> anyhow::Result<Self> {
        let (store, embedded) = open_store(env, &config.store, data).await?;
        if let Some(join) = &config.join {
            fetch_missing(env, join, &data.pki()).await?;
        }
        Ok(Self { store, embedded, candidate: None })
    }

    /// Gives this process a name, if others may share the store, and checks that they have the same keys.
    ///
    /// # Errors
    /// If the keys are others, or the store fails.
    pub(super) async fn elect(&mut self, env: &Env, pki: &Pki, data: &DataDir) -> anyhow::Result<()> {
        if self.embedded.is_none() {
            shared_store::check_keys(&*self.store, pki, data).await?;
            // The same at the next start of this folder, so that a process which was killed leads again at once.
            self.candidate = Some(format!("{}_{}", host_name(), data.candidate(env)?));
        }
        Ok(())
    }

    /// The name of this API server among those that share the store; `None` with a store of its own.
    ///
    /// # Errors
    /// If its file can't be read or written.
    pub(in crate::compose) fn instance(&self, env: &Env, data: &DataDir) -> anyhow::Result<Option<String>> {
        if self.candidate.is_none() {
            return Ok(None);
        }
        Ok(Some(format!("{}_{}", host_name(), data.instance(env)?)))
    }
}

/// Opens the store; the embedded one is returned twice.
async fn open_store(
    env: &Env,
    config: &StoreConfig,
    data: &DataDir,
) -> anyhow::Result<(Arc<dyn Store>, Option<Arc<EmbeddedStore>>)> {
    if let StoreConfig::Etcd(etcd) = config {
        let store = EtcdStore::open(etcd, env.clone()).await;
        return Ok((Arc::new(store.with_context(|| format!("--store etcd:{}", etcd.endpoints.join(",")))?), None));
    }
    let store = open_embedded(env, embedded_path(config, data)?, data).await?;
    Ok((store.clone(), Some(store)))
}

/// Opens an embedded store, and rejects one that has lost its cluster.
async fn open_embedded(env: &Env, path: PathBuf, data: &DataDir) -> anyhow::Result<Arc<EmbeddedStore>> {
    data.check_store_not_lost(&path, !path.join("format").exists())?;
    let store = {
        let (env, path) = (env.clone(), path.clone());
        tokio::task::spawn_blocking(move || {
            EmbeddedStore::open(
                &path,
                env,
                Options { read_first_format: Box::new(read_first_format), ..Options::default() },
            )
        })
        .await??
    };
    data.check_store_not_lost(&path, store.revision() == 0)?;
    store.start()?;
    Ok(store)
}
