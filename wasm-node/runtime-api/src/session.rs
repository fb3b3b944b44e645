//! Sessions: one more command in a container's sandbox, beside what runs there.

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;

use super::pipe::{PipeReader, PipeWriter};
use super::{LoadError, LogSink, NodeCall, Outcome, Preopen, StopSignal};

/// What a command reads and writes in place of an empty input and its container's log.
#[derive(Debug, Clone, Default)]
pub struct Stdio {
    /// Its input; none = empty.
    pub stdin: Option<PipeReader>,
    /// Its output; none = taken, and kept nowhere.
    pub stdout: Option<PipeWriter>,
    /// Its error output; none as above.
    pub stderr: Option<PipeWriter>,
    /// Whether the guest is told that these are a terminal.
    pub terminal: bool,
}

/// What a session is made from.
#[derive(Clone)]
pub struct ExecSpec {
    /// argv, argv[0] first.
    pub argv: Vec<String>,
    /// Variables besides the container's own.
    pub env: Vec<(String, String)>,
    /// Folders that are open to it besides the container's mounts.
    pub folders: Vec<Preopen>,
    /// What it reads and writes.
    pub stdio: Stdio,
    /// The program is the node's own toolbox.
    pub is_toolbox: bool,
    /// Takes the node's own lines, such as a trap's backtrace.
    pub log: Arc<dyn LogSink>,
    /// Set where the node itself asks for it, for a probe or a hook: it has places of its own, and waits for one and for
    /// memory when it is run.
    pub node_call: Option<NodeCall>,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// As many live as may.
    #[error("too many sessions live on this node: try again when others have ended")]
    Busy,
    /// The command can't be run.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// A session that was let in and has not begun. Dropping it gives its place back.
#[async_trait]
pub trait Session: Send {
    /// Runs the command to its end, or until `stop` resolves. Dropping the future ends it too.
    async fn run(self: Box<Self>, stop: BoxFuture<'static, StopSignal>) -> Outcome;
}
