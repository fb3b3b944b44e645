//! Sessions: an additional command in a container's sandbox, with its own standard streams.

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;

use super::pipe::{PipeReader, PipeWriter};
use super::{LoadError, LogSink, NodeCall, Outcome, Preopen, StopSignal};

/// Standard streams of a session, in place of an empty input and its container's log.
#[derive(Debug, Clone, Default)]
pub struct Stdio {
    /// Its input; `None`: empty.
    pub stdin: Option<PipeReader>,
    /// Its output; `None`: discarded.
    pub stdout: Option<PipeWriter>,
    /// Its error output; `None`: discarded.
    pub stderr: Option<PipeWriter>,
    /// Whether the guest's standard streams report a terminal.
    pub terminal: bool,
}

/// Specification of a session.
#[derive(Clone)]
pub struct ExecSpec {
    /// argv, argv[0] first.
    pub argv: Vec<String>,
    /// Variables besides the container's own.
    pub env: Vec<(String, String)>,
    /// Preopened folders besides the container's mounts.
    pub folders: Vec<Preopen>,
    /// Its standard streams.
    pub stdio: Stdio,
    /// Whether the program is the node's own toolbox.
    pub is_toolbox: bool,
    /// Destination of the node's own lines, such as a trap's backtrace.
    pub log: Arc<dyn LogSink>,
    /// Set for the node's own probes and hooks: these have separate slots, and wait for one and for memory when they
    /// run.
    pub node_call: Option<NodeCall>,
}

/// Reason why a session can't start.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// All session slots are in use.
    #[error("too many sessions live on this node: try again when others have ended")]
    Busy,
    /// The command can't be run.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// An admitted session that has not started. Dropping it releases its slot.
#[async_trait]
pub trait Session: Send {
    /// Runs the command to its end, or until `stop` resolves. Dropping the future ends it too.
    async fn run(self: Box<Self>, stop: BoxFuture<'static, StopSignal>) -> Outcome;
}
