//! A writable `/tmp` for sessions of a container (`kubectl exec` and `cp`, commands of probes and hooks), unless it
//! mounts one. All sessions of a container share one folder. It is created for the first session, removed with the
//! container, and counted as ephemeral storage. The container itself can't access it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use runtime_api::Preopen;
use tokio::sync::OnceCell;

use super::shared::NodeContext;
use crate::volume::measure::{MeasureGuard, MeasuredPod};
use crate::volume::paths::{plain, session_folder};
use crate::volume::usage;

/// The mount path in sessions.
const PATH: &str = "/tmp";

/// The `/tmp` folder of a container's sessions.
pub(crate) struct SessionTmp {
    node: Weak<NodeContext>,
    uid: String,
    /// The folder; each start of the container has its own.
    folder: PathBuf,
    /// Set when the folder exists; measures it until this is dropped.
    made: OnceCell<Option<MeasureGuard>>,
}

impl SessionTmp {
    /// For one start of a container with these mounts; `None` if they include a `/tmp`.
    pub(crate) fn new(
        node: &Arc<NodeContext>,
        uid: &str,
        (container, attempt): (&str, u32),
        mounted: &[Preopen],
    ) -> Option<Self> {
        let folder = session_folder(&node.pod_dir(uid)).join(plain(container)).join(attempt.to_string());
        let made = OnceCell::new();
        (!has_own(mounted)).then(|| Self { node: Arc::downgrade(node), uid: uid.to_owned(), folder, made })
    }

    /// The folder for a session; empty if it can't be created.
    pub(crate) async fn folders(&self) -> Vec<Preopen> {
        match self.made.get_or_try_init(|| self.make()).await {
            Ok(_) => vec![preopen(&self.folder)],
            Err(error) => {
                tracing::warn!(uid = self.uid, %error, "sessions have no /tmp: its folder cannot be made");
                Vec::new()
            }
        }
    }

    async fn make(&self) -> io::Result<Option<MeasureGuard>> {
        let folder = self.folder.clone();
        tokio::task::spawn_blocking(move || make(&folder)).await.map_err(io::Error::other)??;
        Ok(self.watched())
    }

    /// Measures the pod, even if no container of it is measured otherwise.
    fn watched(&self) -> Option<MeasureGuard> {
        let node = self.node.upgrade()?;
        let view = node.pods.get(&self.uid)?;
        let bounds = usage::limits(&view.snapshot().pod.get(), false);
        let evicted = view.clone();
        Some(node.measurer.watch(MeasuredPod {
            pod_dir: node.pod_dir(&self.uid),
            log_dir: node.log_dir(&self.uid),
            bounds,
            changes: Box::new(move || view.change_count()),
            settle: Box::new(|| ()),
            exceeded: Box::new(move |message| evicted.evict(message)),
        }))
    }
}

impl Drop for SessionTmp {
    fn drop(&mut self) {
        // At the end of the process the folder remains; the container's next start or the pod's end removes it.
        let (true, Ok(runtime)) = (self.made.initialized(), tokio::runtime::Handle::try_current()) else { return };
        let folder = std::mem::take(&mut self.folder);
        runtime.spawn_blocking(move || {
            if let Err(error) = std::fs::remove_dir_all(&folder)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(folder = %folder.display(), %error, "/tmp of a container's sessions cannot be removed");
            }
        });
    }
}

/// Whether a mount is `/tmp`, or contains it and is writable.
fn has_own(mounted: &[Preopen]) -> bool {
    let is_own = |preopen: &Preopen| {
        let guest = Path::new(&preopen.guest);
        guest == Path::new(PATH) || preopen.writable && Path::new(PATH).starts_with(guest)
    };
    mounted.iter().any(is_own)
}

fn preopen(folder: &Path) -> Preopen {
    Preopen { host: folder.to_owned(), sub_paths: Vec::new(), guest: PATH.into(), writable: true }
}

/// Creates the empty folder, and removes those of earlier starts.
fn make(folder: &Path) -> io::Result<()> {
    if let Some(all) = folder.parent() {
        match std::fs::remove_dir_all(all) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::create_dir_all(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_with_a_tmp_keeps_its_own() {
        let of = |guest: &str, writable| Preopen { guest: guest.into(), writable, ..preopen(Path::new("/x")) };
        for own in [of("/tmp", true), of("/tmp", false), of("/tmp/", true), of("/", true)] {
            assert!(has_own(&[of("/data", true), own.clone()]), "{own:?}");
        }
        for other in [of("/tmpfs", true), of("/tmp/x", true), of("/", false)] {
            assert!(!has_own(std::slice::from_ref(&other)), "{other:?}");
        }
        assert!(!has_own(&[]));
    }

    #[test]
    fn an_earlier_start_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (root.path().join("c/0"), root.path().join("c/1"));
        make(&first).unwrap();
        std::fs::write(first.join("f"), b"x").unwrap();
        make(&second).unwrap();
        assert!(!first.exists() && second.read_dir().unwrap().next().is_none());
    }
}
