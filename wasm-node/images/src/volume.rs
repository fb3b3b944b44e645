//! Unpacked images: those that are mounted (KEP-4639) and those that are run and contain more than modules. Each is
//! unpacked into a read-only folder that all users of the image share. The folders are a cache: they are created from
//! blobs on demand, and removed at the next start.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::error::ImageError;
use super::index::{Image, Purpose, key};
use super::keyring::Keyring;
use super::manifest::Refusal;
use super::pull::{Images, Pulled, on_disk};
use super::unpack::{UnpackError, unpack};
use super::volume_manifest::Content;
use oci_registry::blobs::BlobError;
use oci_registry::reference::ImageName;

/// Prefix of folders that are about to be removed.
const ASIDE: &str = ".old-";

/// The folders of unpacked images.
pub(super) struct UnpackedTrees {
    dir: PathBuf,
    /// Bytes written, by [`Image::tree`].
    unpacked: Mutex<BTreeMap<String, u64>>,
}

impl UnpackedTrees {
    /// Opens an empty cache. Folders of an earlier process are renamed at once and removed by a thread: a large tree
    /// takes a while, and the start doesn't wait for it. If this process ends before that, the next one removes the
    /// rest.
    pub(super) fn open(dir: PathBuf) -> std::io::Result<Self> {
        let aside = tempfile::Builder::new().prefix(ASIDE).tempdir_in(&dir)?;
        let mut left = Vec::new();
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            if path == aside.path() {
                continue;
            }
            let to = aside.path().join(left.len().to_string());
            std::fs::rename(&path, &to)?;
            left.push(to);
        }
        if left.is_empty() {
            aside.close()?;
        } else {
            let remove = move || {
                if let Err(error) = aside.close() {
                    tracing::warn!(%error, "the unpacked images of an earlier process cannot be removed");
                }
            };
            std::thread::Builder::new().name("old-trees".into()).spawn(remove)?;
        }
        Ok(Self { dir, unpacked: Mutex::default() })
    }

    fn unpacked(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, u64>> {
        self.unpacked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, tree: &str) -> PathBuf {
        self.dir.join(tree.trim_start_matches("sha256:"))
    }

    /// Returns the bytes of an image's folder.
    pub(super) fn bytes(&self, image: &Image) -> u64 {
        image.tree().and_then(|tree| self.unpacked().get(&tree).copied()).unwrap_or_default()
    }

    /// Removes the folders of images that `held` doesn't return, and returns their bytes. A caller that holds an image
    /// before it looks up the folder gets one that stays.
    pub(super) fn sweep(&self, held: impl FnOnce() -> Vec<Arc<Image>>) -> std::io::Result<u64> {
        let (mut freed_bytes, mut removed) = (0, Vec::new());
        {
            let mut unpacked = self.unpacked();
            let held = held();
            let held: BTreeSet<String> = held.iter().filter_map(|image| image.tree()).collect();
            let unused: Vec<String> = unpacked.keys().filter(|tree| !held.contains(*tree)).cloned().collect();
            for tree in unused {
                let aside = tempfile::tempdir_in(&self.dir)?;
                std::fs::rename(self.path(&tree), aside.path().join("tree"))?;
                freed_bytes += unpacked.remove(&tree).unwrap_or_default();
                removed.push(aside);
            }
        }
        removed.into_iter().try_for_each(tempfile::TempDir::close)?;
        Ok(freed_bytes)
    }

    /// Moves a folder to its place, unless a concurrent caller was first.
    fn publish(&self, tree: String, partial: tempfile::TempDir, bytes: u64) -> std::io::Result<()> {
        let path = self.path(&tree);
        if let Entry::Vacant(vacant) = self.unpacked().entry(tree) {
            std::fs::rename(partial.keep(), path)?;
            vacant.insert(bytes);
        }
        Ok(())
    }
}

impl Image {
    /// Returns the name of the image's folder; `None` = it has none. An image that is run has other files than one that
    /// is mounted (another child of its index, another form of artifact).
    fn tree(&self) -> Option<String> {
        let digest = self.image_id.rsplit_once('@').map_or("", |(_, digest)| digest);
        match self.volume {
            Some(_) => Some(digest.to_owned()),
            None if self.files.is_empty() => None,
            None => Some(format!("{digest}-run")),
        }
    }
}

impl Images {
    /// Pulls an image to be mounted, on the share of the pod's `namespace`.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn pull_volume(&self, image: &str, keyring: &Keyring, namespace: &str) -> Result<Pulled, ImageError> {
        let reference = match Self::parse(image)? {
            ImageName::Registry(reference) => reference,
            ImageName::File(_) => {
                let refusal = Refusal::Malformed("a file can't be mounted, only an image of a registry".into());
                return Err(ImageError::Refused { image: image.to_owned(), refusal });
            }
        };
        let name = reference.to_string();
        let keyring = &*self.with_provider_credentials(&reference, keyring, namespace).await;
        let pull_lock = self.lock_pull(&key(&name, Purpose::Volume), namespace).await;
        let began = self.env.elapsed();
        let pins = Arc::new(self.blobs.pins());
        let (pulled, trust) = self.fetch((image, &name, Purpose::Volume), &reference, keyring, &pins).await?;
        let kept = self.record_image(pulled, trust);
        let image = kept.map_err(|source| ImageError::Blob { image: name, source: source.into() })?;
        self.tree(&image).await?;
        drop(pull_lock);
        let took = self.env.elapsed().saturating_sub(began);
        Ok(Pulled { image, took })
    }

    /// Returns the folder of an image, and unpacks it if necessary; `None` if the image has no files. It stays as long
    /// as the image is referenced.
    ///
    /// # Errors
    /// The layers are invalid, or the disk failed.
    pub async fn tree(&self, image: &Arc<Image>) -> Result<Option<PathBuf>, ImageError> {
        let Some(name) = image.tree() else { return Ok(None) };
        let path = self.trees.path(&name);
        let flight = self.flight(&format!("{name} tree"));
        let _alone = flight.lock().await;
        if self.trees.unpacked().contains_key(&name) {
            return Ok(Some(path));
        }
        let layers = image.unpacked().to_vec();
        let (blobs, trees) = (self.blobs.clone(), self.trees.clone());
        let unpacked = on_disk(move || {
            blobs.check_space()?;
            let partial = tempfile::tempdir_in(&trees.dir)?;
            let contents: Vec<Content> = layers.iter().map(|layer| layer.content.clone()).collect();
            let mut open = |index: usize| {
                let path = blobs.path(&layers[index].digest).map_err(std::io::Error::other)?;
                std::fs::File::open(path).map(std::io::BufReader::new)
            };
            let space = || blobs.check_space().map_err(std::io::Error::other);
            match unpack(&contents, &mut open, partial.path(), &space) {
                Ok(bytes) => trees.publish(name, partial, bytes).map(Ok).map_err(BlobError::Io),
                Err(UnpackError::Refused(refusal)) => Ok(Err(refusal)),
                Err(UnpackError::Disk(error)) => Err(BlobError::Io(error)),
            }
        });
        let name = || image.name.clone();
        let unpacked = unpacked.await.map_err(|source| ImageError::Blob { image: name(), source })?;
        unpacked.map_err(|refusal| ImageError::Refused { image: name(), refusal })?;
        Ok(Some(path))
    }
}
