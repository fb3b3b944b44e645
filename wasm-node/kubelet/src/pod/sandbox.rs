//! What a running container lends to sessions beside it (`kubectl exec`), and where these find it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use runtime_api::pipe::PipeWriter;
use runtime_api::{Container, LoadError, Metering, Module, Preopen};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::attached::Attached;
use super::program::{self, Program};
use super::session_tmp::SessionTmp;
use super::settings::ExecAccess;
use crate::image::{Image, Images};

/// Sessions of one container at once: for some people and their scripts, and few enough that they leave the node's places
/// to others.
pub(crate) const SESSIONS_MAX: usize = 16;

/// See the module.
pub(crate) struct Sandbox {
    pub(crate) container: Arc<dyn Container>,
    pub(crate) image: Arc<Image>,
    pub(crate) images: Arc<Images>,
    pub(crate) metering: Metering,
    pub(crate) namespace: String,
    pub(crate) access: ExecAccess,
    /// The container is no more.
    pub(crate) gone: CancellationToken,
    /// Shows what it writes.
    pub(crate) attached: Arc<Attached>,
    /// Where a command reads that has `stdin: true`, until the first client of one with `stdinOnce` has gone.
    pub(crate) stdin: Mutex<Option<PipeWriter>>,
    pub(crate) stdin_once: bool,
    pub(crate) tty: bool,
    /// `/tmp` of its sessions, unless the container mounts one.
    pub(crate) tmp: Option<SessionTmp>,
    /// Places of its sessions.
    pub(crate) places: Arc<Semaphore>,
}

impl Sandbox {
    /// The program that a session names: the container's own where that is a command, else the node's where it may have that.
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

    /// The folders that a session opens besides the container's mounts.
    pub(crate) async fn session_folders(&self) -> Vec<Preopen> {
        match &self.tmp {
            Some(tmp) => tmp.folders().await,
            None => Vec::new(),
        }
    }

    /// Whether a program is the node's own toolbox, by its bytes.
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

/// A sandbox can be found until this is dropped; then its sessions end.
pub(crate) struct Lent {
    all: Arc<Sandboxes>,
    key: Key,
    sandbox: Arc<Sandbox>,
    _ends: DropGuard,
}

impl Drop for Lent {
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

    pub(crate) fn lend(self: &Arc<Self>, uid: &str, container: &str, sandbox: Sandbox) -> Lent {
        let key = (uid.to_owned(), container.to_owned());
        let sandbox = Arc::new(sandbox);
        self.lock().insert(key.clone(), sandbox.clone());
        Lent { all: self.clone(), key, _ends: sandbox.gone.clone().drop_guard(), sandbox }
    }
}
