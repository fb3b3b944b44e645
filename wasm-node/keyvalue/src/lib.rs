//! The stores of `wasi:keyvalue`: the data of a namespace's pods, with a quota.
//!
//! - `files`: a file per namespace on this node, by redb.
//! - `shared`: a Redis, or a server of its protocol, that several nodes share; without the feature `redis`, its absence.
//! - [`options`]: `--keyvalue` and the flags of its credentials.
//!
//! [`NodeStores`] is what a runtime takes: [`KeyvalueStores`] of `runtime-api`, whose operations and errors both kinds
//! share. `contract.rs` has the tests of both. Absent on purpose: an engine, guests, and Kubernetes.
#![warn(missing_docs)]

#[cfg(test)]
mod contract;
mod files;
mod names;
pub mod options;
#[cfg(feature = "redis")]
mod shared;
#[cfg(not(feature = "redis"))]
#[path = "shared_absent.rs"]
mod shared;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use machinery_env::Env;
use runtime_api::KeyvalueOwner;
use runtime_api::disk::FileWork;
use runtime_api::keyvalue::{KeyvalueStore, KeyvalueStores};
use runtime_api::ledger::Ledger;
use tokio::runtime::Handle;

use files::{FileStore, FileStores};
use shared::SharedStores;
pub use shared::{SharedStoreConfig, SharedStoreFiles};

/// Maximum keys of one page of a list.
const PAGE_KEYS_MAX: usize = 1000;

/// Limits of one namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Quota {
    /// Bytes of names, keys and values, and [`KEY_COST_BYTES`] for each key.
    bytes: u64,
    /// Keys of all buckets.
    keys: u64,
}

/// Accounted bytes of a key beside its characters.
const KEY_COST_BYTES: u64 = 64;
/// The [`Quota`] of each namespace.
const QUOTA: Quota = Quota { bytes: 64 << 20, keys: 100_000 };

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The stores of a process's nodes: in files, and in place of them in a shared store where one is configured. Files of an
/// earlier run without it stay until their namespaces are deleted.
pub struct NodeStores {
    files: Arc<FileStores>,
    shared: Option<Arc<SharedStores>>,
}

impl NodeStores {
    /// Stores in files of `folder`, which is created with mode 0700 at the first write, or in a `shared` store, to which
    /// `handle` connects at the first call. `ledger`: the node's, which accounts descriptors of open files.
    #[must_use]
    pub fn new(
        folder: PathBuf,
        shared: Option<SharedStoreConfig>,
        ledger: &Arc<Ledger>,
        env: &Env,
        handle: &Handle,
    ) -> Self {
        let shared = shared.map(|config| SharedStores::new(config, QUOTA, env, handle));
        Self { files: FileStores::new(folder, QUOTA, ledger), shared }
    }
}

#[async_trait]
impl KeyvalueStores for NodeStores {
    fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    fn open(&self, owner: &KeyvalueOwner, files: Arc<dyn FileWork>) -> io::Result<Arc<dyn KeyvalueStore>> {
        match &self.shared {
            Some(shared) => Ok(Arc::new(shared.of(owner)?)),
            None => Ok(Arc::new(FileStore { namespace: self.files.of(owner)?, files })),
        }
    }

    async fn owners(&self, cluster: Option<&str>) -> io::Result<Vec<KeyvalueOwner>> {
        if let Some(cluster) = cluster {
            let Some(shared) = &self.shared else { return Ok(Vec::new()) };
            return shared.owners(cluster).await.map_err(io::Error::other);
        }
        let files = self.files.clone();
        tokio::task::spawn_blocking(move || files.owners()).await?
    }

    async fn remove(&self, owner: &KeyvalueOwner) -> io::Result<()> {
        if owner.cluster.is_some() {
            let Some(shared) = &self.shared else { return Ok(()) };
            return shared.remove(owner).await.map_err(io::Error::other);
        }
        let (files, owner) = (self.files.clone(), owner.clone());
        tokio::task::spawn_blocking(move || files.remove(&owner)).await?
    }

    fn share_files(&self, with_another_process: bool) {
        self.files.share(with_another_process);
    }
}
