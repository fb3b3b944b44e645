//! The toolbox that sessions find in every container: a component that the program brings, compiled when it is first wanted.

use std::sync::{Arc, LazyLock};

use tokio::sync::Mutex;

use super::pull::{Image, Images};
use oci_registry::blobs;
use oci_registry::blobs::write_durably;
use runtime_api::{LoadError, Metering, Module};

/// `sample-workloads/toolbox`, built.
static MODULE: &[u8] = include_bytes!("../../../../sample-workloads/bin/toolbox.wasm");

/// Its digest, as an image's module has one.
pub(super) fn digest() -> &'static str {
    static DIGEST: LazyLock<String> = LazyLock::new(|| blobs::digest(MODULE));
    &DIGEST
}

/// What was loaded of it: it stays, as the next session is likely.
#[derive(Default)]
pub(super) struct Toolbox(Mutex<Vec<(Metering, Arc<dyn Module>)>>);

impl Images {
    /// Whether an image is the toolbox itself.
    pub fn is_toolbox(&self, image: &Image) -> bool {
        image.module == digest()
    }

    /// Loads the toolbox; compiles it the first time, for `namespace`.
    pub async fn load_toolbox(
        &self,
        metering: Metering,
        namespace: &str,
    ) -> Result<Option<Arc<dyn Module>>, LoadError> {
        // One at a time: whoever is second has what the first one has compiled.
        let mut loaded = self.toolbox.0.lock().await;
        if let Some((_, module)) = loaded.iter().find(|(of, _)| *of == metering) {
            return Ok(Some(module.clone()));
        }
        let file =
            self.blobs.folder("toolbox").map_err(LoadError::io("making the toolbox's folder"))?.join("toolbox.wasm");
        let written = file.clone();
        let write = tokio::task::spawn_blocking(move || write_durably(&written, MODULE));
        let write = write.await.map_err(|error| LoadError::Engine(error.to_string()))?;
        write.map_err(LoadError::io("writing the toolbox"))?;
        let module = self.runtime.load_command(digest(), &file, metering, namespace).await?;
        loaded.extend(module.iter().map(|module| (metering, module.clone())));
        Ok(module)
    }
}
