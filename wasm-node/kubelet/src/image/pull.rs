//! Pulling: from a name in a pod's spec to a module that is verified, kept and compiled.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use serde::{Deserialize, Serialize};

use super::layers;
use super::manifest::{ACCEPTED, Descriptor, ImageConfig, Plan, Refusal, image_config, plan};
use machinery_env::Env;
use oci_registry::Credentials;
use oci_registry::blobs::{BLOB_BYTES_MAX, BlobError, BlobStore, Pins, digest, write_durably};
use oci_registry::reference::{BUILT_IN_REGISTRY, ImageName, Reference, ReferenceError, invalid_image_name, is_sha256};
use runtime_api::flights::Flights;
use runtime_api::{LoadError, MODULE_BYTES_MAX, Metering, Module, Runtime};

/// A manifest or config.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Indexes within indexes.
const INDEX_DEPTH_MAX: usize = 4;
/// Wall clock of one pull without its compilation.
const PULL_TIME_MAX: Duration = Duration::from_secs(300);
/// Pulls at once; more wait.
const PULLS_AT_ONCE: usize = 4;

/// When to pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Ask the registry each time.
    Always,
    /// Only what isn't there.
    IfNotPresent,
    /// Never.
    Never,
}

/// How the built-in registry is reached.
#[derive(Clone)]
pub struct RegistryAccess {
    /// `ADDR:PORT`.
    pub address: String,
    /// Its account.
    pub credentials: Credentials,
    /// The cluster's CA as PEM where the registry speaks TLS; none = plain HTTP.
    pub ca_pem: Option<Vec<u8>>,
}

/// An image that is on this node, ready to load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The name it was pulled by, normalized.
    pub name: String,
    /// For `status.containerStatuses[].imageID`: `registry.local/hello@sha256:…`.
    pub image_id: String,
    /// The module's own digest.
    pub module: String,
    /// Blobs that belong to it.
    pub blobs: Vec<String>,
    /// Sum of its blobs' sizes.
    pub size_bytes: u64,
    /// Entrypoint and arguments of the image; argv[0] is the module's name where the layout has none.
    pub argv: Vec<String>,
    /// The image's environment.
    pub env: Vec<(String, String)>,
    /// The image's working directory.
    pub working_dir: Option<String>,
}

/// Why there is no image. [`ImageError::reason`] is the waiting reason.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name can't be parsed.
    #[error("{}", invalid_image_name(.image, .error))]
    InvalidName {
        /// As in the spec.
        image: String,
        /// What is wrong.
        error: ReferenceError,
    },
    /// Policy `Never`, and it isn't there.
    #[error("Container image {image:?} is not present with pull policy of Never")]
    NeverPull {
        /// As in the spec.
        image: String,
    },
    /// A registry that isn't served.
    #[error(
        "registry {registry} is not served by this version: images come from {BUILT_IN_REGISTRY} (the cluster's own \
         registry; `coracle push FILE.wasm {BUILT_IN_REGISTRY}/NAME:TAG` fills it) or from file:/// folders that the \
         node allows (README, \"deploy your own module\")"
    )]
    Registry {
        /// Its name.
        registry: String,
    },
    /// A file outside what is allowed.
    #[error("{path} is not under a folder given by --allow-file-images")]
    FileNotAllowed {
        /// The path.
        path: String,
    },
    /// The registry doesn't know it.
    #[error("{image}: not found")]
    NotFound {
        /// Normalized name.
        image: String,
    },
    /// It is something else than a module.
    #[error("{image}: {refusal}")]
    Refused {
        /// Normalized name.
        image: String,
        /// What was found instead.
        refusal: Refusal,
    },
    /// The registry can't be reached, or breaks its protocol.
    #[error("pulling {image}: {why}")]
    Transfer {
        /// Normalized name.
        image: String,
        /// What happened.
        why: String,
    },
    /// It could not be kept.
    #[error("keeping {image}: {source}")]
    Blob {
        /// Normalized name.
        image: String,
        /// What happened.
        source: BlobError,
    },
    /// The module doesn't compile, or wants what isn't offered.
    #[error("{image}: {source}")]
    Module {
        /// Normalized name.
        image: String,
        /// What is wrong with it.
        source: LoadError,
    },
}

impl ImageError {
    /// The waiting reason of a container whose image this is.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidName { .. } => "InvalidImageName",
            Self::NeverPull { .. } => "ErrImageNeverPull",
            _ => "ErrImagePull",
        }
    }
}

