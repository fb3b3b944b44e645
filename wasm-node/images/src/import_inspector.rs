//! The imports of an image's module, before any node pulls the image. They are read from the module if its bytes are
//! local, else from the artifact's metadata. The latter may be wrong: the node that runs the module checks again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use machinery_api::names::IMPORTS_OF_IMAGE;
use machinery_env::Env;
use serde::Deserialize;
use serde_json::Value;

use super::keyring::{ConfigForm, Keyring, PULL_SECRET_TYPES, SecretIdentity};
use super::manifest::{Descriptor, Manifest, Plan, plan};
use super::pull::{Images, RegistryAccess};
use super::registries::Registries;
use super::remote::RegistryClients;
use super::session::{RemoteError, Session};
use super::source::{PullTarget, pull_targets};
use super::spin;
use oci_registry::BlobStore;
use oci_registry::reference::{BUILT_IN_REGISTRY, Reference};
use runtime_api::flights::SingleFlight;
use runtime_api::{LoadError, MODULE_BYTES_MAX};

/// Maximum nesting of indexes.
const INDEX_DEPTH_MAX: usize = 4;
/// Maximum bytes of a config, or of a locked application.
const DOCUMENT_BYTES_MAX: u64 = 1 << 20;
/// Maximum entries of a cache; a full cache is cleared.
const CACHE_ENTRIES_MAX: usize = 1024;
/// How long the answer of an external registry for a tag is cached: without it, each pod of a large Deployment causes a
/// request.
const TAG_CACHE_TTL: Duration = Duration::from_secs(60);

/// Names of imports, in the module's order.
type Imports = Arc<[String]>;

/// The source of registry clients.
enum RegistrySource {
    /// The registries of this process's nodes, with the current configuration of their file.
    Nodes(Arc<Images>),
    /// The registries of a process without nodes.
    Registries(Arc<RegistryClients>),
}

/// Determines the imports of images. See the module.
pub struct ImportInspector {
    source: RegistrySource,
    blobs: Arc<BlobStore>,
    /// Reads the imports of a module's bytes; see the runtime.
    imports: fn(&[u8]) -> Result<Vec<String>, LoadError>,
    env: Env,
    /// Imports by manifest digest.
    by_manifest: Mutex<HashMap<String, Imports>>,
    /// Imports by image name and credentials, with the time of the request.
    by_name: Mutex<HashMap<String, (Duration, Imports)>>,
    flights: SingleFlight<String>,
}

impl std::fmt::Debug for ImportInspector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImportInspector").finish_non_exhaustive()
    }
}

/// The part of the CNCF layout's config that this module reads.
#[derive(Deserialize)]
struct WasmConfig {
    component: Option<Component>,
    /// The config of a container image, whose labels replace annotations.
    config: Option<ImageRun>,
}

#[derive(Deserialize)]
struct Component {
    imports: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct ImageRun {
    #[serde(rename = "Labels")]
    labels: Option<BTreeMap<String, String>>,
}

impl ImportInspector {
    /// For a process with nodes: uses the nodes' registries and credentials.
    #[must_use]
    pub fn for_nodes(images: Arc<Images>, imports: fn(&[u8]) -> Result<Vec<String>, LoadError>) -> Self {
        let (blobs, env) = (images.blobs.clone(), images.env.clone());
        Self::new(RegistrySource::Nodes(images), blobs, imports, env)
    }

    /// For a process without nodes: uses the cluster's own registry, and others without an account.
    #[must_use]
    pub fn for_registries(
        registries: Registries,
        built_in: RegistryAccess,
        blobs: Arc<BlobStore>,
        imports: fn(&[u8]) -> Result<Vec<String>, LoadError>,
        env: Env,
    ) -> Self {
        Self::new(
            RegistrySource::Registries(Arc::new(RegistryClients::new(&env, registries, vec![built_in]))),
            blobs,
            imports,
            env,
        )
    }

    fn new(
        source: RegistrySource,
        blobs: Arc<BlobStore>,
        imports: fn(&[u8]) -> Result<Vec<String>, LoadError>,
        env: Env,
    ) -> Self {
        let (by_manifest, by_name, flights) = (Mutex::default(), Mutex::default(), SingleFlight::default());
        Self { source, blobs, imports, env, by_manifest, by_name, flights }
    }

