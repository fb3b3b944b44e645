//! The operations of `coracle image` on a running node: list, remove, import and export. They hold the same locks and
//! pins as pulls, so they never remove an image that a pod has.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::access::{PullAccess, Trust};
use super::archive::{self, ArchiveError};
use super::error::ImageError;
use super::fetch::{Fetch, FetchError, Origin};
use super::index::{Image, Purpose, key};
use super::manifest::Refusal;
use super::pull::{Images, on_disk};
use oci_registry::blobs::{BlobError, Pins};
use oci_registry::reference::Reference;
use runtime_api::Metering;

mod client;
mod serve;

pub use client::{ImageClient, ImageClientError};
pub use serve::router;

/// An image in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedImage {
    /// The name it was pulled by.
    pub name: String,
    /// `REPOSITORY@DIGEST`.
    #[serde(rename = "imageID")]
    pub image_id: String,
    /// Bytes of its blobs.
    pub size_bytes: u64,
    /// `module` or `volume`.
    pub kind: ImageKind,
    /// Whether it is compiled or unpacked.
    pub prepared: bool,
    /// Whether a pod has it.
    pub in_use: bool,
    /// When it came to the node.
    pub created_at: Option<Timestamp>,
    /// When a pod last had it, as far as this process knows.
    pub last_used_at: Option<Timestamp>,
}

/// How an image is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageKind {
    /// The image is run.
    Module,
    /// The image is mounted.
    Volume,
}

/// The result of a removal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Removed {
    /// The full name.
    pub name: String,
    /// The bytes freed.
    pub freed_bytes: u64,
}

/// Why an image isn't removed, imported or exported.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageRequestError {
    /// The image is not on the node.
    #[error("{0} is not on this node: `coracle image ls` shows what is")]
    NotFound(String),
    /// A pod has the image, or a pull is in progress.
    #[error(
        "{0} is in use: remove the pods that have it first (`kubectl get pods -A` shows them), or wait for its pull"
    )]
    InUse(String),
    /// The archive or the name is invalid.
    #[error("{0}")]
    Bad(String),
    /// The disk failed.
    #[error("the node's disk: {0}")]
    Disk(String),
}

impl From<BlobError> for ImageRequestError {
    fn from(error: BlobError) -> Self {
        Self::Disk(error.to_string())
    }
}

impl From<ImageError> for ImageRequestError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Blob { source, .. } => Self::Disk(source.to_string()),
            other => Self::Bad(other.to_string()),
        }
    }
}

fn normalize(name: &str) -> Result<Reference, ImageRequestError> {
    Reference::parse(name).map_err(|error| ImageRequestError::Bad(format!("{name:?}: {error}")))
}

const PURPOSES: [Purpose; 2] = [Purpose::Module, Purpose::Volume];

impl Images {
    /// Lists every image by name. Reads the disk.
    pub(super) fn list_images(&self) -> std::io::Result<Vec<ListedImage>> {
        let compiled = self.runtime.compiled()?;
        let (now, elapsed) = (self.env.now(), self.env.elapsed());
        let mut all = Vec::new();
        for (key, entry) in &self.index().by_name {
            let image = &entry.image;
            let in_use = Arc::strong_count(image) > 1;
            let ago = if in_use { std::time::Duration::ZERO } else { elapsed.saturating_sub(entry.used_at) };
            let created = std::fs::metadata(self.record_path(key)).and_then(|record| record.modified()).ok();
            all.push(ListedImage {
                name: image.name.clone(),
                image_id: image.image_id.clone(),
                size_bytes: image.size_bytes,
                kind: if image.volume.is_some() { ImageKind::Volume } else { ImageKind::Module },
                prepared: compiled.contains_key(&image.module) || self.trees.bytes(image) > 0,
                in_use,
                created_at: created.and_then(|at| Timestamp::try_from(at).ok()),
                last_used_at: now.saturating_sub(ago).ok(),
            });
        }
        Ok(all)
    }

    /// Removes an image by its name, and the blobs that nothing else refers to. Blocks on the disk.
    pub(super) fn remove(&self, name: &str) -> Result<Removed, ImageRequestError> {
        let name = match name.strip_prefix("file://") {
            Some(_) => name.to_owned(),
            None => normalize(name)?.to_string(),
        };
        let keys: Vec<String> = {
            let index = self.index();
            let keys = PURPOSES.map(|purpose| key(&name, purpose)).into_iter();
            keys.filter(|key| index.by_name.contains_key(key)).collect()
        };
        if keys.is_empty() {
            return Err(ImageRequestError::NotFound(name));
        }
        if keys.iter().map(|key| self.forget(key)).filter(|forgotten| !forgotten).count() > 0 {
            return Err(ImageRequestError::InUse(name));
        }
        let freed_bytes = self.sweep().map_err(ImageRequestError::from)?;
        Ok(Removed { name, freed_bytes })
    }