/// An image as it is known. That somebody else holds the `Arc` is what keeps it: a pod's worker has it from the moment
/// in which it is decided that the image is there until nothing of the pod is left, so that no list of users can lie.
pub(super) struct Known {
    pub(super) image: Arc<Image>,
    pub(super) detected_at: Duration,
    pub(super) used_at: Duration,
}

#[derive(Default)]
pub(super) struct AllKnown {
    pub(super) by_name: BTreeMap<String, Known>,
    /// Whose name means another image now, and which pods may still have.
    pub(super) replaced: Vec<Weak<Image>>,
}

/// The images of a node.
pub struct Images {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) env: Env,
    pub(super) blobs: Arc<BlobStore>,
    registry: Option<RegistryAccess>,
    client: Option<oci_client::Client>,
    file_dirs: Vec<PathBuf>,
    records: PathBuf,
    known: Mutex<AllKnown>,
    flights: Flights<String>,
    permits: tokio::sync::Semaphore,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").finish_non_exhaustive()
    }
}

impl Images {
    /// Opens the images in a blob store. `file_dirs` are the folders of `--allow-file-images`.
    pub fn open(
        runtime: Arc<dyn Runtime>,
        env: Env,
        blobs: Arc<BlobStore>,
        registry: Option<RegistryAccess>,
        file_dirs: Vec<PathBuf>,
    ) -> Result<Self, ImageError> {
        let io = |source: std::io::Error| ImageError::Blob { image: "images".into(), source: source.into() };
        let records = blobs.folder("images").map_err(io)?;
        let (mut known, now) = (AllKnown::default(), env.elapsed());
        for entry in std::fs::read_dir(&records).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let record = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Image>(&bytes).ok());
            match record {
                Some(image) if blobs.size(&image.module).is_some() => {
                    let (name, image) = (image.name.clone(), Arc::new(image));
                    known.by_name.insert(name, Known { image, detected_at: now, used_at: now });
                }
                // A record without its module, or of another form: pulled again when it is wanted.
                _ => {
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
        let client = registry.as_ref().map(super::client);
        let file_dirs = file_dirs.iter().filter_map(|dir| dir.canonicalize().ok()).collect();
        let permits = tokio::sync::Semaphore::new(PULLS_AT_ONCE);
        let (known, flights) = (Mutex::new(known), Flights::default());
        Ok(Self { runtime, env, blobs, registry, client, file_dirs, records, known, flights, permits })
    }

    fn parse(image: &str) -> Result<ImageName, ImageError> {
        ImageName::parse(image).map_err(|error| ImageError::InvalidName { image: image.to_owned(), error })
    }

    /// The image, where it is on the node already.
    pub fn present(&self, image: &str) -> Result<Option<Arc<Image>>, ImageError> {
        let name = match Self::parse(image)? {
            ImageName::Registry(reference) => reference.to_string(),
            // A file may have changed: it is read again, which costs a digest.
            ImageName::File(_) => return Ok(None),
        };
        Ok(self.known().by_name.get_mut(&name).map(|known| {
            known.used_at = self.env.elapsed();
            known.image.clone()
        }))
    }

    /// What `policy` makes of a name: the image that is there, or none where it has to be pulled.
    pub fn decide(&self, image: &str, policy: PullPolicy) -> Result<Option<Arc<Image>>, ImageError> {
        let present = self.present(image)?;
        match (policy, present) {
            (PullPolicy::Always, _) | (PullPolicy::IfNotPresent, None) => Ok(None),
            (_, Some(image)) => Ok(Some(image)),
            (PullPolicy::Never, None) => Err(ImageError::NeverPull { image: image.to_owned() }),
        }
    }

    /// Pulls an image and compiles its module for `metering`, on the share of the pod's `namespace`. Several pulls of one name become one after another, and
    /// blobs that are there are not fetched again.
    pub async fn pull(&self, image: &str, metering: Metering, namespace: &str) -> Result<Arc<Image>, ImageError> {
        let name = Self::parse(image)?;
        let key = match &name {
            ImageName::Registry(reference) => reference.to_string(),
            ImageName::File(path) => format!("file://{}", path.display()),
        };
        let flight = self.flight(&key);
        let _alone = flight.lock().await;
        let permit = self.permits.acquire().await.expect("never closed");
        // Until a record refers to them.
        let pins = Arc::new(self.blobs.pins());
        let pulled = match &name {
            ImageName::Registry(reference) => {
                match tokio::time::timeout(PULL_TIME_MAX, self.fetch(&key, reference, &pins)).await {
                    Ok(pulled) => pulled?,
                    Err(_) => {
                        let why = format!("not finished within {} s", PULL_TIME_MAX.as_secs());
                        return Err(ImageError::Transfer { image: key, why });
                    }
                }
            }
            ImageName::File(path) => self.import(&key, path, &pins).await?,
        };
        // Compiling has a bound of its own: a module that takes long keeps nobody from pulling what is compiled already.
        drop(permit);
        let module = |source| ImageError::Module { image: key.clone(), source };
        let path = self.blobs.path(&pulled.module).map_err(|source| ImageError::Blob { image: key.clone(), source })?;
        self.runtime.compile(&pulled.module, &path, metering, namespace).await.map_err(module)?;
        self.remember(pulled).map_err(|source| ImageError::Blob { image: key.clone(), source: source.into() })
    }

    /// Loads an image's module: shared with every container of it, from the cache of compiled modules.
    pub async fn load(&self, image: &Image, metering: Metering, namespace: &str) -> Result<Arc<dyn Module>, LoadError> {
        let path = self.blobs.path(&image.module).map_err(|error| LoadError::NotWasm(error.to_string()))?;
        self.runtime.load(&image.module, &path, metering, namespace).await
    }

    /// Every image on the node, for `status.images`. Copies: who looks at an image does not use it.
    #[must_use]
    pub fn list(&self) -> Vec<Image> {
        self.known().by_name.values().map(|known| (*known.image).clone()).collect()
    }

    pub(super) fn known(&self) -> std::sync::MutexGuard<'_, AllKnown> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn flight(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.flights.of(&key.to_owned())
    }

