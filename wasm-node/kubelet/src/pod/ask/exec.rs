//! A command in a container's sandbox for a probe or a hook: as `kubectl exec` runs one, and with places of its own, so that
//! neither takes them from the other.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use runtime_api::pipe::{PipeReader, pipe};
use runtime_api::{ExecError, ExecSpec, LoadError, LogSink, NodeCall, StdStream, Stdio, StopSignal};

use super::Asker;
use crate::pod::program;
use crate::pod::sandbox::Sandbox;

/// What is kept of a command's output (upstream's bound); the rest is taken and dropped, so that it never waits for a reader.
const OUTPUT_BYTES_MAX: usize = 10 << 10;

/// A command that ran to its end.
pub(super) struct Ended {
    pub(super) code: i32,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Ended {
    /// All that it wrote, as upstream puts it together.
    pub(super) fn combined(&self) -> String {
        let mut all = [self.stdout.as_slice(), &self.stderr].concat();
        all.truncate(OUTPUT_BYTES_MAX);
        String::from_utf8_lossy(&all).into_owned()
    }

    pub(super) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Why a command did not run to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotRun {
    #[error("command timed out")]
    TimedOut,
    #[error("failed to exec in container: container is not running")]
    NoContainer,
    #[error("failed to exec in container: {}", .0.trim_end())]
    NotFound(String),
    #[error("failed to exec in container: no memory or no place was free beside what runs")]
    NoRoom,
    #[error("failed to exec in container: {0}")]
    Load(#[from] LoadError),
}

/// Keeps the beginning of what is written.
#[derive(Default)]
struct Kept(Mutex<Vec<u8>>);

impl Kept {
    fn add(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = OUTPUT_BYTES_MAX - kept.len();
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn read(&self, from: PipeReader) {
        while let Some(bytes) = from.recv().await {
            self.add(&bytes);
        }
    }
}

/// The node's own lines, such as a trap's backtrace, come after the command's.
impl LogSink for Kept {
    fn write(&self, _: StdStream, bytes: &[u8]) {
        self.add(bytes);
    }
}

impl Asker {
    /// Runs a command. What the time is counted from is its start: neither the toolbox's compilation nor the wait for a
    /// place says anything of the container.
    pub(super) async fn exec(&self, command: &[String], timeout: Option<Duration>) -> Result<Ended, NotRun> {
        let sandbox = self.sandboxes.get(&self.uid, &self.container).ok_or(NotRun::NoContainer)?;
        let call = NodeCall::default();
        let (begun, wanted) = (self.begin(&sandbox, command, &call).await?, timeout);
        match wanted {
            None => Ok(begun.await),
            Some(timeout) => match tokio::time::timeout(timeout, begun).await {
                Ok(ended) => Ok(ended),
                Err(_) if call.waits() => Err(NotRun::NoRoom),
                Err(_) => Err(NotRun::TimedOut),
            },
        }
    }

    async fn begin(
        &self,
        sandbox: &Arc<Sandbox>,
        command: &[String],
        call: &NodeCall,
    ) -> Result<impl Future<Output = Ended> + use<>, NotRun> {
        let wanted = command.first().map(String::as_str).unwrap_or_default();
        if command.iter().any(|word| word.contains('\0')) {
            return Err(NotRun::NotFound("a command's arguments hold no NUL".into()));
        }
        // The pod's author has named this command: what `exec.coracle.dev` says is for others.
        let program = sandbox.program(wanted, true).await?;
        let (program, module) = program.ok_or_else(|| NotRun::NotFound(program::not_found(wanted)))?;
        let ((stdout, out), (stderr, err)) = (pipe(), pipe());
        let lines = Arc::new(Kept::default());
        let spec = ExecSpec {
            argv: command.to_vec(),
            env: Vec::new(),
            folders: sandbox.session_folders().await,
            stdio: Stdio { stdin: None, stdout: Some(stdout), stderr: Some(stderr), terminal: false },
            is_toolbox: sandbox.is_toolbox(&program),
            log: lines.clone(),
            node_call: Some(call.clone()),
        };
        let session = sandbox.container.exec(&module, spec).map_err(|error| match error {
            ExecError::Busy => NotRun::NoRoom,
            ExecError::Load(error) => NotRun::Load(error),
        })?;
        let gone = sandbox.gone.clone();
        Ok(async move {
            let stop = async move {
                gone.cancelled().await;
                StopSignal::Kill
            };
            let (kept_out, kept_err) = (Kept::default(), Kept::default());
            let reads = (kept_out.read(out), kept_err.read(err));
            let (outcome, (), ()) = futures::future::join3(session.run(stop.boxed()), reads.0, reads.1).await;
            kept_err.add(&lines.take());
            Ended { code: outcome.exit_code, stdout: kept_out.take(), stderr: kept_err.take() }
        })
    }
}
