//! Fetches an image from one endpoint: its manifest, then its blobs and the modules in them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::error::ImageError;
use super::image_config::{ImageConfig, image_config, module_image_config};
use super::index::Image;
use super::layers::{self, ExtractError, ModuleSink, Modules};
use super::manifest::{Descriptor, Layer, Plan, Refusal, plan};
use super::pull::{basename, on_disk};
use super::session::{MANIFEST_BYTES_MAX, RemoteError, Session};
use super::signatures::{self, Rule, SignatureError};
use super::spin::{self, Asset};
use super::volume_manifest::{self, Content, VolumeLayer, VolumePlan, own_architecture};
use machinery_env::Env;
use oci_registry::blobs::{BLOB_BYTES_MAX, BlobError, BlobStore, BlobWriter, Pins, digest};
use oci_registry::reference::{Reference, is_sha256};
use runtime_api::MODULE_BYTES_MAX;

/// Maximum nesting of indexes.
const INDEX_DEPTH_MAX: usize = 4;
/// How often the download of a blob is started if its connection breaks.
const BLOB_TRIES: usize = 3;
/// Minimum transfer rate in bytes per second. A transfer that is slower for longer than the grace period blocks other
/// pulls: at this rate a module of 10 MB takes 20 minutes.
const RATE_MIN_BYTES: u64 = 8 << 10;
const RATE_GRACE: Duration = Duration::from_secs(30);

/// Why an endpoint returned no image.
pub(super) enum FetchError {
    /// Another endpoint or another credential may succeed.
    Remote(RemoteError),
    /// The image has no valid signature there; another endpoint may have it.
    Unsigned(String),
    /// No other endpoint can succeed.
    Final(ImageError),
}

impl From<RemoteError> for FetchError {
    fn from(error: RemoteError) -> Self {
        Self::Remote(error)
    }
}

/// The source of manifests and blobs.
#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    /// An endpoint of a registry.
    Registry(&'a Session),
    /// An archive, whose blobs are in the store.
    Archive {
        /// The image's manifest, or index.
        root: &'a str,
        /// Manifests by their verified digest.
        documents: &'a BTreeMap<String, Vec<u8>>,
    },
}

impl Origin<'_> {
    /// Returns a manifest and its digest.
    async fn manifest(&self, name: &str) -> Result<(Vec<u8>, String), RemoteError> {
        match self {
            Self::Registry(session) => session.manifest(name).await,
            Self::Archive { root, documents } => {
                let digest = if name.contains(':') { name } else { root };
                let found = documents.get(digest).cloned();
                found.map(|bytes| (bytes, digest.to_owned())).ok_or_else(|| missing(digest))
            }
        }
    }

    /// Requests a blob that is not in the store.
    async fn blob(&self, digest: &str) -> Result<reqwest::Response, RemoteError> {
        match self {
            Self::Registry(session) => session.blob(digest).await,
            Self::Archive { .. } => Err(missing(digest)),
        }
    }
}

fn missing(digest: &str) -> RemoteError {
    RemoteError::Failed(format!("{digest} is not there"))
}

/// One image from one source.
pub(super) struct Fetch<'a> {
    pub(super) blobs: &'a Arc<BlobStore>,
    pub(super) pins: &'a Arc<Pins>,
    pub(super) env: &'a Env,
    pub(super) origin: Origin<'a>,
    pub(super) reference: &'a Reference,
    /// The normalized name.
    pub(super) key: &'a str,
    /// The rule that the image's signatures have to meet.
    pub(super) rule: Option<&'a Rule>,
}