    pub(super) fn record(&self, name: &str) -> PathBuf {
        self.records.join(format!("{}.json", &digest(name.as_bytes())["sha256:".len()..]))
    }

    /// Keeps a pulled image under its name. Who calls has the name's flight.
    fn remember(&self, image: Image) -> std::io::Result<Arc<Image>> {
        let now = self.env.elapsed();
        if let Some(known) = self.known().by_name.get_mut(&image.name)
            && *known.image == image
        {
            known.used_at = now;
            return Ok(known.image.clone());
        }
        write_durably(&self.record(&image.name), &serde_json::to_vec(&image)?)?;
        let image = Arc::new(image);
        let mut known = self.known();
        let fresh = Known { image: image.clone(), detected_at: now, used_at: now };
        if let Some(before) = known.by_name.insert(image.name.clone(), fresh) {
            known.replaced.push(Arc::downgrade(&before.image));
        }
        Ok(image)
    }

    async fn fetch(&self, key: &str, reference: &Reference, pins: &Arc<Pins>) -> Result<Image, ImageError> {
        let (Some(access), Some(client)) = (&self.registry, &self.client) else {
            return Err(ImageError::Registry { registry: reference.registry.clone() });
        };
        if reference.registry != BUILT_IN_REGISTRY {
            return Err(ImageError::Registry { registry: reference.registry.clone() });
        }
        let fetch = Fetch { blobs: &self.blobs, pins, client, access, repository: &reference.repository, image: key };
        let (mut bytes, manifest_digest) = fetch.manifest(reference.manifest()).await?;
        if reference.digest.as_deref().is_some_and(|wanted| wanted != manifest_digest) {
            return Err(fetch.transfer("the registry sent another manifest than the digest names"));
        }
        let mut blobs = Vec::new();
        for _ in 0..=INDEX_DEPTH_MAX {
            match plan(&bytes).map_err(|refusal| fetch.refused(refusal))? {
                Plan::Child(child) => (bytes, _) = fetch.manifest(&child.digest).await?,
                Plan::Module { config, layer } => {
                    fetch.blob(&config, MANIFEST_BYTES_MAX).await?;
                    fetch.blob(&layer, MODULE_BYTES_MAX).await?;
                    blobs.extend([config.digest, layer.digest.clone()]);
                    let run = ImageConfig { argv: vec![basename(&reference.repository)], ..ImageConfig::default() };
                    return Ok(self.image(key, reference, &manifest_digest, layer.digest, blobs, run));
                }
                Plan::Image { config, layers } => {
                    fetch.blob(&config, MANIFEST_BYTES_MAX).await?;
                    let config_bytes = self.read(key, &config.digest).await?;
                    let run = image_config(&config_bytes).map_err(|refusal| fetch.refused(refusal))?;
                    blobs.push(config.digest);
                    for layer in &layers {
                        fetch.blob(&layer.descriptor, BLOB_BYTES_MAX).await?;
                        blobs.push(layer.descriptor.digest.clone());
                    }
                    let module = self.unpack(&fetch, layers, &run.module).await?;
                    blobs.push(module.clone());
                    return Ok(self.image(key, reference, &manifest_digest, module, blobs, run));
                }
            }
        }
        Err(fetch.refused(Refusal::Malformed("indexes lie in indexes too deep".into())))
    }

