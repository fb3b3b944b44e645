//! Modules: the built-in registry with its blobs and, with nodes, the engine and its images.

use std::sync::Arc;

use apiserver_auth::pki::Pki;
use images::{Images, RegistryAccess};
use machinery_env::Env;
use machinery_serve::accept::Listener;
use oci_registry::BlobStore;
use tools_command::data_dir::DataDir;
use wasm_runtime::engine::Engine;

use crate::compose::{nodes, registry};
use crate::config::ClusterConfig;

/// The registry and what runs its modules.
pub(in crate::compose) struct Modules {
    pub(in crate::compose) registry: RegistryAccess,
    pub(in crate::compose) registry_password: String,
    pub(in crate::compose) blobs: Arc<BlobStore>,
    /// `None` without nodes.
    pub(in crate::compose) engine: Option<Engine>,
    /// `None` without nodes.
    pub(in crate::compose) images: Option<Arc<Images>>,
}

impl Modules {
    /// Listens at the registry's address, and opens its blobs. The engine may have been made before.
    ///
    /// # Errors
    /// If the address is taken, or a folder can't be used.
    pub(super) fn open(
        env: &Env,
        (config, prepared): (&ClusterConfig, Option<Engine>),
        data: &DataDir,
        pki: &Pki,
    ) -> anyhow::Result<(Self, Listener)> {
        let (listener, address) = registry::bind(data, config.api.options.bind)?;
        let registry_password = registry::password(data, env)?;
        let engine = prepared.map_or_else(|| nodes::prepare_engine(env, config, data), |engine| Ok(Some(engine)))?;
        if let Some(engine) = &engine {
            // It may have been made before the takeover.
            nodes::share_keyvalue_files(engine);
        }
        let (blobs, registry) = (nodes::blob_store(data)?, registry::access(address, &registry_password, pki));
        let own = vec![registry.clone()];
        let images = engine.as_ref().map(|engine| nodes::images(env, &config.nodes, engine, (&blobs, own)));
        Ok((Self { registry, registry_password, blobs, engine, images: images.transpose()? }, listener))
    }
}
