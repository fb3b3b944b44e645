//! The file of `--node-inventory`. It must be valid at the start; it is reloaded on changes, and an invalid version is
//! ignored with a warning.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use controllers::{INVENTORY_BYTES_MAX, Inventory, SharedInventory};
use machinery_env::Env;
use tokio_util::sync::CancellationToken;

/// Interval between two reads.
const INTERVAL: Duration = Duration::from_secs(2);

/// The file and its present content.
#[derive(Debug, Clone)]
pub(crate) struct NodeInventory {
    path: PathBuf,
    pub(crate) now: Arc<SharedInventory>,
}

impl NodeInventory {
    /// Opens the file of `--node-inventory`, if it is given.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn of(options: &controllers::ControllerOptions) -> anyhow::Result<Option<Self>> {
        options.cloud.node_inventory.as_deref().map(Self::open).transpose()
    }

    /// Reads the file for the first time.
    ///
    /// # Errors
    /// If the file can't be read or parsed.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let inventory = parse(path, &text(path)?)?;
        Ok(Self { path: path.to_owned(), now: Arc::new(SharedInventory::new(inventory)) })
    }

    /// Reloads the file on changes until `stop`.
    pub(crate) async fn reload_on_changes(self, env: Env, stop: CancellationToken) {
        let (mut last, mut reported) = (String::new(), None);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = env.sleep(INTERVAL) => {}
            }
            let file = self.clone();
            let reload = tokio::task::spawn_blocking(move || (file.reload(&mut last), last));
            let found;
            (found, last) = reload.await.unwrap_or_else(|error| (Err(error.into()), String::new()));
            match found {
                Ok(Some(nodes)) => {
                    tracing::info!(file = %self.path.display(), nodes, "reloaded the node inventory");
                    reported = None;
                }
                Ok(None) => {}
                Err(why) => {
                    let why = format!("{why:#}");
                    if reported.as_ref() != Some(&why) {
                        tracing::warn!(why, "the inventory cannot be used; the previous one stays in effect");
                    }
                    reported = Some(why);
                }
            }
        }
    }

    /// Reads the file and compares it with `last`. Returns the number of nodes if the inventory has changed.
    fn reload(&self, last: &mut String) -> anyhow::Result<Option<usize>> {
        let text = text(&self.path)?;
        // Skip parsing of an unchanged file.
        if *last == text {
            return Ok(None);
        }
        let inventory = parse(&self.path, &text)?;
        *last = text;
        let nodes = inventory.len();
        Ok(self.now.replace(inventory).then_some(nodes))
    }
}

fn parse(path: &Path, text: &str) -> anyhow::Result<Inventory> {
    Inventory::parse(text).with_context(|| format!("--node-inventory {}", path.display()))
}

fn text(path: &Path) -> anyhow::Result<String> {
    let flag = || format!("--node-inventory {}", path.display());
    // Opening a pipe could block.
    let is_file = std::fs::metadata(path).with_context(flag)?.is_file();
    anyhow::ensure!(is_file, "{}: it is no file", flag());
    let most = INVENTORY_BYTES_MAX as u64 + 1;
    let mut text = String::new();
    std::fs::File::open(path).and_then(|file| file.take(most).read_to_string(&mut text)).with_context(flag)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use controllers::Instances as _;

    use super::*;

    #[test]
    fn it_is_followed_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nodes.yaml");
        assert!(NodeInventory::open(&path).is_err() && NodeInventory::open(folder.path()).is_err());
        std::fs::write(&path, "nodes: [{name: a}]").unwrap();
        let inventory = NodeInventory::open(&path).unwrap();
        let knows = |name: &str| inventory.now.instance(name, None).unwrap().is_some();
        let mut last = String::new();
        let mut write = |text: &str| {
            std::fs::write(&path, text).unwrap();
            inventory.reload(&mut last).map_err(|why| format!("{why:#}"))
        };
        assert_eq!(write("nodes: [{name: a}]"), Ok(None));
        assert_eq!(write("nodes: [{name: a}, {name: b}]"), Ok(Some(2)));
        let why = write("nodes: [{name: a}, {name: c}, {name").unwrap_err();
        assert!(why.contains("--node-inventory") && knows("b") && !knows("c"), "{why}");
        assert_eq!(write("nodes: [{name: c}]"), Ok(Some(1)));
        assert!(knows("c") && !knows("b"));
    }
}