    fn image(
        &self,
        key: &str,
        reference: &Reference,
        manifest_digest: &str,
        module: String,
        mut blobs: Vec<String>,
        run: ImageConfig,
    ) -> Image {
        blobs.sort();
        blobs.dedup();
        Image {
            name: key.to_owned(),
            image_id: format!("{}/{}@{manifest_digest}", reference.registry, reference.repository),
            module,
            size_bytes: blobs.iter().filter_map(|blob| self.blobs.size(blob)).sum(),
            blobs,
            argv: run.argv,
            env: run.env,
            working_dir: run.working_dir,
        }
    }

    async fn read(&self, key: &str, digest: &str) -> Result<Vec<u8>, ImageError> {
        let (store, digest) = (self.blobs.clone(), digest.to_owned());
        on_disk(key, move || store.read(&digest, MANIFEST_BYTES_MAX)).await
    }

    async fn unpack(
        &self,
        fetch: &Fetch<'_>,
        layers: Vec<super::manifest::Layer>,
        module: &str,
    ) -> Result<String, ImageError> {
        let (store, pins, module) = (self.blobs.clone(), fetch.pins.clone(), module.to_owned());
        let unpacked = on_disk(fetch.image, move || {
            let compressions: Vec<_> = layers.iter().map(|layer| layer.compression).collect();
            let mut out = store.writer(MODULE_BYTES_MAX)?;
            let mut open = |index: usize| {
                let path = store.path(&layers[index].descriptor.digest).map_err(std::io::Error::other)?;
                std::fs::File::open(path).map(std::io::BufReader::new)
            };
            Ok(match layers::extract(&compressions, &mut open, &module, &mut out) {
                Ok(()) => Ok(out.commit_any(&store, &pins)?),
                Err(refusal) => Err(refusal),
            })
        })
        .await?;
        unpacked.map_err(|refusal| fetch.refused(refusal))
    }

    async fn import(&self, key: &str, path: &Path, pins: &Arc<Pins>) -> Result<Image, ImageError> {
        let not_found = || ImageError::NotFound { image: key.to_owned() };
        let real = tokio::fs::canonicalize(path).await.map_err(|_| not_found())?;
        // After links are resolved: a link in an allowed folder must not lead out of it.
        if !self.file_dirs.iter().any(|dir| real.starts_with(dir)) {
            return Err(ImageError::FileNotAllowed { path: path.display().to_string() });
        }
        let (store, pins) = (self.blobs.clone(), pins.clone());
        let module = on_disk(key, move || {
            let file = std::fs::File::open(&real)?;
            // A folder or a pipe would be read without end, or block.
            if !file.metadata()?.is_file() {
                return Err(BlobError::Io(std::io::Error::other("not a regular file")));
            }
            let mut writer = store.writer(MODULE_BYTES_MAX)?;
            let (mut file, mut buffer) = (file, vec![0; 256 << 10]);
            loop {
                match std::io::Read::read(&mut file, &mut buffer)? {
                    0 => break,
                    read => writer.write(&buffer[..read])?,
                }
            }
            writer.commit_any(&store, &pins)
        })
        .await?;
        Ok(Image {
            name: key.to_owned(),
            image_id: format!("file://{}@{module}", path.display()),
            size_bytes: self.blobs.size(&module).unwrap_or_default(),
            blobs: vec![module.clone()],
            module,
            argv: vec![basename(&path.display().to_string())],
            env: Vec::new(),
            working_dir: None,
        })
    }
}

fn basename(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

async fn on_disk<T: Send + 'static>(
    image: &str,
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, ImageError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| BlobError::Io(std::io::Error::other(error)));
    done.and_then(|done| done).map_err(|source| ImageError::Blob { image: image.to_owned(), source })
}

/// One pull's way to the registry.
struct Fetch<'a> {
    blobs: &'a Arc<BlobStore>,
    pins: &'a Arc<Pins>,
    client: &'a oci_client::Client,
    access: &'a RegistryAccess,
    repository: &'a str,
    image: &'a str,
}

