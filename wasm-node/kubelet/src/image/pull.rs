//! The images of a node: from a name in a pod's spec to a module that is verified, kept and compiled, and who may use it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::access::{Access, Trust};
use super::compiling::{Told, told};
use super::error::ImageError;
use super::keyring::Keyring;
use super::known::{AllKnown, Image, Known, Purpose, Record, key};
use super::providers::{CredentialProviders, ProviderFigures, Providers};
use super::registries::Registries;
use super::remote::Remote;
use super::signatures::{Rule, SignaturePolicy};
use super::source::{Source, repository};
use super::toolbox::Toolbox;
use super::turns::{PARALLEL_PULLS_DEFAULT, Turn, Turns};
use super::volume::Trees;
use machinery_env::Env;
use oci_registry::Credentials;
use oci_registry::blobs::{BlobError, BlobStore, Pins, digest, write_durably};
use oci_registry::reference::{BUILT_IN_REGISTRY, ImageName, Reference};
use runtime_api::flights::Flights;
use runtime_api::{LoadError, MODULE_BYTES_MAX, Metering, Module, Runtime};

/// Wall clock of one pull without its compilation.
const PULL_TIME_MAX: Duration = Duration::from_secs(900);

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

/// What the images of a node are made with.
pub struct ImagesConfig {
    /// How the cluster's own registry is reached.
    pub built_in: Option<RegistryAccess>,
    /// How the others are.
    pub registries: Registries,
    /// Folders of `--allow-file-images`.
    pub file_dirs: Vec<PathBuf>,
    /// Pulls at once.
    pub parallel_pulls: usize,
    /// Who is asked for credentials of the node.
    pub credential_providers: CredentialProviders,
    /// Which images have to be signed.
    pub signature_policy: SignaturePolicy,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        let (registries, file_dirs) = (Registries::default(), Vec::new());
        Self {
            built_in: None,
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
    /// How long it took, without what it waited for other pulls.
    pub took: Duration,
}

/// Leave to pull an image, which nobody else pulls meanwhile.
pub(super) struct Place {
    own: OwnedMutexGuard<()>,
    _turn: Turn,
    _alone: OwnedMutexGuard<()>,
}

impl Place {
    /// Others may pull it; those of the same namespace wait until what is left is dropped.
    pub(super) fn leave(self) -> OwnedMutexGuard<()> {
        self.own
    }
}

/// The images of a node.
pub struct Images {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) env: Env,
    pub(super) blobs: Arc<BlobStore>,
    pub(super) source: Source,
    providers: Providers,
    file_dirs: Vec<PathBuf>,
    records: PathBuf,
    known: Mutex<AllKnown>,
    flights: Flights<String>,
    pub(super) toolbox: Toolbox,
    pub(super) turns: Turns,
    pub(super) trees: Arc<Trees>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").finish_non_exhaustive()
    }
}

