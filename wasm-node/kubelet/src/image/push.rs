//! Pushing a module as an artifact of the CNCF layout: what `coracle push` and `coracle run` do.

use std::time::Duration;

use machinery_api::imports::ImportRules;
use machinery_api::names::IMPORTS_OF_IMAGE;
use oci_client::Reference as OciReference;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use serde_json::json;

use super::manifest::{OCI_MANIFEST, WASM_CONFIG, WASM_LAYER};
use super::pull::RegistryAccess;
use super::registries::Registries;
use super::remote::{Remote, told};
use oci_registry::Credentials;
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
    let refused = |error: OciDistributionError| failed(said(&error));
    let inspected = tokio::task::spawn_blocking(move || {
        let (inspection, imports) = ((inspect.all)(&module)?, (inspect.imports)(&module)?);
        Ok::<_, LoadError>((inspection, imports, module))
    });
    let (inspection, imports, module) = inspected.await.map_err(|error| failed(error.to_string()))??;
    let (config, manifest) = documents(&module, &inspection, &imports);

    let client = client(access)?;
    let target = OciReference::with_tag(access.address.clone(), reference.repository.clone(), tag);
    let auth = RegistryAuth::Basic(access.credentials.user.clone(), access.credentials.password.clone());
    client.store_auth_if_needed(target.resolve_registry(), &auth).await;
    let size_bytes = module.len() as u64;
    for blob in [module, config] {
        let name = digest(&blob);
        let there = client.blob_exists(&target, &name).await.unwrap_or(false);
        if !there {
            client.push_blob(&target, blob, &name).await.map_err(refused)?;
        }
    }
    let manifest_digest = digest(&manifest);
    let content_type = http::HeaderValue::from_static(OCI_MANIFEST);
    client.push_manifest_raw(&target, manifest, content_type).await.map_err(refused)?;
    let name = Reference { registry: BUILT_IN_REGISTRY.into(), ..reference }.to_string();
    Ok(Pushed { name, digest: manifest_digest, size_bytes, inspection })
}

/// The registry's own words where it sent some, and not the document that they came in.
fn said(error: &OciDistributionError) -> String {
    let first = |envelope: &serde_json::Value| envelope["errors"][0]["message"].as_str().map(str::to_owned);
    match error {
        OciDistributionError::ServerError { message, .. } => {
            serde_json::from_str(message).ok().as_ref().and_then(first)
        }
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.first().map(|error| error.message.clone()).filter(|message| !message.is_empty())
        }
        _ => None,
    }
    .unwrap_or_else(|| error.to_string())
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

/// A client for the built-in registry: never through a proxy of the environment, as it is at hand.
///
/// # Errors
/// The machine has no CA certificates.
pub(super) fn client(access: &RegistryAccess) -> Result<oci_client::Client, PushError> {
    // reqwest takes its TLS from the process; a second call finds the first one's provider, which is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // The client panics where it finds none of the system's, though it asks none of them here.
    reqwest::Client::builder().build().map_err(|error| PushError::Registry {
        registry: access.address.clone(),
        why: format!(
            "{}: the client for registries wants the CA certificates of this machine: install them (the package \
             ca-certificates), or name a file of some by SSL_CERT_FILE",
            told(&error)
        ),
    })?;
    let certificates = access.ca_pem.iter().map(|pem| oci_client::client::Certificate {
        encoding: oci_client::client::CertificateEncoding::Pem,
        data: pem.clone(),
    });
    Ok(oci_client::Client::new(ClientConfig {
        protocol: if access.ca_pem.is_some() { ClientProtocol::Https } else { ClientProtocol::Http },
        extra_root_certificates: certificates.collect(),
        http_proxy: Some("http://127.0.0.1:9".into()),
        https_proxy: Some("http://127.0.0.1:9".into()),
        no_proxy: Some("0.0.0.0/0,::/0,*".into()),
        connect_timeout: Some(Duration::from_secs(10)),
        read_timeout: Some(Duration::from_secs(60)),
        platform_resolver: None,
        ..ClientConfig::default()
    }))
}

/// Takes back what was pushed: the manifest goes, and its blobs with the next collection unless another one names them.
///
/// # Errors
/// The registry refuses or can't be reached.
pub async fn take_back(repository: &str, digest: &str, access: &RegistryAccess) -> Result<(), PushError> {
    let failed = |why: String| PushError::Registry { registry: access.address.clone(), why };
    let remote = Remote::new(Registries::default(), Some(access.clone()));
    let scheme = if access.ca_pem.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}/v2/{repository}/manifests/{digest}", access.address);
    let url = reqwest::Url::parse(&url).map_err(|error| failed(error.to_string()))?;
    let client = remote.client_for(&url).map_err(|error| failed(error.to_string()))?;
    let Credentials { user, password } = &access.credentials;
    let deleted = client.delete(url).basic_auth(user, Some(password)).send().await;
    match deleted.map(|response| response.status()) {
        Ok(status) if status.is_success() || status == http::StatusCode::NOT_FOUND => Ok(()),
        Ok(status) => Err(failed(status.to_string())),
        Err(error) => Err(failed(told(&error))),
    }
}