    /// Returns the imports of an image's module, requested with these pull secrets. The caller bounds the time:
    /// registries may be slow.
    ///
    /// # Errors
    /// Returns the reason as text if the imports are unknown.
    pub async fn imports(&self, image: &str, secrets: &[Arc<Value>]) -> Result<Imports, String> {
        if image.starts_with("file://") {
            return Err("a file of the node has no manifest with its imports".into());
        }
        let reference = Reference::parse(image).map_err(|error| error.to_string())?;
        let versions: Vec<String> = secrets.iter().map(|secret| version_of(secret)).collect();
        let key = format!("{reference} {}", versions.join(" "));
        // Concurrent requests for the same image wait here, then read the cache.
        let flight = self.flights.of(&key);
        let _alone = flight.lock().await;
        // The cluster's own registry isn't cached: a pushed image counts at once.
        let is_own = reference.registry == BUILT_IN_REGISTRY;
        if !is_own && let Some(found) = self.cached(&key) {
            return Ok(found);
        }
        let found = self.fetch_imports(&reference, &keyring(secrets)?).await?;
        if !is_own {
            cache_bounded(&self.by_name, key, (self.env.elapsed(), found.clone()));
        }
        Ok(found)
    }

    fn cached(&self, key: &str) -> Option<Imports> {
        let fresh = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, found) = fresh.get(key)?;
        (self.env.elapsed().saturating_sub(*since) < TAG_CACHE_TTL).then(|| found.clone())
    }

    async fn fetch_imports(&self, reference: &Reference, keyring: &Keyring) -> Result<Imports, String> {
        let remote = match &self.source {
            RegistrySource::Nodes(images) => images.source.remote(),
            RegistrySource::Registries(remote) => remote.clone(),
        };
        let mut refused = String::from("no registry is configured for it");
        for PullTarget { endpoint, credentials } in
            pull_targets(&remote, reference, keyring).map_err(|error| error.to_string())?
        {
            for credential in credentials {
                let names = (reference.registry.as_str(), reference.repository.as_str());
                let session = Session::new(&remote, &endpoint, names, credential.map(|tracked| tracked.credential));
                let found = match session {
                    Ok(session) => self.fetch_from(&session, reference).await,
                    Err(error) => Err(InspectError::Remote(error)),
                };
                match found {
                    Ok(found) => return Ok(found),
                    Err(InspectError::Remote(error)) => refused = format!("{}: {error}", reference.registry),
                    Err(InspectError::Final(why)) => return Err(why),
                }
            }
        }
        Err(refused)
    }

    async fn fetch_from(&self, session: &Session, reference: &Reference) -> Result<Imports, InspectError> {
        let (mut bytes, digest) = session.manifest(reference.manifest()).await?;
        if let Some(found) = self.by_manifest.lock().unwrap_or_else(PoisonError::into_inner).get(&digest) {
            return Ok(found.clone());
        }
        for _ in 0..=INDEX_DEPTH_MAX {
            match plan(&bytes).map_err(|refusal| InspectError::Final(refusal.to_string()))? {
                Plan::Child(child) => bytes = session.manifest(&child.digest).await?.0,
                plan => {
                    let found: Imports = self.imports_of_plan(session, plan, &bytes).await?.into();
                    cache_bounded(&self.by_manifest, digest, found.clone());
                    return Ok(found);
                }
            }
        }
        Err(InspectError::Final("its indexes are nested too deeply".into()))
    }

    async fn imports_of_plan(
        &self,
        session: &Session,
        plan: Plan,
        manifest: &[u8],
    ) -> Result<Vec<String>, InspectError> {
        let (config, module) = match plan {
            Plan::Module { config, layer, .. } => (config, Some(layer)),
            Plan::Image { config, .. } => (config, None),
            Plan::Spin { application, layers } => {
                let document = self.document(session, &application).await?;
                let component = spin::component(&document, &layers);
                let component = component.map_err(|refusal| InspectError::Final(refusal.to_string()))?;
                (application, Some(component.module))
            }
            Plan::Child(_) => return Err(InspectError::Final("an index instead of an image".into())),
        };
        if let Some(found) = self.imports_of_local_module(module).await {
            return Ok(found);
        }
        if let Some(found) = imports_from_annotation(manifest) {
            return Ok(found);
        }
        let config = self.document(session, &config).await?;
        imports_from_config(&config)
            .ok_or_else(|| InspectError::Final("neither its manifest nor its config lists them".into()))
    }