impl Images {
    /// Opens the images in a blob store.
    ///
    /// # Errors
    /// The disk.
    pub fn open(
        runtime: Arc<dyn Runtime>,
        env: Env,
        blobs: Arc<BlobStore>,
        config: ImagesConfig,
    ) -> Result<Self, ImageError> {
        let io = |source: std::io::Error| ImageError::Blob { image: "images".into(), source: source.into() };
        let records = blobs.folder("images").map_err(io)?;
        let (mut known, now) = (AllKnown::default(), env.elapsed());
        for entry in std::fs::read_dir(&records).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let record = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            match record {
                Some(Record { image, trust }) if image.is_whole(&blobs) => {
                    let (key, image) = (image.key(), Arc::new(image));
                    known.by_name.insert(key, Known { image, trust, detected_at: now, used_at: now });
                }
                // A record without its module, or of another form: pulled again when it is wanted.
                _ => {
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
        let file_dirs = config.file_dirs.iter().filter_map(|dir| dir.canonicalize().ok()).collect();
        let remote = Remote::new(config.registries, config.built_in);
        let providers = Providers::new(config.credential_providers, &env);
        let source = Source::new(remote, config.signature_policy, blobs.clone(), env.clone());
        let (known, flights, turns) = (Mutex::new(known), Flights::default(), Turns::new(config.parallel_pulls));
        let trees = Arc::new(Trees::open(blobs.folder("trees").map_err(io)?).map_err(io)?);
        let toolbox = Toolbox::default();
        Ok(Self { runtime, env, blobs, source, providers, file_dirs, records, known, flights, toolbox, turns, trees })
    }

    /// Pulls that begin from here on ask these registries.
    pub fn configure(&self, registries: Registries) {
        self.source.configure(registries);
    }

    /// The registries that are asked.
    #[must_use]
    pub fn registries(&self) -> Registries {
        self.source.remote().registries.clone()
    }

    /// Pods that begin from here on get images by this policy.
    pub fn configure_signatures(&self, policy: SignaturePolicy) {
        *self.source.policy() = policy;
    }

    /// The policy that images are taken by.
    #[must_use]
    pub fn signature_policy(&self) -> SignaturePolicy {
        self.source.policy().clone()
    }

    /// What an image has to meet, where that can be met at all.
    fn rule(&self, image: &str, name: &ImageName) -> Result<Option<Arc<Rule>>, ImageError> {
        let rule = self.source.policy().rule(name);
        let refused = rule.as_ref().and_then(|rule| rule.refuses(name));
        match refused {
            Some(why) => Err(ImageError::Signature { image: image.to_owned(), why }),
            None => Ok(rule),
        }
    }

    pub(super) fn parse(image: &str) -> Result<ImageName, ImageError> {
        ImageName::parse(image).map_err(|error| ImageError::InvalidName { image: image.to_owned(), error })
    }

    /// The image, where it is on the node already and a pod with these credentials may use it.
    pub(super) fn present(
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
        let mut known = self.known();
        let known = known.by_name.get_mut(&key(&reference.to_string(), purpose));
        let known = known.filter(|known| known.trust.admits(&credentials, keyring.identity()));
        Ok(known.map(|known| {
            known.used_at = self.env.elapsed();
            known.image.clone()
        }))
    }

    /// Whether an image that is there is known to meet a rule.
    fn meets(&self, image: &Image, rule: &Rule) -> bool {
        self.known().by_name.get(&image.key()).is_some_and(|known| *known.image == *image && known.trust.meets(rule))
    }

    /// What `policy` makes of a name: the image that is there and may be used with these credentials (KEP-2535), or none
    /// where it has to be pulled.
    ///
    /// # Errors
    /// A bad name, or one that must not be pulled.
    pub fn decide(
        &self,
        (image, purpose): (&str, Purpose),
        policy: PullPolicy,
        keyring: &Keyring,
    ) -> Result<Option<Arc<Image>>, ImageError> {
        let rule = self.rule(image, &Self::parse(image)?)?;
        let present = self.present(image, purpose, keyring)?;
        // What came before the policy was as it is now, or from an archive, is pulled again: then its signatures are looked at.
        let unmet = present.as_ref().zip(rule).filter(|(image, rule)| !self.meets(image, rule));
        let present = match (policy, unmet) {
            (PullPolicy::Never, Some((found, rule))) => {
                let why = rule.unverified(&found.image_id);
                return Err(ImageError::Signature { image: image.to_owned(), why });
            }
            (_, Some(_)) => None,
            (_, None) => present,
        };
        match (policy, present) {
            (PullPolicy::Always, _) | (PullPolicy::IfNotPresent, None) => Ok(None),
            (_, Some(image)) => Ok(Some(image)),
            // The same whether it isn't there or isn't this pod's: who may not use it does not learn of it.
            (PullPolicy::Never, None) => Err(ImageError::NeverPull { image: image.to_owned() }),
        }
    }

    /// Pulls an image and compiles its module for `metering`, on the share of the pod's `namespace`; `tell` hears how long that takes.
    /// Several pulls of one name become one after another, and blobs that are there are not fetched again.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub(crate) async fn pull(
        &self,
        image: &str,
        keyring: &Keyring,
        metering: Metering,
        namespace: &str,
        tell: Told<'_>,
    ) -> Result<Pulled, ImageError> {
        let name = Self::parse(image)?;
        self.rule(image, &name)?;
        let key = match &name {
            ImageName::Registry(reference) => reference.to_string(),
            ImageName::File(path) => format!("file://{}", path.display()),
        };
        let keyring = match &name {
            ImageName::Registry(reference) => &*self.provided(reference, keyring, namespace).await,
            ImageName::File(_) => keyring,
        };
        let place = self.place(&key, namespace).await;
        let began = self.env.elapsed();
        // Until a record refers to them.
        let pins = Arc::new(self.blobs.pins());
        let (pulled, trust) = match &name {
            ImageName::Registry(reference) => {
                self.fetch((image, &key, Purpose::Module), reference, keyring, &pins).await?
            }
            ImageName::File(path) => (self.import(&key, path, &pins).await?, Trust::new(Access::of_everybody(), None)),
        };
        // Compiling has bounds of its own: a module that takes long keeps nobody from pulling what is compiled already, and the
        // line of one namespace's modules keeps no other that wants the same.
        let own = place.leave();
        let module = |source| ImageError::Module { image: key.clone(), source };
        let path = self.blobs.path(&pulled.module).map_err(|source| ImageError::Blob { image: key.clone(), source })?;
        let compiling = self.runtime.compile(&pulled.module, &path, metering, namespace);
        told(&self.env, tell, compiling).await.map_err(module)?;
        let flight = self.flight(&key);
        let kept = {
            let _alone = flight.lock().await;
            self.remember(pulled, trust)
        };
        drop(own);
        let took = self.env.elapsed().saturating_sub(began);
        let image = kept.map_err(|source| ImageError::Blob { image: key.clone(), source: source.into() })?;
        Ok(Pulled { image, took })
    }

    /// Waits until a namespace may pull what is known by `key`, and nobody else does. Nobody waits in the line of a namespace with the
    /// name held, which others may want that have no line, nor holds a turn while another one pulls it.
    pub(super) async fn place(&self, key: &str, namespace: &str) -> Place {
        // Of a namespace one asks for a turn: its others wait for that one.
        let own = self.flight(&format!("{key} of {namespace}")).lock_owned().await;
        let flight = self.flight(key);
        loop {
            let turn = self.turns.take(namespace).await;
            if let Ok(alone) = flight.clone().try_lock_owned() {
                return Place { own, _turn: turn, _alone: alone };
            }
            drop(turn);
            drop(flight.lock().await);
        }
    }

    pub(crate) fn provider_figures(&self) -> ProviderFigures {
        self.providers.figures()
    }

    /// Whether a provider is told of the ServiceAccount of a pod with that image: then what came for one is for that one.
    #[must_use]
    pub fn asks_accounts(&self, image: &str) -> bool {
        match Self::parse(image) {
            Ok(ImageName::Registry(reference)) if reference.registry != BUILT_IN_REGISTRY => {
                self.providers.asks_accounts(&repository(&reference))
            }
            _ => false,
        }
    }

    /// With what the node's providers give. They are asked before anything is held that others wait for.
    pub(super) async fn provided<'a>(
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
            given => Cow::Owned(keyring.beside(given)),
        }
    }

    /// Fetches what is named, in bounded time.
    pub(super) async fn fetch(
        &self,
        (image, key, purpose): (&str, &str, Purpose),
        reference: &Reference,
        keyring: &Keyring,
        pins: &Arc<Pins>,
    ) -> Result<(Image, Trust), ImageError> {
        let fetched = self.source.fetch((image, key, purpose), reference, keyring, pins);
        tokio::time::timeout(PULL_TIME_MAX, fetched).await.unwrap_or_else(|_| {
            let why = format!("not finished within {} s", PULL_TIME_MAX.as_secs());
            Err(ImageError::Transfer { image: key.to_owned(), registry: reference.registry.clone(), why })
        })
    }

    /// Loads an image's module as a command, whatever else it is; none where it is none.
    pub async fn load_command(
        &self,
        image: &Image,
        metering: Metering,
        namespace: &str,
    ) -> Result<Option<Arc<dyn Module>>, LoadError> {
        self.load_other(&image.module, metering, namespace).await
    }

    /// The same of any module of an image.
    pub async fn load_other(
        &self,
        module: &str,
        metering: Metering,
        namespace: &str,
    ) -> Result<Option<Arc<dyn Module>>, LoadError> {
        let path = self.blobs.path(module).map_err(|error| LoadError::NotWasm(error.to_string()))?;
        self.runtime.load_command(module, &path, metering, namespace).await
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
    pub(super) fn remember(&self, image: Image, trust: Trust) -> std::io::Result<Arc<Image>> {
        let now = self.env.elapsed();
        let before = {
            let mut known = self.known();
            let before = known.by_name.get_mut(&image.key()).filter(|known| *known.image == image);
            before.map(|known| {
                known.used_at = now;
                (known.image.clone(), known.trust.clone())
            })
        };
        let record = self.record(&image.key());
        if let Some((kept, before)) = before {
            // The same image again: whoever could use it still can.
            let trust = before.clone().with(trust);
            if trust != before {
                write_durably(&record, &serde_json::to_vec(&Record { image, trust: trust.clone() })?)?;
                if let Some(known) = self.known().by_name.get_mut(&kept.key()) {
                    known.trust = trust;
                }
            }
            return Ok(kept);
        }
        let written = Record { image, trust };
        write_durably(&record, &serde_json::to_vec(&written)?)?;
        let Record { image, trust } = written;
        let image = Arc::new(image);
        let mut known = self.known();
        let fresh = Known { image: image.clone(), trust, detected_at: now, used_at: now };
        if let Some(before) = known.by_name.insert(image.key(), fresh) {
            known.replaced.push(Arc::downgrade(&before.image));
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