impl Fetch<'_> {
    fn refusal_error(&self, refusal: Refusal) -> FetchError {
        FetchError::Final(ImageError::Refused { image: self.key.to_owned(), refusal })
    }

    fn store_error(&self, source: BlobError) -> FetchError {
        FetchError::Final(ImageError::Blob { image: self.key.to_owned(), source })
    }

    /// Returns the manifest that the reference names.
    async fn root_manifest(&self) -> Result<(Vec<u8>, String), FetchError> {
        let name = self.reference.manifest();
        if name.contains(':') && !is_sha256(name) {
            return Err(self.store_error(BlobError::BadDigest(name.chars().take(100).collect())));
        }
        Ok(self.origin.manifest(name).await?)
    }

    /// Fetches an image that is run, with all its blobs.
    pub(super) async fn image(&self) -> Result<Image, FetchError> {
        let (mut bytes, manifest_digest) = self.root_manifest().await?;
        let mut chain = vec![manifest_digest.clone()];
        for _ in 0..=INDEX_DEPTH_MAX {
            match plan(&bytes).map_err(|refusal| self.refusal_error(refusal))? {
                Plan::Child(child) => bytes = self.fetch_child(&child, &mut chain).await?,
                plan => {
                    self.verify_signatures(&chain).await?;
                    let image = self.fetch_plan(plan, &manifest_digest).await?;
                    return self.with_manifest(image, bytes).await;
                }
            }
        }
        Err(self.refusal_error(Refusal::Malformed("its indexes are nested too deeply".into())))
    }

    /// Returns a manifest that an index names, and appends its digest to `chain`.
    async fn fetch_child(&self, child: &Descriptor, chain: &mut Vec<String>) -> Result<Vec<u8>, FetchError> {
        self.check(child, MANIFEST_BYTES_MAX)?;
        let (bytes, digest) = self.origin.manifest(&child.digest).await?;
        chain.push(digest);
        Ok(bytes)
    }

    /// Verifies signatures before anything that the manifest names is fetched. Images imported from an archive have no
    /// signatures: their rule is checked when a pod uses them.
    async fn verify_signatures(&self, chain: &[String]) -> Result<(), FetchError> {
        let (Some(rule), Origin::Registry(session)) = (self.rule, self.origin) else { return Ok(()) };
        let verified = signatures::verify(session, rule, self.reference, chain).await;
        verified.map_err(|unproven| match unproven {
            SignatureError::Unavailable(error) => FetchError::Remote(error),
            SignatureError::Refused(why) => FetchError::Unsigned(why),
        })
    }

    async fn fetch_plan(&self, plan: Plan, manifest_digest: &str) -> Result<Image, FetchError> {
        match plan {
            Plan::Child(_) => Err(self.refusal_error(Refusal::Malformed("an index instead of an image".into()))),
            Plan::Module { config, layer, is_image } => {
                let run = self.module_run(&config, is_image).await?;
                self.blob(&layer, MODULE_BYTES_MAX).await?;
                let blobs = vec![config.digest, layer.digest.clone()];
                Ok(self.assemble_image(manifest_digest, Modules::only(layer.digest), blobs, run))
            }
            Plan::Spin { application, layers } => {
                let document = self.document(&application).await?;
                let found = spin::component(&document, &layers).map_err(|refusal| self.refusal_error(refusal))?;
                let spin::Component { module, assets, run } = found;
                self.blob(&module, MODULE_BYTES_MAX).await?;
                let files = self.assets(assets).await?;
                let blobs = files.iter().map(|file| file.digest.clone());
                let blobs = blobs.chain([application.digest, module.digest.clone()]).collect();
                Ok(Image { files, ..self.assemble_image(manifest_digest, Modules::only(module.digest), blobs, run) })
            }
            Plan::Image { config, layers } => {
                let document = self.document(&config).await?;
                let run = image_config(&document).map_err(|refusal| self.refusal_error(refusal))?;
                let mut blobs = vec![config.digest];
                for layer in &layers {
                    self.blob(&layer.descriptor, BLOB_BYTES_MAX).await?;
                    blobs.push(layer.descriptor.digest.clone());
                }
                let packed = |layer: &Layer| {
                    let (digest, content) = (layer.descriptor.digest.clone(), Content::Tar(layer.compression));
                    VolumeLayer { digest, content }
                };
                let files = layers.iter().map(packed).collect();
                let modules = self.extract(layers, &run.module).await?;
                let files = if modules.has_other_files { files } else { Vec::new() };
                Ok(Image { files, ..self.assemble_image(manifest_digest, modules, blobs, run) })
            }
        }
    }

    /// Fetches the blobs of an application's files.
    async fn assets(&self, assets: Vec<Asset>) -> Result<Vec<VolumeLayer>, FetchError> {
        let mut files = Vec::new();
        for asset in assets {
            files.push(match asset {
                Asset::Layer(descriptor, content) => {
                    self.blob(&descriptor, BLOB_BYTES_MAX).await?;
                    VolumeLayer { digest: descriptor.digest, content }
                }
                Asset::Inline(bytes, content) => VolumeLayer { digest: self.put(bytes).await?, content },
            });
        }
        Ok(files)
    }

    /// Stores bytes that were embedded in a document, and returns their digest.
    async fn put(&self, bytes: Vec<u8>) -> Result<String, FetchError> {
        let (store, digest) = (self.blobs.clone(), digest(&bytes));
        self.pins.add(&digest);
        on_disk(move || store.put(&bytes)).await.map_err(|error| self.store_error(error))?;
        Ok(digest)
    }

    /// Stores the manifest with its image: an export needs it.
    async fn with_manifest(&self, mut image: Image, manifest: Vec<u8>) -> Result<Image, FetchError> {
        let digest = self.put(manifest).await?;
        image.blobs.push(digest.clone());
        image.manifest = Some(digest);
        Ok(image)
    }

    /// Fetches an image that is mounted, with all its blobs.
    pub(super) async fn volume(&self) -> Result<Image, FetchError> {
        let (mut bytes, manifest_digest) = self.root_manifest().await?;
        let mut chain = vec![manifest_digest.clone()];
        for _ in 0..=INDEX_DEPTH_MAX {
            match volume_manifest::plan(&bytes, own_architecture()).map_err(|refusal| self.refusal_error(refusal))? {
                VolumePlan::Child(child) => bytes = self.fetch_child(&child, &mut chain).await?,
                VolumePlan::Layers { config, layers: planned } => {
                    self.verify_signatures(&chain).await?;
                    self.blob(&config, MANIFEST_BYTES_MAX).await?;
                    let mut layers = Vec::new();
                    for (descriptor, layer) in planned {
                        self.blob(&descriptor, BLOB_BYTES_MAX).await?;
                        layers.push(layer);
                    }
                    let blobs = layers.iter().map(|layer| layer.digest.clone()).chain([config.digest]).collect();
                    let modules = Modules::only(String::new());
                    let image = self.assemble_image(&manifest_digest, modules, blobs, ImageConfig::default());
                    return self.with_manifest(Image { volume: Some(layers), ..image }, bytes).await;
                }
            }
        }
        Err(self.refusal_error(Refusal::Malformed("its indexes are nested too deeply".into())))
    }

    async fn module_run(&self, config: &Descriptor, is_image: bool) -> Result<ImageConfig, FetchError> {
        let name = basename(&self.reference.repository);
        let document = self.document(config).await?;
        if is_image {
            return module_image_config(&document, &name).map_err(|refusal| self.refusal_error(refusal));
        }
        Ok(ImageConfig { argv: vec![name], ..ImageConfig::default() })
    }

    fn assemble_image(&self, manifest_digest: &str, modules: Modules, blobs: Vec<String>, run: ImageConfig) -> Image {
        let mut blobs: Vec<String> = blobs
            .into_iter()
            .chain(modules.by_path.values().cloned())
            .chain([modules.entrypoint.clone()])
            .filter(|blob| !blob.is_empty())
            .collect();
        blobs.sort();
        blobs.dedup();
        Image {
            name: self.key.to_owned(),
            image_id: format!("{}/{}@{manifest_digest}", self.reference.registry, self.reference.repository),
            module: modules.entrypoint,
            modules: modules.by_path,
            volume: None,
            files: Vec::new(),
            manifest: None,
            size_bytes: blobs.iter().filter_map(|blob| self.blobs.size(blob)).sum(),
            blobs,
            argv: run.argv,
            env: run.env,
            working_dir: run.working_dir,
            exposed_tcp_ports: run.exposed_tcp_ports,
        }
    }

    /// Fetches and reads a small blob.
    async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, FetchError> {
        self.blob(descriptor, MANIFEST_BYTES_MAX).await?;
        let (store, digest) = (self.blobs.clone(), descriptor.digest.clone());
        on_disk(move || store.read(&digest, MANIFEST_BYTES_MAX)).await.map_err(|error| self.store_error(error))
    }

    async fn extract(&self, layers: Vec<Layer>, entrypoint: &str) -> Result<Modules, FetchError> {
        let (store, pins, entrypoint) = (self.blobs.clone(), self.pins.clone(), entrypoint.to_owned());
        let extracted = on_disk(move || {
            let compressions: Vec<_> = layers.iter().map(|layer| layer.compression).collect();
            let mut open = |index: usize| {
                let path = store.path(&layers[index].descriptor.digest).map_err(std::io::Error::other)?;
                std::fs::File::open(path).map(std::io::BufReader::new)
            };
            let mut sink = BlobModuleSink { store: &store, pins: &pins };
            match layers::extract(&compressions, &mut open, &entrypoint, &mut sink) {
                Ok(modules) => Ok(Ok(modules)),
                Err(ExtractError::Refused(refusal)) => Ok(Err(refusal)),
                Err(ExtractError::Blob(error)) => Err(error),
            }
        });
        extracted.await.map_err(|error| self.store_error(error))?.map_err(|refusal| self.refusal_error(refusal))
    }

    fn check(&self, descriptor: &Descriptor, max_bytes: u64) -> Result<(), FetchError> {
        if !is_sha256(&descriptor.digest) {
            return Err(self.store_error(BlobError::BadDigest(descriptor.digest.chars().take(100).collect())));
        }
        if descriptor.size > max_bytes {
            let text = format!("a blob of {} bytes, at most {max_bytes} are accepted", descriptor.size);
            return Err(self.refusal_error(Refusal::TooLarge(text)));
        }
        Ok(())
    }

    /// Fetches a blob unless it is in the store.
    async fn blob(&self, descriptor: &Descriptor, max_bytes: u64) -> Result<(), FetchError> {
        self.check(descriptor, max_bytes)?;
        self.pins.add(&descriptor.digest);
        if self.blobs.size(&descriptor.digest).is_some() {
            return Ok(());
        }
        // The announced size is the bound: a response that is longer is cut off.
        let limit = if descriptor.size == 0 { max_bytes } else { descriptor.size };
        let mut tries = 1;
        loop {
            match self.transfer(&descriptor.digest, limit).await {
                Err(FetchError::Remote(RemoteError::Unavailable(_))) if tries < BLOB_TRIES => tries += 1,
                done => return done,
            }
        }
    }

    async fn transfer(&self, digest: &str, limit: u64) -> Result<(), FetchError> {
        let mut response = self.origin.blob(digest).await?;
        let mut writer = self.blobs.writer(limit).map_err(|error| self.store_error(error))?;
        let began = self.env.elapsed();
        let mut bytes = 0u64;
        while let Some(chunk) = response.chunk().await.map_err(|error| RemoteError::of(&error))? {
            bytes += chunk.len() as u64;
            if is_too_slow(bytes, self.env.elapsed().saturating_sub(began)) {
                let text = format!("its blob comes with less than {RATE_MIN_BYTES} bytes a second");
                return Err(RemoteError::Failed(text).into());
            }
            let written = tokio::task::spawn_blocking(move || {
                let result = writer.write(&chunk);
                (writer, result)
            });
            let (back, result) =
                written.await.map_err(|error| self.store_error(std::io::Error::other(error).into()))?;
            result.map_err(|error| self.download_error(error))?;
            writer = back;
        }
        let (store, wanted) = (self.blobs.clone(), digest.to_owned());
        on_disk(move || writer.commit(&store, &wanted)).await.map_err(|error| self.download_error(error))
    }

    /// Another endpoint may have the correct blob if this one is wrong.
    fn download_error(&self, error: BlobError) -> FetchError {
        match error {
            BlobError::Digest { .. } | BlobError::TooLarge { .. } => {
                RemoteError::Failed(format!("it sent another blob than its manifest names: {error}")).into()
            }
            error => self.store_error(error),
        }
    }
}

fn is_too_slow(bytes: u64, took: Duration) -> bool {
    bytes < RATE_MIN_BYTES.saturating_mul(took.saturating_sub(RATE_GRACE).as_secs())
}

/// Stores modules as blobs.
struct BlobModuleSink<'a> {
    store: &'a Arc<BlobStore>,
    pins: &'a Arc<Pins>,
}

impl ModuleSink for BlobModuleSink<'_> {
    fn begin(&mut self) -> Result<BlobWriter, BlobError> {
        self.store.writer(MODULE_BYTES_MAX)
    }

    fn store(&mut self, writer: BlobWriter) -> Result<String, BlobError> {
        writer.commit_any(self.store, self.pins)
    }
}

impl Modules {
    /// The modules of an artifact that is one module.
    pub(super) fn only(digest: String) -> Self {
        Self { entrypoint: digest, by_path: BTreeMap::new(), has_other_files: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_is_cut_off_and_a_slow_line_is_not() {
        let seconds = Duration::from_secs;
        assert!(!is_too_slow(0, seconds(30)));
        assert!(is_too_slow(100, seconds(32)));
        assert!(!is_too_slow(10 << 20, seconds(600)));
        assert!(is_too_slow(1 << 20, seconds(600)));
    }
}