impl Fetch<'_> {
    fn transfer(&self, why: impl ToString) -> ImageError {
        ImageError::Transfer { image: self.image.to_owned(), why: why.to_string() }
    }

    fn refused(&self, refusal: Refusal) -> ImageError {
        ImageError::Refused { image: self.image.to_owned(), refusal }
    }

    fn failed(&self, error: &oci_client::errors::OciDistributionError) -> ImageError {
        use oci_client::errors::OciDistributionError as E;
        let not_found = match error {
            E::ImageManifestNotFoundError(_) => true,
            E::ServerError { code, .. } => *code == 404,
            E::RegistryError { envelope, .. } => {
                use oci_client::errors::OciErrorCode as Code;
                let unknown = [Code::NameUnknown, Code::ManifestUnknown, Code::BlobUnknown, Code::NotFound];
                envelope.errors.iter().any(|error| unknown.contains(&error.code))
            }
            _ => false,
        };
        if not_found { ImageError::NotFound { image: self.image.to_owned() } } else { self.transfer(error) }
    }

    fn auth(&self) -> RegistryAuth {
        let Credentials { user, password } = &self.access.credentials;
        RegistryAuth::Basic(user.clone(), password.clone())
    }

    fn reference(&self, manifest: &str) -> oci_client::Reference {
        let (address, repository) = (self.access.address.clone(), self.repository.to_owned());
        if manifest.contains(':') {
            oci_client::Reference::with_digest(address, repository, manifest.to_owned())
        } else {
            oci_client::Reference::with_tag(address, repository, manifest.to_owned())
        }
    }

    /// A manifest's bytes and digest, verified and kept.
    async fn manifest(&self, name: &str) -> Result<(Vec<u8>, String), ImageError> {
        let reference = self.reference(name);
        let pulled = self.client.pull_manifest_raw(&reference, &self.auth(), &ACCEPTED).await;
        let (bytes, _) = pulled.map_err(|error| self.failed(&error))?;
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(self.refused(Refusal::TooLarge(format!("a manifest of {} bytes", bytes.len()))));
        }
        let actual = digest(&bytes);
        if name.contains(':') && name != actual {
            return Err(self.transfer(format!("asked for manifest {name}, got {actual}")));
        }
        Ok((bytes.into(), actual))
    }

    /// Fetches a blob, unless it is there.
    async fn blob(&self, descriptor: &Descriptor, max_bytes: u64) -> Result<(), ImageError> {
        let blob = |source| ImageError::Blob { image: self.image.to_owned(), source };
        if !is_sha256(&descriptor.digest) {
            return Err(blob(BlobError::BadDigest(descriptor.digest.chars().take(100).collect())));
        }
        if descriptor.size > max_bytes {
            let text = format!("a blob of {} bytes, at most {max_bytes} are taken", descriptor.size);
            return Err(self.refused(Refusal::TooLarge(text)));
        }
        self.pins.add(&descriptor.digest);
        if self.blobs.size(&descriptor.digest).is_some() {
            return Ok(());
        }
        let reference = self.reference(&descriptor.digest);
        let stream = self.client.pull_blob_stream(&reference, descriptor.digest.as_str()).await;
        let mut stream = stream.map_err(|error| self.failed(&error))?.stream;
        // What is announced is the bound: a registry that sends more is cut off.
        let limit = if descriptor.size == 0 { max_bytes } else { descriptor.size };
        let mut writer = self.blobs.writer(limit).map_err(blob)?;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| self.transfer(error))?;
            let written = tokio::task::spawn_blocking(move || {
                let result = writer.write(&chunk);
                (writer, result)
            })
            .await;
            let (back, result) = written.map_err(|error| self.transfer(error))?;
            result.map_err(blob)?;
            writer = back;
        }
        let (store, wanted) = (self.blobs.clone(), descriptor.digest.clone());
        on_disk(self.image, move || writer.commit(&store, &wanted)).await
    }
}

/// A client of a registry: never through a proxy of the environment, as the built-in one is at hand.
pub(super) fn client_config(access: &RegistryAccess) -> ClientConfig {
    let certificates = access.ca_pem.iter().map(|pem| oci_client::client::Certificate {
        encoding: oci_client::client::CertificateEncoding::Pem,
        data: pem.clone(),
    });
    ClientConfig {
        protocol: if access.ca_pem.is_some() { ClientProtocol::Https } else { ClientProtocol::Http },
        extra_root_certificates: certificates.collect(),
        http_proxy: Some("http://127.0.0.1:9".into()),
        https_proxy: Some("http://127.0.0.1:9".into()),
        no_proxy: Some("0.0.0.0/0,::/0,*".into()),
        connect_timeout: Some(Duration::from_secs(10)),
        read_timeout: Some(Duration::from_secs(60)),
        platform_resolver: None,
        ..ClientConfig::default()
    }
}
