//! Pushes a module as an artifact of the CNCF layout, for `coracle push` and `coracle run`.

mod blob;
mod client;
#[cfg(test)]
mod fake;
mod refusal;
#[cfg(test)]
mod tests;

use machinery_api::imports::ImportRules;
use machinery_api::names::IMPORTS_OF_IMAGE;
use machinery_env::Env;
use serde_json::json;

use super::manifest::{OCI_MANIFEST, WASM_CONFIG, WASM_LAYER};
use super::pull::RegistryAccess;
pub use blob::Blob;
pub(super) use blob::{Part, Progress};
pub use client::PushClient;
use oci_registry::blobs::digest;
use oci_registry::reference::{BUILT_IN_REGISTRY, Reference, ReferenceError};
use runtime_api::{Inspection, LoadError, MODULE_BYTES_MAX, ModuleInspector};

/// The layout requires a date. The current time would change the digest with each push of the same bytes, and make
/// pinning useless.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Why a push failed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The name can't be parsed.
    #[error("{image:?}: {error}")]
    Reference {
        /// The name as given.
        image: String,
        /// The parse error.
        error: ReferenceError,
    },
    /// The target is another registry, or a digest instead of a tag.
    #[error("{0}")]
    Target(String),
    /// Not a module.
    #[error(transparent)]
    Module(#[from] LoadError),
    /// The registry rejected the push or is unreachable.
    #[error("pushing to {registry}: {why}")]
    Registry {
        /// The registry's address.
        registry: String,
        /// The cause.
        why: String,
    },
}

/// The result of a push.
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

/// Pushes `module` as `image` (`registry.local/NAME:TAG`) to the registry of `access`. The same bytes have the same
/// digest. `inspector` inspects the module like the runtime; the registry doesn't.
///
/// # Errors
/// The name is invalid, the file is no module, or the registry rejects the push or is unreachable.
pub async fn push(
    env: &Env,
    module: Vec<u8>,
    inspector: ModuleInspector,
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
        let (inspection, imports) = ((inspector.inspect)(&module)?, (inspector.imports)(&module)?);
        Ok::<_, LoadError>((inspection, imports, module))
    });
    let (inspection, imports, module) = inspected.await.map_err(|error| failed(error.to_string()))??;
    let (config, manifest) = documents(&module, &inspection, &imports);

    let client = PushClient::new(env, access, &reference.repository)?;
    let size_bytes = module.len() as u64;
    for bytes in [module, config] {
        client.push_blob(&Blob::of_bytes(bytes), None).await?;
    }
    let digest = client.push_manifest(&tag, OCI_MANIFEST, manifest).await?;
    let name = Reference { registry: BUILT_IN_REGISTRY.into(), ..reference }.to_string();
    Ok(Pushed { name, digest, size_bytes, inspection })
}

/// Builds config and manifest of a module. Pure. The layout has a field for a component's imports; those of a core
/// module are in an annotation.
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

/// Deletes a pushed manifest. The next collection removes its blobs unless another manifest names them.
///
/// # Errors
/// The registry rejects the request or is unreachable.
pub async fn delete_pushed(
    env: &Env,
    repository: &str,
    digest: &str,
    access: &RegistryAccess,
) -> Result<(), PushError> {
    PushClient::new(env, access, repository)?.delete_manifest(digest).await
}
