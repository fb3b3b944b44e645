//! The shared store in a build without the feature `redis`: its flag is an error, and no value of these types exists.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use machinery_env::Env;
use runtime_api::KeyvalueOwner;
use runtime_api::keyvalue::StoreError;
use tokio::runtime::Handle;

use super::Quota;
use super::files::FileStore;

/// Content of the files beside the address.
#[derive(Clone, Default)]
pub struct SharedStoreFiles {
    /// The password's file.
    pub password: Option<PathBuf>,
    /// Authorities of the server's certificate (PEM).
    pub ca_pem: Option<Vec<u8>>,
    /// Client certificate and its key (PEM).
    pub identity_pem: Option<(Vec<u8>, Vec<u8>)>,
}

/// A shared store, of which this build has none.
#[derive(Debug, Clone)]
pub enum SharedStoreConfig {}

impl SharedStoreConfig {
    /// Rejects each address.
    ///
    /// # Errors
    /// Always: how to build with Redis.
    pub fn new(_: &str, _: SharedStoreFiles) -> Result<Self, String> {
        Err("this build has no Redis; build with --features redis".to_owned())
    }

    /// The password.
    ///
    /// # Errors
    /// Never.
    pub fn password(&self) -> Result<Option<String>, String> {
        match *self {}
    }
}

/// Shared stores, of which this build has none.
pub(crate) enum SharedStores {}

impl SharedStores {
    pub(crate) fn new(config: SharedStoreConfig, _: Quota, _: &Env, _: &Handle) -> Arc<Self> {
        match config {}
    }

    pub(crate) fn of(&self, _: &KeyvalueOwner) -> io::Result<FileStore> {
        match *self {}
    }

    pub(crate) async fn owners(&self, _: &str) -> Result<Vec<KeyvalueOwner>, StoreError> {
        match *self {}
    }

    pub(crate) async fn remove(&self, _: &KeyvalueOwner) -> Result<(), StoreError> {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_rejected_with_the_way_to_build_it() {
        let error = SharedStoreConfig::new("redis://h", SharedStoreFiles::default()).unwrap_err();
        assert_eq!(error, "this build has no Redis; build with --features redis");
    }
}
