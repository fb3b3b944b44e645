//! Collecting images: one for all node agents of a process, as they share its images.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::NodeParts;
use super::register::disk;
use crate::image::{CollectPolicy, Collected, Disk, Images};

/// How often images are looked at (upstream's).
const INTERVAL: Duration = Duration::from_secs(300);

/// Collects what no pod uses by `policy`, until `stop`. `data_dir` lies on the disk whose use decides.
pub async fn collect(parts: NodeParts, policy: CollectPolicy, data_dir: PathBuf, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let (images, data_dir) = (parts.images.clone(), data_dir.clone());
        let once = tokio::task::spawn_blocking(move || once(&images, &policy, &data_dir));
        if let Err(error) = once.await {
            tracing::error!(%error, "the collection of images broke a promise of its own");
        }
    }
}

fn once(images: &Arc<Images>, policy: &CollectPolicy, data_dir: &Path) {
    let disk = disk(data_dir).map(|(total_bytes, available_bytes)| Disk { total_bytes, available_bytes });
    match images.collect(policy, disk) {
        Ok(Collected { wanted_bytes, found_bytes, .. }) if found_bytes < wanted_bytes => tracing::warn!(
            "the disk is fuller than {} %: {wanted_bytes} bytes should come free, unused images have {found_bytes}",
            policy.high_percent,
        ),
        Ok(Collected { images: 0, freed_bytes: 0, .. }) => {}
        Ok(Collected { images, freed_bytes, .. }) => tracing::info!(images, freed_bytes, "unused images were removed"),
        Err(error) => tracing::warn!(%error, "images cannot be collected"),
    }
}
