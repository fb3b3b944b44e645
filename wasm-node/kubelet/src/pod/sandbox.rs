//! The sandboxes of running containers: the resources for sessions (`kubectl exec`), and a registry to find them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use images::{Image, Images};
use runtime_api::pipe::PipeWriter;
use runtime_api::{Container, LoadError, Metering, Module, Preopen};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::attached::Attached;
use super::lifecycle::settings::ExecAccess;
use super::program::{self, Program};
use super::session_tmp::SessionTmp;

/// The maximum number of sessions of one container: enough for some users and their scripts, and a fraction of the
/// node's places.
pub(crate) const SESSIONS_MAX: usize = 16;

/// A running container's resources for sessions.
pub(crate) struct Sandbox {
    pub(crate) container: Arc<dyn Container>,
    pub(crate) image: Arc<Image>,
    pub(crate) images: Arc<Images>,
    pub(crate) metering: Metering,
    pub(crate) namespace: String,
    pub(crate) access: ExecAccess,
    /// Cancelled when the container ends.
    pub(crate) gone: CancellationToken,
    /// Its output for attached clients.
    pub(crate) attached: Arc<Attached>,
    /// The input of a command with `stdin: true`; with `stdinOnce`, until its first client disconnects.
    pub(crate) stdin: Mutex<Option<PipeWriter>>,
    pub(crate) stdin_once: bool,
    pub(crate) tty: bool,
    /// `/tmp` of its sessions, unless the container mounts one.
    pub(crate) tmp: Option<SessionTmp>,
    /// The session places.
    pub(crate) places: Arc<Semaphore>,
}

impl Sandbox {
    /// The program of a session: the container's own command or another module of its image, else the toolbox if it is allowed.
    pub(crate) async fn program(
        &self,
        wanted: &str,
        has_toolbox: bool,
    ) -> Result<Option<(Program, Arc<dyn Module>)>, LoadError> {
        let own = self.image.argv.first().map(String::as_str);
        let program = program::resolve(wanted, own, &self.image.modules, has_toolbox);
        let module = match &program {
            Program::Other(digest) => self.images.load_other(digest, self.metering, &self.namespace).await?,
            Program::Own => self.images.load_command(&self.image, self.metering, &self.namespace).await?,
            Program::Toolbox => self.images.load_toolbox(self.metering, &self.namespace).await?,
            Program::NotFound => None,
        };
        Ok(module.map(|module| (program, module)))
    }

    /// The folders of a session in addition to the container's mounts.
    pub(crate) async fn session_folders(&self) -> Vec<Preopen> {
        match &self.tmp {
            Some(tmp) => tmp.folders().await,
            None => Vec::new(),
        }
    }

    /// Whether a program is the node's toolbox, by its digest.
    pub(crate) fn is_toolbox(&self, program: &Program) -> bool {
        match program {
            Program::Toolbox => true,
            Program::Own => self.images.is_toolbox(&self.image.module),
            Program::Other(digest) => self.images.is_toolbox(digest),
            Program::NotFound => false,
        }
    }
}

/// A pod's uid and a container's name.
type Key = (String, String);

/// The sandboxes of a node.
#[derive(Default)]
pub(crate) struct Sandboxes(Mutex<BTreeMap<Key, Arc<Sandbox>>>);

impl std::fmt::Debug for Sandboxes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandboxes").finish_non_exhaustive()
    }
}

/// Keeps a sandbox registered until it is dropped; then its sessions end.
pub(crate) struct SandboxLease {
    all: Arc<Sandboxes>,
    key: Key,
    sandbox: Arc<Sandbox>,
    _ends: DropGuard,
}

impl Drop for SandboxLease {
    fn drop(&mut self) {
        self.sandbox.attached.end();
        let mut all = self.all.lock();
        if all.get(&self.key).is_some_and(|found| Arc::ptr_eq(found, &self.sandbox)) {
            all.remove(&self.key);
        }
    }
}

impl Sandboxes {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Arc<Sandbox>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, uid: &str, container: &str) -> Option<Arc<Sandbox>> {
        self.lock().get(&(uid.to_owned(), container.to_owned())).cloned()
    }

    pub(crate) fn register(self: &Arc<Self>, uid: &str, container: &str, sandbox: Sandbox) -> SandboxLease {
        let key = (uid.to_owned(), container.to_owned());
        let sandbox = Arc::new(sandbox);
        self.lock().insert(key.clone(), sandbox.clone());
        SandboxLease { all: self.clone(), key, _ends: sandbox.gone.clone().drop_guard(), sandbox }
    }
}
