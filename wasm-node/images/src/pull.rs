//! The images of a node: resolves an image name of a pod's spec to a module that is verified, stored and compiled, and
//! checks access to it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::access::{PullAccess, Trust};
use super::compiling::{CompileProgress, report_compilation};
use super::error::ImageError;
use super::index::{Image, ImageIndex, IndexEntry, Purpose, Record, key};
use super::keyring::Keyring;
use super::providers::{CredentialProviders, ProviderMetrics, Providers};
use super::pull_limiter::{PARALLEL_PULLS_DEFAULT, PullLimiter, PullPermit};
use super::registries::Registries;
use super::remote::RegistryClients;
use super::signatures::{Rule, SignaturePolicy};
use super::source::{ImageSource, repository};
use super::toolbox::Toolbox;
use super::volume::UnpackedTrees;
use machinery_env::Env;
use oci_registry::Credentials;
use oci_registry::blobs::{BlobError, BlobStore, Pins, digest, write_durably};
use oci_registry::reference::{BUILT_IN_REGISTRY, ImageName, Reference};
use runtime_api::flights::SingleFlight;
use runtime_api::{LoadError, MODULE_BYTES_MAX, Metering, Module, Runtime};

/// Maximum time of a pull without its compilation.
const PULL_TIME_MAX: Duration = Duration::from_secs(900);

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// At each start of a container.
    Always,
    /// If the image is absent.
    IfNotPresent,
    /// Never.
    Never,
}

/// How the built-in registry is reached.
#[derive(Clone)]
pub struct RegistryAccess {
    /// `ADDR:PORT`.
    pub address: String,
    /// Its account; none where the client's certificate authenticates.
    pub credentials: Option<Credentials>,
    /// The cluster's CA as PEM where the registry speaks TLS; none = plain HTTP.
    pub ca_pem: Option<Vec<u8>>,
    /// The client's certificate and key as PEM.
    pub identity_pem: Option<Vec<u8>>,
}

impl RegistryAccess {
    /// Access with the registry's account: over TLS with `ca_pem`, else over plain HTTP.
    #[must_use]
    pub fn with_account(address: String, credentials: Credentials, ca_pem: Option<Vec<u8>>) -> Self {
        Self { address, credentials: Some(credentials), ca_pem, identity_pem: None }
    }
}

/// The configuration of [`Images`].
pub struct ImagesConfig {
    /// Access to the cluster's own registries, one an API server. A pull tries them in this order.
    pub built_in: Vec<RegistryAccess>,
    /// Access to the other registries.
    pub registries: Registries,
    /// Folders of `--allow-file-images`.
    pub file_dirs: Vec<PathBuf>,
    /// Maximum concurrent pulls.
    pub parallel_pulls: usize,
    /// The providers of the node's credentials.
    pub credential_providers: CredentialProviders,
    /// The images that must be signed.
    pub signature_policy: SignaturePolicy,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        let (registries, file_dirs) = (Registries::default(), Vec::new());
        Self {
            built_in: Vec::new(),
            registries,
            file_dirs,
            parallel_pulls: PARALLEL_PULLS_DEFAULT,
            credential_providers: CredentialProviders::default(),
            signature_policy: SignaturePolicy::default(),
        }
    }
}

/// An image that was pulled.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The image.
    pub image: Arc<Image>,
    /// The time of the pull, without waiting for other pulls.
    pub took: Duration,
}

/// The exclusive right to pull an image.
pub(super) struct PullLock {
    own: OwnedMutexGuard<()>,
    _permit: PullPermit,
    _alone: OwnedMutexGuard<()>,
}

impl PullLock {
    /// Lets other namespaces pull the image. Pulls of the same namespace wait until the returned guard is dropped.
    pub(super) fn unlock_image(self) -> OwnedMutexGuard<()> {
        self.own
    }
}

