//! Image garbage collection, once per process, as its node agents share the images. Warnings go to each of them through
//! [`SharedNodeParts::node_warnings`], and become events of its Node.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use images::{CollectPolicy, Collected, Disk, Images};
use machinery_client::EventRecord;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::eviction::node_reference;
use super::register::disk;
use super::{NodeWarning, SharedNodeParts};
use crate::pod::shared::NodeContext;

/// The interval between two collections (upstream's).
const INTERVAL: Duration = Duration::from_secs(300);

/// Collects unused images by `policy` until `stop`. The usage of the disk below `data_dir` decides.
pub async fn run_image_gc(parts: SharedNodeParts, policy: CollectPolicy, data_dir: PathBuf, stop: CancellationToken) {
    let mut failed_before = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = parts.env.sleep(INTERVAL) => {}
        }
        let (images, data_dir) = (parts.images.clone(), data_dir.clone());
        let collection = tokio::task::spawn_blocking(move || collect_once(&images, &policy, &data_dir));
        match collection.await {
            Ok(outcome) => {
                for warning in warnings(&outcome, &mut failed_before) {
                    tracing::warn!(reason = warning.reason, "{}", warning.message);
                    // An error means that no node listens.
                    let _ = parts.node_warnings.send(warning);
                }
            }
            Err(error) => tracing::error!(%error, "the image garbage collection failed"),
        }
    }
}

/// The result of one collection.
struct Outcome {
    disk: Option<Disk>,
    collected: Result<Collected, String>,
}

fn collect_once(images: &Arc<Images>, policy: &CollectPolicy, data_dir: &Path) -> Outcome {
    let disk = disk(data_dir).map(|(total_bytes, available_bytes)| Disk { total_bytes, available_bytes });
    let collected = images.collect(policy, disk);
    if let Ok(Collected { images, freed_bytes, .. }) = &collected
        && (*images, *freed_bytes) != (0, 0)
    {
        tracing::info!(images, freed_bytes, "unused images were removed");
    }
    Outcome { disk, collected: collected.map_err(|error| error.to_string()) }
}

/// The warnings of a collection, in upstream's words: a full disk at once, a failure when it repeats. Pure.
fn warnings(outcome: &Outcome, failed_before: &mut bool) -> Vec<NodeWarning> {
    let mut warnings = Vec::new();
    let failure = match &outcome.collected {
        Ok(Collected { wanted_bytes, found_bytes, freed_bytes, .. }) if found_bytes < wanted_bytes => {
            let Disk { total_bytes, available_bytes } =
                outcome.disk.unwrap_or(Disk { total_bytes: 0, available_bytes: 0 });
            let free_percent = available_bytes.saturating_mul(100).checked_div(total_bytes).unwrap_or(0);
            let message = format!(
                "Insufficient free disk space on the node's image filesystem ({}% of {} used). Failed to free sufficient space by \
                 deleting unused images (freed {freed_bytes} bytes). Investigate disk usage, as it could be used by active \
                 images, logs, volumes, or other data.",
                100 - free_percent.min(100),
                size(total_bytes),
            );
            warnings.push(NodeWarning { reason: "FreeDiskSpaceFailed", message: message.clone() });
            Some(message)
        }
        Ok(_) => None,
        Err(error) => Some(error.clone()),
    };
    let again = std::mem::replace(failed_before, failure.is_some());
    warnings.extend(failure.filter(|_| again).map(|message| NodeWarning { reason: "ImageGCFailed", message }));
    warnings
}

/// Formats bytes in the largest binary unit, with one decimal.
fn size(bytes: u64) -> String {
    let mut units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)].into_iter();
    match units.find(|(_, power)| bytes >> power > 0) {
        Some((unit, power)) => format!("{:.1} {unit}", bytes as f64 / (1u64 << power) as f64),
        None => format!("{bytes} B"),
    }
}

/// Records the warnings as events of this node, until the node stops.
pub(super) async fn record_node_warnings(node: Arc<NodeContext>) {
    let mut warnings = node.parts.node_warnings.subscribe();
    loop {
        let warning = tokio::select! {
            () = node.stop.cancelled() => return,
            warning = warnings.recv() => warning,
        };
        match warning {
            Ok(NodeWarning { reason, message }) => {
                node.recorder.record(EventRecord {
                    about: node_reference(&node),
                    warning: true,
                    reason,
                    message,
                    source: None,
                });
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_repeated_failures_are_reported() {
        let mut before = false;
        let disk = Some(Disk { total_bytes: 100 << 30, available_bytes: 7 << 30 });
        let mut round = |collected: Result<Collected, String>| {
            let warnings = warnings(&Outcome { disk, collected }, &mut before);
            warnings.into_iter().map(|warning| (warning.reason, warning.message)).collect::<Vec<_>>()
        };
        let collected = |wanted_bytes, found_bytes| Collected { images: 1, freed_bytes: 5, wanted_bytes, found_bytes };
        assert_eq!(round(Ok(collected(10, 10))), []);
        let first = round(Ok(collected(10, 5)));
        assert_eq!((first.len(), first[0].0), (1, "FreeDiskSpaceFailed"));
        assert!(
            first[0].1.contains("filesystem (93% of 100.0 GiB used)") && first[0].1.contains("(freed 5 bytes)"),
            "{first:?}"
        );
        let second = round(Err("no".into()));
        assert_eq!(second, [("ImageGCFailed", "no".to_owned())], "the second failure in a row");
        assert_eq!(round(Ok(collected(0, 0))), []);
        assert_eq!(round(Err("no".into())), [], "the first after one that went well");
    }
}