    /// Reads the imports of the module itself, if it has been pushed or pulled.
    async fn imports_of_local_module(&self, layer: Option<Descriptor>) -> Option<Vec<String>> {
        let digest = layer.map(|layer| layer.digest).filter(|digest| self.blobs.size(digest).is_some())?;
        let (blobs, imports) = (self.blobs.clone(), self.imports);
        let read = move || imports(&blobs.read(&digest, MODULE_BYTES_MAX).ok()?).ok();
        tokio::task::spawn_blocking(read).await.ok().flatten()
    }

    async fn document(&self, session: &Session, descriptor: &Descriptor) -> Result<Vec<u8>, InspectError> {
        Ok(session.small_blob(&descriptor.digest, DOCUMENT_BYTES_MAX, "its config").await?)
    }
}

/// Why the imports are unknown.
enum InspectError {
    /// Another endpoint or another credential may succeed.
    Remote(RemoteError),
    /// No other endpoint or credential can succeed.
    Final(String),
}

impl From<RemoteError> for InspectError {
    fn from(error: RemoteError) -> Self {
        Self::Remote(error)
    }
}

fn cache_bounded<T>(all: &Mutex<HashMap<String, T>>, key: String, value: T) {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    if all.len() >= CACHE_ENTRIES_MAX {
        all.clear();
    }
    all.insert(key, value);
}

fn version_of(secret: &Value) -> String {
    let text = |field: &str| secret["metadata"][field].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text("uid"), text("resourceVersion"))
}

fn keyring(secrets: &[Arc<Value>]) -> Result<Keyring, String> {
    let mut keyring = Keyring::default();
    for secret in secrets {
        let text = |field: &str| secret["metadata"][field].as_str().unwrap_or_default().to_owned();
        let identity = SecretIdentity { namespace: text("namespace"), name: text("name"), uid: text("uid") };
        let read = |form: ConfigForm, key: &str, keyring: &mut Keyring| {
            let Some(data) = secret["data"][key].as_str() else { return Ok(()) };
            let data = base64::engine::general_purpose::STANDARD.decode(data).unwrap_or_default();
            keyring.add(&identity, form, &data).map_err(|error| format!("secret {:?}: {error}", identity.name))
        };
        for (wanted, key, form) in PULL_SECRET_TYPES {
            if secret["type"] == wanted {
                read(form, key, &mut keyring)?;
            }
        }
    }
    Ok(keyring)
}

fn split_list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Reads the imports from the manifest's annotation.
fn imports_from_annotation(manifest: &[u8]) -> Option<Vec<String>> {
    let manifest: Manifest = serde_json::from_slice(manifest).ok()?;
    manifest.annotations?.get(IMPORTS_OF_IMAGE).map(|text| split_list(text))
}

/// Reads the imports from the config: of the CNCF layout, or from the label of a container image.
fn imports_from_config(config: &[u8]) -> Option<Vec<String>> {
    let config: WasmConfig = serde_json::from_slice(config).ok()?;
    let of_component = config.component.and_then(|component| component.imports);
    of_component.or_else(|| config.config?.labels?.get(IMPORTS_OF_IMAGE).map(|text| split_list(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_and_configs_say_it_in_three_ways() {
        let wasm = br#"{"os": "wasip2", "component": {"imports": ["wasi:cli/stdout@0.2.0"], "exports": []}}"#;
        assert_eq!(imports_from_config(wasm).unwrap(), ["wasi:cli/stdout@0.2.0"]);
        let image = br#"{"config": {"Labels": {"dev.coracle.imports": " a:b/c@1 ,, d"}}}"#;
        assert_eq!(imports_from_config(image).unwrap(), ["a:b/c@1", "d"]);
        let empty = br#"{"component": {"imports": []}}"#;
        assert_eq!(imports_from_config(empty).unwrap(), [""; 0]);
        for silent in [&b"{}"[..], br#"{"component": {}}"#, br#"{"config": {"Labels": {}}}"#, b"[]", b"\xff"] {
            assert_eq!(imports_from_config(silent), None);
        }
        assert_eq!(imports_from_annotation(br#"{"annotations": {"dev.coracle.imports": ""}}"#).unwrap(), [""; 0]);
        assert_eq!(imports_from_annotation(br#"{"annotations": {"other": "x"}}"#), None);
    }

    #[test]
    fn no_document_makes_it_panic() {
        bolero::check!().with_type().for_each(|bytes: &Vec<u8>| {
            let _ = (imports_from_config(bytes), imports_from_annotation(bytes));
        });
    }
}