/// The images of a node.
pub struct Images {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) env: Env,
    pub(super) blobs: Arc<BlobStore>,
    pub(super) source: ImageSource,
    providers: Providers,
    file_dirs: Vec<PathBuf>,
    records: PathBuf,
    index: Mutex<ImageIndex>,
    flights: SingleFlight<String>,
    pub(super) toolbox: Toolbox,
    pub(super) pull_limiter: PullLimiter,
    pub(super) trees: Arc<UnpackedTrees>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").finish_non_exhaustive()
    }
}

impl Images {
    /// Opens the images of a blob store.
    ///
    /// # Errors
    /// The disk failed.
    pub fn open(
        runtime: Arc<dyn Runtime>,
        env: Env,
        blobs: Arc<BlobStore>,
        config: ImagesConfig,
    ) -> Result<Self, ImageError> {
        let io = |source: std::io::Error| ImageError::Blob { image: "images".into(), source: source.into() };
        let records = blobs.folder("images").map_err(io)?;
        let (mut index, now) = (ImageIndex::default(), env.elapsed());
        for entry in std::fs::read_dir(&records).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let record = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            match record {
                Some(Record { image, trust }) if image.is_whole(&blobs) => {
                    let (key, image) = (image.key(), Arc::new(image));
                    index.by_name.insert(key, IndexEntry { image, trust, detected_at: now, used_at: now });
                }
                // A record without its module, or of another format: the image is pulled again on demand.
                _ => {
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
        let file_dirs = config.file_dirs.iter().filter_map(|dir| dir.canonicalize().ok()).collect();
        let remote = RegistryClients::new(&env, config.registries, config.built_in);
        let providers = Providers::new(config.credential_providers, &env);
        let source = ImageSource::new(remote, config.signature_policy, blobs.clone(), env.clone());
        let (index, flights, pull_limiter) =
            (Mutex::new(index), SingleFlight::default(), PullLimiter::new(config.parallel_pulls));
        let trees = Arc::new(UnpackedTrees::open(blobs.folder("trees").map_err(io)?).map_err(io)?);
        let toolbox = Toolbox::default();
        Ok(Self {
            runtime,
            env,
            blobs,
            source,
            providers,
            file_dirs,
            records,
            index,
            flights,
            toolbox,
            pull_limiter,
            trees,
        })
    }

    /// Sets the registries for pulls that begin later.
    pub fn configure(&self, registries: Registries) {
        self.source.configure(registries);
    }

    /// Sets the cluster's own registries for pulls that begin later.
    pub fn configure_built_in(&self, built_in: Vec<RegistryAccess>) {
        self.source.configure_built_in(built_in);
    }

    /// Returns the current registries.
    #[must_use]
    pub fn registries(&self) -> Registries {
        self.source.remote().registries.clone()
    }

    /// Sets the signature policy for pods that begin later.
    pub fn configure_signatures(&self, policy: SignaturePolicy) {
        *self.source.policy() = policy;
    }

    /// Returns the current signature policy.
    #[must_use]
    pub fn signature_policy(&self) -> SignaturePolicy {
        self.source.policy().clone()
    }

    /// Returns the rule that an image has to meet; an error if no image of that name can meet it.
    fn rule(&self, image: &str, name: &ImageName) -> Result<Option<Arc<Rule>>, ImageError> {
        let rule = self.source.policy().rule(name);
        let refused = rule.as_ref().and_then(|rule| rule.rejection(name));
        match refused {
            Some(why) => Err(ImageError::Signature { image: image.to_owned(), why }),
            None => Ok(rule),
        }
    }

    pub(super) fn parse(image: &str) -> Result<ImageName, ImageError> {
        ImageName::parse(image).map_err(|error| ImageError::InvalidName { image: image.to_owned(), error })
    }

    /// Returns the image if it is on the node and a pod with these credentials may use it.
    pub(super) fn find_usable(
        &self,
        image: &str,
        purpose: Purpose,
        keyring: &Keyring,
    ) -> Result<Option<Arc<Image>>, ImageError> {
        let reference = match Self::parse(image)? {
            ImageName::Registry(reference) => reference,
            // A file may have changed: it is read again, which costs a digest.
            ImageName::File(_) => return Ok(None),
        };
        let credentials = keyring.lookup(&repository(&reference));
        let mut index = self.index();
        let entry = index.by_name.get_mut(&key(&reference.to_string(), purpose));
        let entry = entry.filter(|entry| entry.trust.admits(&credentials, keyring.identity()));
        Ok(entry.map(|entry| {
            entry.used_at = self.env.elapsed();
            entry.image.clone()
        }))
    }

    /// Returns whether a local image is recorded as meeting a rule.
    fn meets(&self, image: &Image, rule: &Rule) -> bool {
        self.index().by_name.get(&image.key()).is_some_and(|entry| *entry.image == *image && entry.trust.meets(rule))
    }

    /// Applies `policy` to a name. Returns a local image that may be used with these credentials (KEP-2535), or `None`
    /// if it must be pulled.
    ///
    /// # Errors
    /// The name is invalid, or the image must not be pulled.
    pub fn decide(
        &self,
        (image, purpose): (&str, Purpose),
        policy: PullPolicy,
        keyring: &Keyring,
    ) -> Result<Option<Arc<Image>>, ImageError> {
        let rule = self.rule(image, &Self::parse(image)?)?;
        let present = self.find_usable(image, purpose, keyring)?;
        // An image from an archive, or pulled under an older policy, is pulled again to check its signatures.
        let unmet = present.as_ref().zip(rule).filter(|(image, rule)| !self.meets(image, rule));
        let present = match (policy, unmet) {
            (PullPolicy::Never, Some((found, rule))) => {
                let why = rule.unverified_message(&found.image_id);
                return Err(ImageError::Signature { image: image.to_owned(), why });
            }
            (_, Some(_)) => None,
            (_, None) => present,
        };
        match (policy, present) {
            (PullPolicy::Always, _) | (PullPolicy::IfNotPresent, None) => Ok(None),
            (_, Some(image)) => Ok(Some(image)),
            // The error is the same for an absent image and one that the pod may not use: it reveals nothing about
            // other pods' images.
            (PullPolicy::Never, None) => Err(ImageError::NeverPull { image: image.to_owned() }),
        }
    }

    /// Pulls an image and compiles its module for `metering`, on the share of the pod's `namespace`; `on_progress`
    /// receives the compilation's progress. Pulls of the same name run one after another. Blobs in the store are not
    /// fetched again.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn pull(
        &self,
        image: &str,
        keyring: &Keyring,
        metering: Metering,
        namespace: &str,
        on_progress: CompileProgress<'_>,
    ) -> Result<Pulled, ImageError> {
        let name = Self::parse(image)?;
        self.rule(image, &name)?;
        let key = match &name {
            ImageName::Registry(reference) => reference.to_string(),
            ImageName::File(path) => format!("file://{}", path.display()),
        };
        let keyring = match &name {
            ImageName::Registry(reference) => &*self.with_provider_credentials(reference, keyring, namespace).await,
            ImageName::File(_) => keyring,
        };
        let pull_lock = self.lock_pull(&key, namespace).await;
        let began = self.env.elapsed();
        // Pins keep the blobs until a record refers to them.
        let pins = Arc::new(self.blobs.pins());
        let (pulled, trust) = match &name {
            ImageName::Registry(reference) => {
                self.fetch((image, &key, Purpose::Module), reference, keyring, &pins).await?
            }
            ImageName::File(path) => {
                (self.import(&key, path, &pins).await?, Trust::new(PullAccess::open_to_all(), None))
            }
        };
        // Compilation has its own limits: a long one must not block pulls of compiled images. One namespace's compile
        // queue must not block another namespace that pulls the same image.
        let own = pull_lock.unlock_image();
        let module = |source| ImageError::Module { image: key.clone(), source };
        let path = self.blobs.path(&pulled.module).map_err(|source| ImageError::Blob { image: key.clone(), source })?;
        let compiling = self.runtime.compile(&pulled.module, &path, metering, namespace);
        report_compilation(&self.env, on_progress, compiling).await.map_err(module)?;
        let flight = self.flight(&key);
        let kept = {
            let _alone = flight.lock().await;
            self.record_image(pulled, trust)
        };
        drop(own);
        let took = self.env.elapsed().saturating_sub(began);
        let image = kept.map_err(|source| ImageError::Blob { image: key.clone(), source: source.into() })?;
        Ok(Pulled { image, took })
    }

    /// Waits for the right of `namespace` to pull the image `key`. A pull that waits in its namespace's queue doesn't
    /// hold the image's lock, which other namespaces may need. A pull that waits for the image's lock holds no permit.
    pub(super) async fn lock_pull(&self, key: &str, namespace: &str) -> PullLock {
        // One pull of each namespace waits for a permit; the others of the namespace wait for that pull.
        let own = self.flight(&format!("{key} of {namespace}")).lock_owned().await;
        let flight = self.flight(key);
        loop {
            let permit = self.pull_limiter.acquire(namespace).await;
            if let Ok(alone) = flight.clone().try_lock_owned() {
                return PullLock { own, _permit: permit, _alone: alone };
            }
            drop(permit);
            drop(flight.lock().await);
        }
    }

    /// Returns the metrics of the credential providers.
    #[must_use]
    pub fn provider_metrics(&self) -> ProviderMetrics {
        self.providers.metrics()
    }

    /// Returns whether a provider receives the pod's ServiceAccount for this image. If so, credentials are valid for
    /// that ServiceAccount only.
    #[must_use]
    pub fn uses_service_account(&self, image: &str) -> bool {
        match Self::parse(image) {
            Ok(ImageName::Registry(reference)) if reference.registry != BUILT_IN_REGISTRY => {
                self.providers.uses_service_account(&repository(&reference))
            }
            _ => false,
        }
    }

    /// Adds the providers' credentials. They are requested before any lock is held.
    pub(super) async fn with_provider_credentials<'a>(
        &self,
        reference: &Reference,
        keyring: &'a Keyring,
        namespace: &str,
    ) -> Cow<'a, Keyring> {
        if reference.registry == BUILT_IN_REGISTRY {
            return Cow::Borrowed(keyring);
        }
        match self.providers.credentials(&repository(reference), namespace, keyring.account()).await {
            none if none.is_empty() => Cow::Borrowed(keyring),
            given => Cow::Owned(keyring.with_provided(given)),
        }
    }

    /// Fetches an image in bounded time.
    pub(super) async fn fetch(
        &self,
        (image, key, purpose): (&str, &str, Purpose),
        reference: &Reference,
        keyring: &Keyring,
        pins: &Arc<Pins>,
    ) -> Result<(Image, Trust), ImageError> {
        let fetched = self.source.fetch((image, key, purpose), reference, keyring, pins);
        self.env.timeout(PULL_TIME_MAX, fetched).await.unwrap_or_else(|_| {
            let why = format!("not finished within {} s", PULL_TIME_MAX.as_secs());
            Err(ImageError::Transfer { image: key.to_owned(), registry: reference.registry.clone(), why })
        })
    }

    /// Loads an image's module as a command, independent of its own kind; `None` if it is no command.
    pub async fn load_command(
        &self,
        image: &Image,
        metering: Metering,
        namespace: &str,
    ) -> Result<Option<Arc<dyn Module>>, LoadError> {
        self.load_other(&image.module, metering, namespace).await
    }

    /// Like [`Self::load_command`], for any module of an image.
    pub async fn load_other(
        &self,
        module: &str,
        metering: Metering,
        namespace: &str,
    ) -> Result<Option<Arc<dyn Module>>, LoadError> {
        let path = self.blobs.path(module).map_err(|error| LoadError::NotWasm(error.to_string()))?;
        self.runtime.load_command(module, &path, metering, namespace).await
    }

    /// Reads the imports of an image's module from its bytes by `imports`, a function of the runtime.
    ///
    /// # Errors
    /// Returns the reason as text if the module isn't stored any more or can't be read.
    pub async fn imports(
        &self,
        image: &Image,
        imports: fn(&[u8]) -> Result<Vec<String>, LoadError>,
    ) -> Result<Vec<String>, String> {
        let (blobs, digest) = (self.blobs.clone(), image.module.clone());
        let bytes = on_disk(move || blobs.read(&digest, MODULE_BYTES_MAX)).await.map_err(|error| error.to_string())?;
        let read = tokio::task::spawn_blocking(move || imports(&bytes)).await.map_err(|error| error.to_string())?;
        read.map_err(|error| error.to_string())
    }

    /// Loads an image's module from the cache of compiled modules; all its containers share it.
    pub async fn load(&self, image: &Image, metering: Metering, namespace: &str) -> Result<Arc<dyn Module>, LoadError> {
        let path = self.blobs.path(&image.module).map_err(|error| LoadError::NotWasm(error.to_string()))?;
        self.runtime.load(&image.module, &path, metering, namespace).await
    }

    /// Lists every image on the node, for `status.images`. Returns copies: a reference would mark the image as in use.
    #[must_use]
    pub fn list(&self) -> Vec<Image> {
        self.index().by_name.values().map(|entry| (*entry.image).clone()).collect()
    }

    pub(super) fn index(&self) -> std::sync::MutexGuard<'_, ImageIndex> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn flight(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.flights.of(&key.to_owned())
    }

    pub(super) fn record_path(&self, name: &str) -> PathBuf {
        self.records.join(format!("{}.json", &digest(name.as_bytes())["sha256:".len()..]))
    }

    /// Records a pulled image under its name. The caller holds the name's lock.
    pub(super) fn record_image(&self, image: Image, trust: Trust) -> std::io::Result<Arc<Image>> {
        let now = self.env.elapsed();
        let before = {
            let mut index = self.index();
            let before = index.by_name.get_mut(&image.key()).filter(|entry| *entry.image == image);
            before.map(|entry| {
                entry.used_at = now;
                (entry.image.clone(), entry.trust.clone())
            })
        };
        let record = self.record_path(&image.key());
        if let Some((kept, before)) = before {
            // The same image again: earlier accepted credentials stay valid.
            let trust = before.clone().merge(trust);
            if trust != before {
                write_durably(&record, &serde_json::to_vec(&Record { image, trust: trust.clone() })?)?;
                if let Some(entry) = self.index().by_name.get_mut(&kept.key()) {
                    entry.trust = trust;
                }
            }
            return Ok(kept);
        }
        let written = Record { image, trust };
        write_durably(&record, &serde_json::to_vec(&written)?)?;
        let Record { image, trust } = written;
        let image = Arc::new(image);
        let mut index = self.index();
        let fresh = IndexEntry { image: image.clone(), trust, detected_at: now, used_at: now };
        if let Some(before) = index.by_name.insert(image.key(), fresh) {
            index.replaced.push(Arc::downgrade(&before.image));
        }
        Ok(image)
    }

    async fn import(&self, key: &str, path: &Path, pins: &Arc<Pins>) -> Result<Image, ImageError> {
        let not_found = || ImageError::NotFound { image: key.to_owned() };
        let real = tokio::fs::canonicalize(path).await.map_err(|_| not_found())?;
        // After links are resolved: a link in an allowed folder must not lead out of it.
        if !self.file_dirs.iter().any(|dir| real.starts_with(dir)) {
            return Err(ImageError::FileNotAllowed { path: path.display().to_string() });
        }
        self.rule(key, &ImageName::File(real.clone()))?;
        let (store, pins) = (self.blobs.clone(), pins.clone());
        let module = on_disk(move || {
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
        });
        let module = module.await.map_err(|source| ImageError::Blob { image: key.to_owned(), source })?;
        Ok(Image {
            name: key.to_owned(),
            image_id: format!("file://{}@{module}", path.display()),
            size_bytes: self.blobs.size(&module).unwrap_or_default(),
            blobs: vec![module.clone()],
            modules: BTreeMap::new(),
            volume: None,
            files: Vec::new(),
            manifest: None,
            module,
            argv: vec![basename(&path.display().to_string())],
            env: Vec::new(),
            working_dir: None,
            exposed_tcp_ports: Vec::new(),
        })
    }
}

pub(super) fn basename(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

pub(super) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| BlobError::Io(std::io::Error::other(error)));
    done.and_then(|done| done)
}
