//! What an image's module imports, before anybody pulls it: from the module itself where its bytes are here already, else as the
//! artifact says. Only the node that runs it knows for sure, and looks again.

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
use super::remote::Remote;
use super::session::{RemoteError, Session};
use super::source::{Way, ways};
use super::spin;
use oci_registry::BlobStore;
use oci_registry::reference::{BUILT_IN_REGISTRY, Reference};
use runtime_api::flights::Flights;
use runtime_api::{LoadError, MODULE_BYTES_MAX};

/// Indexes within indexes.
const INDEX_DEPTH_MAX: usize = 4;
/// A config, or a locked application.
const DOCUMENT_BYTES_MAX: u64 = 1 << 20;
/// Answers that are kept; then all are forgotten.
const KEPT_MAX: usize = 1024;
/// How long what another registry said of a tag is taken for true: each pod of a large Deployment would ask else.
const FRESH: Duration = Duration::from_secs(60);

/// Names of imports, in the module's order.
type Imports = Arc<[String]>;

/// Whom images are asked of.
enum Whom {
    /// The registries of this process's nodes, as their file has them now.
    Nodes(Arc<Images>),
    /// Without nodes.
    Registries(Arc<Remote>),
}

/// See the module.
pub struct Describer {
    whom: Whom,
    blobs: Arc<BlobStore>,
    /// What a module imports, see the runtime.
    imports: fn(&[u8]) -> Result<Vec<String>, LoadError>,
    env: Env,
    /// By the digest of the manifest.
    known: Mutex<HashMap<String, Imports>>,
    /// By the name and the credentials it was asked with.
    fresh: Mutex<HashMap<String, (Duration, Imports)>>,
    flights: Flights<String>,
}

impl std::fmt::Debug for Describer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Describer").finish_non_exhaustive()
    }
}

/// The CNCF layout's config, as far as it counts here.
#[derive(Deserialize)]
struct WasmConfig {
    component: Option<Component>,
    /// A container image's, whose labels stand for annotations.
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

impl Describer {
    /// Of a process with nodes: asks as they do.
    #[must_use]
    pub fn of_nodes(images: Arc<Images>, imports: fn(&[u8]) -> Result<Vec<String>, LoadError>) -> Self {
        let (blobs, env) = (images.blobs.clone(), images.env.clone());
        Self::with(Whom::Nodes(images), blobs, imports, env)
    }

    /// Of one without: asks the cluster's own registry, and others without an account.
    #[must_use]
    pub fn of_registries(
        registries: Registries,
        built_in: RegistryAccess,
        blobs: Arc<BlobStore>,
        imports: fn(&[u8]) -> Result<Vec<String>, LoadError>,
        env: Env,
    ) -> Self {
        Self::with(Whom::Registries(Arc::new(Remote::new(registries, Some(built_in)))), blobs, imports, env)
    }

    fn with(whom: Whom, blobs: Arc<BlobStore>, imports: fn(&[u8]) -> Result<Vec<String>, LoadError>, env: Env) -> Self {
        let (known, fresh, flights) = (Mutex::default(), Mutex::default(), Flights::default());
        Self { whom, blobs, imports, env, known, fresh, flights }
    }

    /// What the module of an image imports, asked with these pull secrets. Bound its time: registries may be slow.
    ///
    /// # Errors
    /// Why that is not known, in words.
    pub async fn imports(&self, image: &str, secrets: &[Arc<Value>]) -> Result<Imports, String> {
        if image.starts_with("file://") {
            return Err("a file of the node has no manifest that says it".into());
        }
        let reference = Reference::parse(image).map_err(|error| error.to_string())?;
        let asked: Vec<String> = secrets.iter().map(|secret| version_of(secret)).collect();
        let key = format!("{reference} {}", asked.join(" "));
        // Who waits for the same finds it then.
        let flight = self.flights.of(&key);
        let _alone = flight.lock().await;
        // The cluster's own registry is at hand: what was pushed counts at once.
        let is_own = reference.registry == BUILT_IN_REGISTRY;
        if !is_own && let Some(found) = self.recent(&key) {
            return Ok(found);
        }
        let found = self.asked(&reference, &keyring(secrets)?).await?;
        if !is_own {
            keep(&self.fresh, key, (self.env.elapsed(), found.clone()));
        }
        Ok(found)
    }

    fn recent(&self, key: &str) -> Option<Imports> {
        let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, found) = fresh.get(key)?;
        (self.env.elapsed().saturating_sub(*since) < FRESH).then(|| found.clone())
    }

    async fn asked(&self, reference: &Reference, keyring: &Keyring) -> Result<Imports, String> {
        let remote = match &self.whom {
            Whom::Nodes(images) => images.source.remote(),
            Whom::Registries(remote) => remote.clone(),
        };
        let mut refused = String::from("no registry is configured for it");
        for Way { endpoint, credentials } in ways(&remote, reference, keyring).map_err(|error| error.to_string())? {
            for credential in credentials {
                let names = (reference.registry.as_str(), reference.repository.as_str());
                let session = Session::new(&remote, &endpoint, names, credential.map(|tracked| tracked.credential));
                let found = match session {
                    Ok(session) => self.of_session(&session, reference).await,
                    Err(error) => Err(Unknown::Remote(error)),
                };
                match found {
                    Ok(found) => return Ok(found),
                    Err(Unknown::Remote(error)) => refused = format!("{}: {error}", reference.registry),
                    Err(Unknown::Final(why)) => return Err(why),
                }
            }
        }
        Err(refused)
    }

