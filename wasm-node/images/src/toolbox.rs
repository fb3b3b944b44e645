//! The toolbox: a component, embedded in this program, that exec sessions find in every container. It is compiled on
//! first use.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use tokio::sync::Mutex;

use super::pull::Images;
use oci_registry::blobs;
use oci_registry::blobs::write_durably;
use runtime_api::{LoadError, Metering, Module};

/// `sample-workloads/toolbox`, built.
static MODULE: &[u8] = include_bytes!("../../../sample-workloads/bin/toolbox.wasm");

/// Returns its digest, like that of an image's module.
pub(super) fn digest() -> &'static str {
    static DIGEST: LazyLock<String> = LazyLock::new(|| blobs::digest(MODULE));
    &DIGEST
}

/// The loaded toolbox for each metering. It stays loaded, as another session is likely.
#[derive(Default)]
pub(super) struct Toolbox(Mutex<Vec<(Metering, Arc<dyn Module>)>>);

impl Images {
    /// Returns whether a module is the toolbox.
    pub fn is_toolbox(&self, module: &str) -> bool {
        module == digest()
    }

    /// Compiles the toolbox with the usual settings when the node has nothing else to compile, so that the first
    /// session need not wait. It is cached on the disk, not in memory.
    ///
    /// # Errors
    /// The toolbox can't be stored.
    pub async fn prepare_toolbox(&self) -> Result<(), LoadError> {
        let file = self.toolbox_file().await?;
        self.runtime.compile_when_idle(digest(), &file, Metering::Epochs).await
    }

    async fn toolbox_file(&self) -> Result<PathBuf, LoadError> {
        let folder = self.blobs.folder("toolbox").map_err(LoadError::io("making the toolbox's folder"))?;
        let file = folder.join("toolbox.wasm");
        let written = file.clone();
        let write = tokio::task::spawn_blocking(move || write_durably(&written, MODULE));
        let write = write.await.map_err(|error| LoadError::Engine(error.to_string()))?;
        write.map_err(LoadError::io("writing the toolbox"))?;
        Ok(file)
    }

    /// Loads the toolbox; the first call compiles it for `namespace`.
    pub async fn load_toolbox(
        &self,
        metering: Metering,
        namespace: &str,
    ) -> Result<Option<Arc<dyn Module>>, LoadError> {
        // One load at a time: a concurrent caller waits and uses the compiled module.
        let mut loaded = self.toolbox.0.lock().await;
        if let Some((_, module)) = loaded.iter().find(|(of, _)| *of == metering) {
            return Ok(Some(module.clone()));
        }
        let file = self.toolbox_file().await?;
        let module = self.runtime.load_command(digest(), &file, metering, namespace).await?;
        loaded.extend(module.iter().map(|module| (metering, module.clone())));
        Ok(module)
    }
}