    /// Imports the images of an archive under their own names or `name`. An image that is no module can only be
    /// mounted.
    pub(super) async fn import_archive(
        &self,
        mut archive: File,
        name: Option<String>,
    ) -> Result<Vec<ListedImage>, ImageRequestError> {
        let pins = Arc::new(self.blobs.pins());
        let (store, own) = (self.blobs.clone(), pins.clone());
        let read = on_disk(move || match archive::read(&mut archive, &store, &own) {
            Ok(contents) => Ok(Ok(contents)),
            Err(ArchiveError::Refused(refusal)) => Ok(Err(refusal)),
            // A blob that doesn't match its digest is the archive's defect.
            Err(ArchiveError::Blob(BlobError::Digest { expected, actual })) => {
                Ok(Err(Refusal::Malformed(format!("the blob {expected} has the digest {actual}"))))
            }
            Err(ArchiveError::Blob(error)) => Err(error),
        });
        let contents = read.await?.map_err(|refusal| ImageRequestError::Bad(refusal.to_string()))?;
        if name.is_some() && contents.images.len() != 1 {
            let count = contents.images.len();
            return Err(ImageRequestError::Bad(format!(
                "the archive has {count} images: leave --reference out, or give it one"
            )));
        }
        let mut kept = Vec::new();
        for (own, digest) in contents.images {
            let named = name.clone().or(own).ok_or_else(|| {
                ImageRequestError::Bad(
                    "the archive doesn't say what its image is called: give it one with --reference REF".into(),
                )
            })?;
            let image = self.import_image(&normalize(&named)?, (&digest, &contents.documents), &pins).await?;
            kept.push(image.key());
        }
        let listed = self.list_images().map_err(|error| ImageRequestError::Disk(error.to_string()))?;
        Ok(listed.into_iter().filter(|image| kept.contains(&key(&image.name, image.kind.into()))).collect())
    }

    async fn import_image(
        &self,
        reference: &Reference,
        (digest, documents): (&str, &BTreeMap<String, Vec<u8>>),
        pins: &Arc<Pins>,
    ) -> Result<Arc<Image>, ImageRequestError> {
        let name = reference.to_string();
        let origin = Origin::Archive { root: digest, documents };
        let (blobs, env) = (&self.blobs, &self.env);
        let fetch = Fetch { blobs, pins, env, origin, reference, key: &name, rule: None };
        let failed = |error: FetchError| match error {
            FetchError::Final(error) => ImageRequestError::from(error),
            FetchError::Remote(error) => ImageRequestError::Bad(format!("{name}: in the archive: {error}")),
            FetchError::Unsigned(why) => ImageRequestError::Bad(why),
        };
        let (image, purpose) = match fetch.image().await {
            Ok(image) => (image, Purpose::Module),
            Err(FetchError::Final(ImageError::Refused { refusal, .. })) if refusal.is_no_module() => {
                (fetch.volume().await.map_err(failed)?, Purpose::Volume)
            }
            Err(error) => return Err(failed(error)),
        };
        let flight = self.flight(&key(&name, purpose));
        let _alone = flight.lock().await;
        if purpose == Purpose::Module {
            let path = self.blobs.path(&image.module)?;
            let compiled = self.runtime.compile(&image.module, &path, Metering::Epochs, "").await;
            compiled.map_err(|error| ImageRequestError::Bad(format!("{name}: {error}")))?;
        }
        self.record_image(image, Trust::new(PullAccess::open_to_all(), None))
            .map_err(|error| ImageRequestError::Disk(error.to_string()))
    }

    /// Returns the image to export and its manifest. The caller's reference keeps both.
    pub(super) fn find_export(&self, name: &str) -> Result<(Arc<Image>, String), ImageRequestError> {
        let name = normalize(name)?.to_string();
        let index = self.index();
        let found = PURPOSES.iter().find_map(|purpose| index.by_name.get(&key(&name, *purpose)));
        let image = found.ok_or_else(|| ImageRequestError::NotFound(name.clone()))?.image.clone();
        let manifest = image.manifest.clone().ok_or_else(|| {
            ImageRequestError::Bad(format!(
                "{name} was pulled by a version that kept no manifests: remove it, and pull it again"
            ))
        })?;
        Ok((image, manifest))
    }

    /// Writes an image as an OCI layout. Blocks on the disk and on the writer.
    pub(super) fn export_archive(&self, image: &Image, manifest: &str, to: &mut dyn Write) -> Result<(), BlobError> {
        archive::write(&image.name, manifest, &self.blobs, to).map_err(|error| match error {
            ArchiveError::Blob(error) => error,
            ArchiveError::Refused(refusal) => BlobError::Io(std::io::Error::other(refusal)),
        })
    }
}

impl From<ImageKind> for Purpose {
    fn from(kind: ImageKind) -> Self {
        match kind {
            ImageKind::Module => Self::Module,
            ImageKind::Volume => Self::Volume,
        }
    }
}