    async fn of_session(&self, session: &Session, reference: &Reference) -> Result<Imports, Unknown> {
        let (mut bytes, digest) = session.manifest(reference.manifest()).await?;
        if let Some(found) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&digest) {
            return Ok(found.clone());
        }
        for _ in 0..=INDEX_DEPTH_MAX {
            match plan(&bytes).map_err(|refusal| Unknown::Final(refusal.to_string()))? {
                Plan::Child(child) => bytes = session.manifest(&child.digest).await?.0,
                plan => {
                    let found: Imports = self.planned(session, plan, &bytes).await?.into();
                    keep(&self.known, digest, found.clone());
                    return Ok(found);
                }
            }
        }
        Err(Unknown::Final("indexes lie in indexes too deep".into()))
    }

    async fn planned(&self, session: &Session, plan: Plan, manifest: &[u8]) -> Result<Vec<String>, Unknown> {
        let (config, module) = match plan {
            Plan::Module { config, layer, .. } => (config, Some(layer)),
            Plan::Image { config, .. } => (config, None),
            Plan::Spin { application, layers } => {
                let document = self.document(session, &application).await?;
                let component = spin::component(&document, &layers);
                let component = component.map_err(|refusal| Unknown::Final(refusal.to_string()))?;
                (application, Some(component.module))
            }
            Plan::Child(_) => return Err(Unknown::Final("an index where an image is wanted".into())),
        };
        if let Some(found) = self.of_module(module).await {
            return Ok(found);
        }
        if let Some(said) = annotated(manifest) {
            return Ok(said);
        }
        let config = self.document(session, &config).await?;
        said(&config).ok_or_else(|| Unknown::Final("its manifest and its config don't say".into()))
    }

    /// From the module itself, where it has been pushed or pulled.
    async fn of_module(&self, layer: Option<Descriptor>) -> Option<Vec<String>> {
        let digest = layer.map(|layer| layer.digest).filter(|digest| self.blobs.size(digest).is_some())?;
        let (blobs, imports) = (self.blobs.clone(), self.imports);
        let read = move || imports(&blobs.read(&digest, MODULE_BYTES_MAX).ok()?).ok();
        tokio::task::spawn_blocking(read).await.ok().flatten()
    }

    async fn document(&self, session: &Session, descriptor: &Descriptor) -> Result<Vec<u8>, Unknown> {
        Ok(session.small_blob(&descriptor.digest, DOCUMENT_BYTES_MAX, "its config").await?)
    }
}

/// Why it is not known.
enum Unknown {
    /// Another endpoint or another credential may tell.
    Remote(RemoteError),
    /// Nobody would.
    Final(String),
}

impl From<RemoteError> for Unknown {
    fn from(error: RemoteError) -> Self {
        Self::Remote(error)
    }
}

fn keep<T>(all: &Mutex<HashMap<String, T>>, key: String, value: T) {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    if all.len() >= KEPT_MAX {
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

fn listed(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// As the manifest's annotation says.
fn annotated(manifest: &[u8]) -> Option<Vec<String>> {
    let manifest: Manifest = serde_json::from_slice(manifest).ok()?;
    manifest.annotations?.get(IMPORTS_OF_IMAGE).map(|text| listed(text))
}

/// As the config says: of the CNCF layout, or by the label of a container image.
fn said(config: &[u8]) -> Option<Vec<String>> {
    let config: WasmConfig = serde_json::from_slice(config).ok()?;
    let of_component = config.component.and_then(|component| component.imports);
    of_component.or_else(|| config.config?.labels?.get(IMPORTS_OF_IMAGE).map(|text| listed(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_and_configs_say_it_in_three_ways() {
        let wasm = br#"{"os": "wasip2", "component": {"imports": ["wasi:cli/stdout@0.2.0"], "exports": []}}"#;
        assert_eq!(said(wasm).unwrap(), ["wasi:cli/stdout@0.2.0"]);
        let image = br#"{"config": {"Labels": {"dev.coracle.imports": " a:b/c@1 ,, d"}}}"#;
        assert_eq!(said(image).unwrap(), ["a:b/c@1", "d"]);
        let empty = br#"{"component": {"imports": []}}"#;
        assert_eq!(said(empty).unwrap(), [""; 0]);
        for silent in [&b"{}"[..], br#"{"component": {}}"#, br#"{"config": {"Labels": {}}}"#, b"[]", b"\xff"] {
            assert_eq!(said(silent), None);
        }
        assert_eq!(annotated(br#"{"annotations": {"dev.coracle.imports": ""}}"#).unwrap(), [""; 0]);
        assert_eq!(annotated(br#"{"annotations": {"other": "x"}}"#), None);
    }

    #[test]
    fn no_document_makes_it_panic() {
        bolero::check!().with_type().for_each(|bytes: &Vec<u8>| {
            let _ = (said(bytes), annotated(bytes));
        });
    }
}
