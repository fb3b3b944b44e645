//! Files of images: those that are mounted (KEP-4639), fetched as those that are run, and those that are run and hold more than modules.
//! Each is unpacked into a folder that all who have the same image share, read-only. The folders are a cache: made from blobs when they are wanted, gone with the process.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::error::ImageError;
use super::keyring::Keyring;
use super::known::{Image, Purpose, key};
use super::manifest::Refusal;
use super::pull::{Images, Pulled, on_disk};
use super::unpack::{UnpackError, unpack};
use super::volume_manifest::Content;
use oci_registry::blobs::BlobError;
use oci_registry::reference::ImageName;

/// What folders are called that are about to be removed.
const ASIDE: &str = ".old-";

/// The folders of images that are unpacked.
pub(super) struct Trees {
    dir: PathBuf,
    /// Bytes that were written, by [`Image::tree`].
    unpacked: Mutex<BTreeMap<String, u64>>,
}

impl Trees {
    /// An empty folder of folders. What an earlier process has left is put aside at once and removed by a thread: a large tree takes
    /// a while, and a start doesn't wait for it. What a process that ends meanwhile leaves, the next one finds.
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
                    tracing::warn!(%error, "what was unpacked before cannot be removed");
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

    /// What the folder of an image takes.
    pub(super) fn bytes(&self, image: &Image) -> u64 {
        image.tree().and_then(|tree| self.unpacked().get(&tree).copied()).unwrap_or_default()
    }

    /// Removes the folders of images that are not among what `held` finds; how many bytes they had. Who has an image before it looks
    /// for its folder finds one that stays.
    pub(super) fn sweep(&self, held: impl FnOnce() -> Vec<Arc<Image>>) -> std::io::Result<u64> {
        let (mut freed_bytes, mut gone) = (0, Vec::new());
        {
            let mut unpacked = self.unpacked();
            let held = held();
            let held: BTreeSet<String> = held.iter().filter_map(|image| image.tree()).collect();
            let unused: Vec<String> = unpacked.keys().filter(|tree| !held.contains(*tree)).cloned().collect();
            for tree in unused {
                let aside = tempfile::tempdir_in(&self.dir)?;
                std::fs::rename(self.path(&tree), aside.path().join("tree"))?;
                freed_bytes += unpacked.remove(&tree).unwrap_or_default();
                gone.push(aside);
            }
        }
        gone.into_iter().try_for_each(tempfile::TempDir::close)?;
        Ok(freed_bytes)
    }

    /// Has the folder of an image, where nobody was quicker.
    fn put(&self, tree: String, partial: tempfile::TempDir, bytes: u64) -> std::io::Result<()> {
        let path = self.path(&tree);
        if let Entry::Vacant(vacant) = self.unpacked().entry(tree) {
            std::fs::rename(partial.keep(), path)?;
            vacant.insert(bytes);
        }
        Ok(())
    }
}

impl Image {
    /// What its folder is called: an image that is run has other files in it than one that is mounted (another child of its index,
    /// another form of artifact). `None`: it has none.
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
        let keyring = &*self.provided(&reference, keyring, namespace).await;
        let place = self.place(&key(&name, Purpose::Volume), namespace).await;
        let began = self.env.elapsed();
        let pins = Arc::new(self.blobs.pins());
        let (pulled, trust) = self.fetch((image, &name, Purpose::Volume), &reference, keyring, &pins).await?;
        let kept = self.remember(pulled, trust);
        let image = kept.map_err(|source| ImageError::Blob { image: name, source: source.into() })?;
        self.tree(&image).await?;
        drop(place);
        let took = self.env.elapsed().saturating_sub(began);
        Ok(Pulled { image, took })
    }

    /// The folder of an image, unpacked where it isn't yet; none where nothing of it is seen as files. It stays as long as somebody has
    /// the image.
    ///
    /// # Errors
    /// The layers, or the disk.
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
                Ok(bytes) => trees.put(name, partial, bytes).map(Ok).map_err(BlobError::Io),
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
