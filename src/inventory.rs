//! The file of `--node-inventory`: read at the start, when it has to be right, and again when it changes. One that can't be used then changes nothing.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use controllers::{INVENTORY_BYTES_MAX, Inventory, SharedInventory};
use tokio_util::sync::CancellationToken;

/// How often it is read.
const INTERVAL: Duration = Duration::from_secs(2);

/// The file, and what it says now.
#[derive(Debug, Clone)]
pub(crate) struct NodeInventory {
    path: PathBuf,
    pub(crate) now: Arc<SharedInventory>,
}

impl NodeInventory {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// It can't be read, or what it says can't be.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let inventory = parse(path, &text(path)?)?;
        Ok(Self { path: path.to_owned(), now: Arc::new(SharedInventory::new(inventory)) })
    }

    /// Keeps up with it until `stop`.
    pub(crate) async fn follow(self, stop: CancellationToken) {
        let (mut last, mut told) = (String::new(), None);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            let file = self.clone();
            let look = tokio::task::spawn_blocking(move || (file.look(&mut last), last));
            let found;
            (found, last) = look.await.unwrap_or_else(|error| (Err(error.into()), String::new()));
            match found {
                Ok(Some(nodes)) => {
                    tracing::info!(file = %self.path.display(), nodes, "nodes are as the inventory has them now");
                    told = None;
                }
                Ok(None) => {}
                Err(why) => {
                    let why = format!("{why:#}");
                    if told.as_ref() != Some(&why) {
                        tracing::warn!(why, "the inventory cannot be used; what it said before holds");
                    }
                    told = Some(why);
                }
            }
        }
    }

    /// Reads it again; `last` is what it said then. Answers how many nodes it has where that is something else.
    fn look(&self, last: &mut String) -> anyhow::Result<Option<usize>> {
        let text = text(&self.path)?;
        // As a rule nothing has changed, and a large file isn't parsed for that.
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
    // To open another kind of file may wait for somebody.
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
            inventory.look(&mut last).map_err(|why| format!("{why:#}"))
        };
        assert_eq!(write("nodes: [{name: a}]"), Ok(None));
        assert_eq!(write("nodes: [{name: a}, {name: b}]"), Ok(Some(2)));
        let why = write("nodes: [{name: a}, {name: c}, {name").unwrap_err();
        assert!(why.contains("--node-inventory") && knows("b") && !knows("c"), "{why}");
        assert_eq!(write("nodes: [{name: c}]"), Ok(Some(1)));
        assert!(knows("c") && !knows("b"));
    }
}
