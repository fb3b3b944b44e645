//! Pushing a module as an artifact of the CNCF layout: what `coracle push` and `coracle run` do.

mod blob;
mod client;
#[cfg(test)]
mod fake;
mod refusal;
#[cfg(test)]
mod tests;

use machinery_api::imports::ImportRules;
use machinery_api::names::IMPORTS_OF_IMAGE;
use serde_json::json;

use super::manifest::{OCI_MANIFEST, WASM_CONFIG, WASM_LAYER};
use super::pull::RegistryAccess;
pub use blob::Blob;
pub(super) use blob::{Part, Progress};
pub use client::PushClient;
use oci_registry::blobs::digest;
use oci_registry::reference::{BUILT_IN_REGISTRY, Reference, ReferenceError};
use runtime_api::{Inspection, LoadError, MODULE_BYTES_MAX};

/// The layout wants a date; one of the clock would make another digest of each push of the same bytes, and pinning useless.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Why a push failed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The name can't be parsed.
    #[error("{image:?}: {error}")]
    Reference {
        /// As given.
        image: String,
        /// What is wrong.
        error: ReferenceError,
    },
    /// Another registry, or a digest in place of a tag.
    #[error("{0}")]
    Target(String),
    /// Not a module.
    #[error(transparent)]
    Module(#[from] LoadError),
    /// The registry refused or can't be reached.
    #[error("pushing to {registry}: {why}")]
    Registry {
        /// Its address.
        registry: String,
        /// What happened.
        why: String,
    },
}

/// How the runtime looks into a module.
#[derive(Debug, Clone, Copy)]
pub struct Inspect {
    /// What it is.
    pub all: fn(&[u8]) -> Result<Inspection, LoadError>,
    /// What it imports, by names that policies judge.
    pub imports: fn(&[u8]) -> Result<Vec<String>, LoadError>,
}

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The normalized name: `registry.local/NAME:TAG`.
    pub name: String,
    /// The manifest's digest.
    pub digest: String,
    /// The module's size.
    pub size_bytes: u64,
    /// What it imports and exports.
    pub inspection: Inspection,
}

/// Pushes `module` as `image` (`registry.local/NAME:TAG`) to the registry of `access`. The same bytes make the same digest.
/// `inspect` looks into the module as the runtime does, which is not the registry's business.
///
/// # Errors
/// A bad name, a file that is no module, or a registry that refuses or can't be reached.
pub async fn push(
    module: Vec<u8>,
    inspect: Inspect,
    image: &str,
    access: &RegistryAccess,
) -> Result<Pushed, PushError> {
    let reference = Reference::parse(image).map_err(|error| PushError::Reference { image: image.to_owned(), error })?;
    if reference.registry != BUILT_IN_REGISTRY && reference.registry != access.address {
        return Err(PushError::Target(format!(
            "{image}: this version pushes to the cluster's own registry only, name it {BUILT_IN_REGISTRY}/NAME:TAG"
        )));
    }
    let Some(tag) = reference.tag.clone().filter(|_| reference.digest.is_none()) else {
        return Err(PushError::Target(format!("{image}: push to a tag, not to a digest")));
    };
    if module.len() as u64 > MODULE_BYTES_MAX {
        return Err(LoadError::TooLarge { bytes: module.len() as u64, max_bytes: MODULE_BYTES_MAX }.into());
    }
    let failed = |why: String| PushError::Registry { registry: access.address.clone(), why };
    let inspected = tokio::task::spawn_blocking(move || {
        let (inspection, imports) = ((inspect.all)(&module)?, (inspect.imports)(&module)?);
        Ok::<_, LoadError>((inspection, imports, module))
    });
    let (inspection, imports, module) = inspected.await.map_err(|error| failed(error.to_string()))??;
    let (config, manifest) = documents(&module, &inspection, &imports);

    let client = PushClient::new(access, &reference.repository)?;
    let size_bytes = module.len() as u64;
    for bytes in [module, config] {
        client.push_blob(&Blob::of_bytes(bytes), None).await?;
    }
    let digest = client.push_manifest(&tag, OCI_MANIFEST, manifest).await?;
    let name = Reference { registry: BUILT_IN_REGISTRY.into(), ..reference }.to_string();
    Ok(Pushed { name, digest, size_bytes, inspection })
}

/// Config and manifest of a module. Pure. The layout has a place for a component's imports; those of a core module are in an
/// annotation.
fn documents(module: &[u8], inspection: &Inspection, imports: &[String]) -> (Vec<u8>, Vec<u8>) {
    let layer = digest(module);
    let mut config = json!({
        "created": CREATED,
        "architecture": "wasm",
        "os": if inspection.component { "wasip2" } else { "wasip1" },
        "layerDigests": [layer],
    });
    if inspection.component {
        config["component"] = json!({"exports": inspection.exports, "imports": inspection.imports});
    }
    let config = config.to_string().into_bytes();
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": WASM_CONFIG, "digest": digest(&config), "size": config.len()},
        "layers": [{"mediaType": WASM_LAYER, "digest": layer, "size": module.len()}],
    });
    if let (false, Some(imports)) = (inspection.component, ImportRules::exactly(imports.iter().map(String::as_str))) {
        manifest["annotations"] = json!({ IMPORTS_OF_IMAGE: imports.as_str() });
    }
    (config, manifest.to_string().into_bytes())
}

/// Takes back what was pushed: the manifest goes, and its blobs with the next collection unless another one names them.
///
/// # Errors
/// The registry refuses or can't be reached.
pub async fn take_back(repository: &str, digest: &str, access: &RegistryAccess) -> Result<(), PushError> {
    PushClient::new(access, repository)?.delete_manifest(digest).await
}
