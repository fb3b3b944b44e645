//! Collecting images: does what `collect::decide` says, then removes the blobs and compiled modules that nothing refers
//! to any more. What the registry holds is referred to by its repositories, so no collection of images touches it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::collect::{Candidate, CollectPolicy, Disk, decide};
use super::known::Image;
use super::pull::Images;
use oci_registry::blobs::BlobError;
use oci_registry::distribution::names;

/// How long a blob that was pushed waits for a manifest that refers to it: a push comes to its manifest last.
const UNREFERENCED_MAX: Duration = Duration::from_secs(3600);

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images that were forgotten.
    pub images: usize,
    /// Bytes that came free: blobs and compiled modules.
    pub freed_bytes: u64,
    /// What the disk's threshold wanted, and what of it unused images could give.
    pub wanted_bytes: u64,
    /// See above.
    pub found_bytes: u64,
}

impl Images {
    /// Forgets unused images by `policy`, drops references of the registry to blobs that no manifest names, and removes
    /// what nothing refers to. One at a time; blocks on the disk.
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

    /// Removes what nothing refers to; how many bytes came free.
    pub(super) fn sweep(&self) -> Result<u64, BlobError> {
        let mut freed_bytes = self.blobs.sweep(|| {
            let mut all = names::referenced(&self.blobs)?;
            all.extend(self.held().iter().flat_map(|image| image.blobs.iter().cloned().chain([image.module.clone()])));
            Ok::<_, BlobError>(all)
        })?;
        freed_bytes += self.trees.sweep(|| self.held())?;
        freed_bytes += self.runtime.sweep(&|digest| self.uses(digest))?;
        Ok(freed_bytes)
    }

    fn candidates(&self, registry: &BTreeSet<String>, now: Duration) -> std::io::Result<Vec<Candidate>> {
        let compiled = self.runtime.compiled()?;
        let mut known = self.known();
        let all = known.by_name.iter_mut().map(|(name, known)| {
            let in_use = Arc::strong_count(&known.image) > 1;
            if in_use {
                known.used_at = now;
            }
            let blobs = known.image.blobs.iter().filter(|blob| !registry.contains(*blob));
            let blob_bytes: u64 = blobs.filter_map(|blob| self.blobs.size(blob)).sum();
            Candidate {
                name: name.clone(),
                frees_bytes: blob_bytes
                    + compiled.get(&known.image.module).copied().unwrap_or_default()
                    + self.trees.bytes(&known.image),
                detected_at: known.detected_at,
                used_at: known.used_at,
                in_use,
            }
        });
        Ok(all.collect())
    }

    /// Forgets an image, unless it came into use meanwhile or is being pulled; whether it was forgotten.
    pub(super) fn forget(&self, name: &str) -> bool {
        // A pull under way writes the record that would be removed here.
        let flight = self.flight(name);
        let Ok(_alone) = flight.try_lock() else { return false };
        let mut known = self.known();
        if known.by_name.get(name).is_none_or(|known| Arc::strong_count(&known.image) > 1) {
            return false;
        }
        if let Err(error) = oci_registry::blobs::remove_durably(&self.record(name)) {
            tracing::warn!(image = name, %error, "the image cannot be forgotten");
            return false;
        }
        known.by_name.remove(name);
        true
    }

    /// Every image that a name or a pod has.
    fn held(&self) -> Vec<Arc<Image>> {
        let mut known = self.known();
        known.replaced.retain(|image| image.strong_count() > 0);
        let replaced = known.replaced.iter().filter_map(std::sync::Weak::upgrade);
        replaced.chain(known.by_name.values().map(|known| known.image.clone())).collect()
    }

    /// Whether a name or a pod has this module, or a pull is about to.
    fn uses(&self, module: &str) -> bool {
        self.blobs.is_pinned(module)
            || module == super::toolbox::digest()
            || self
                .held()
                .iter()
                .any(|image| image.module == module || image.modules.values().any(|known| known == module))
    }
}
