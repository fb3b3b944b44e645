//! Image garbage collection: forgets the images that `collect::decide` selects, then removes unreferenced blobs and
//! compiled modules. The registry's repositories refer to its blobs, so collecting images never removes them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::collect::{Candidate, CollectPolicy, Disk, decide};
use super::index::Image;
use super::pull::Images;
use oci_registry::blobs::BlobError;
use oci_registry::distribution::names;

/// How long a pushed blob is kept without a manifest that refers to it: a push sends its manifest last.
const UNREFERENCED_MAX: Duration = Duration::from_secs(3600);

/// The result of a collection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// The number of images forgotten.
    pub images: usize,
    /// Bytes freed: blobs and compiled modules.
    pub freed_bytes: u64,
    /// Bytes to free by the disk's threshold, and the part that unused images could free.
    pub wanted_bytes: u64,
    /// See above.
    pub found_bytes: u64,
}

impl Images {
    /// Forgets unused images by `policy`, drops the registry's references to blobs that no manifest names, and removes
    /// unreferenced blobs. One collection runs at a time; blocks on the disk.
    pub fn collect(&self, policy: &CollectPolicy, disk: Option<Disk>) -> Result<Collected, BlobError> {
        let (now, elapsed) = (self.env.now(), self.env.elapsed());
        names::unlink_unreferenced(&self.blobs, now, UNREFERENCED_MAX)?;
        let registry = names::referenced(&self.blobs)?;
        let decision = decide(policy, &self.candidates(&registry, elapsed)?, disk, elapsed);
        let images = decision.forget.iter().filter(|name| self.forget(name)).count();
        let freed_bytes = self.sweep()?;
        let (wanted_bytes, found_bytes) = (decision.wanted_bytes, decision.found_bytes);
        Ok(Collected { images, freed_bytes, wanted_bytes, found_bytes })
    }

    /// Removes unreferenced blobs and modules, and returns the bytes freed.
    pub(super) fn sweep(&self) -> Result<u64, BlobError> {
        let mut freed_bytes = self.blobs.sweep(|| {
            let mut all = names::referenced(&self.blobs)?;
            all.extend(
                self.referenced_images()
                    .iter()
                    .flat_map(|image| image.blobs.iter().cloned().chain([image.module.clone()])),
            );
            Ok::<_, BlobError>(all)
        })?;
        freed_bytes += self.trees.sweep(|| self.referenced_images())?;
        freed_bytes += self.runtime.sweep(&|digest| self.is_module_used(digest))?;
        Ok(freed_bytes)
    }

    fn candidates(&self, registry: &BTreeSet<String>, now: Duration) -> std::io::Result<Vec<Candidate>> {
        let compiled = self.runtime.compiled()?;
        let mut index = self.index();
        let all = index.by_name.iter_mut().map(|(name, entry)| {
            let in_use = Arc::strong_count(&entry.image) > 1;
            if in_use {
                entry.used_at = now;
            }
            let blobs = entry.image.blobs.iter().filter(|blob| !registry.contains(*blob));
            let blob_bytes: u64 = blobs.filter_map(|blob| self.blobs.size(blob)).sum();
            Candidate {
                name: name.clone(),
                frees_bytes: blob_bytes
                    + compiled.get(&entry.image.module).copied().unwrap_or_default()
                    + self.trees.bytes(&entry.image),
                detected_at: entry.detected_at,
                used_at: entry.used_at,
                in_use,
            }
        });
        Ok(all.collect())
    }

    /// Forgets an image unless it is in use again or being pulled. Returns whether it was forgotten.
    pub(super) fn forget(&self, name: &str) -> bool {
        // A running pull writes the record that would be removed here.
        let flight = self.flight(name);
        let Ok(_alone) = flight.try_lock() else { return false };
        let mut index = self.index();
        if index.by_name.get(name).is_none_or(|entry| Arc::strong_count(&entry.image) > 1) {
            return false;
        }
        if let Err(error) = oci_registry::blobs::remove_durably(&self.record_path(name)) {
            tracing::warn!(image = name, %error, "the record of the image cannot be removed");
            return false;
        }
        index.by_name.remove(name);
        true
    }

    /// Returns every image that a name or a pod refers to.
    fn referenced_images(&self) -> Vec<Arc<Image>> {
        let mut index = self.index();
        index.replaced.retain(|image| image.strong_count() > 0);
        let replaced = index.replaced.iter().filter_map(std::sync::Weak::upgrade);
        replaced.chain(index.by_name.values().map(|entry| entry.image.clone())).collect()
    }

    /// Returns whether a name, a pod or a running pull refers to this module.
    fn is_module_used(&self, module: &str) -> bool {
        self.blobs.is_pinned(module)
            || module == super::toolbox::digest()
            || self
                .referenced_images()
                .iter()
                .any(|image| image.module == module || image.modules.values().any(|other| other == module))
    }
}
