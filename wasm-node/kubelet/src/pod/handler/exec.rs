//! Runs a command in a container's sandbox for a probe or a hook, as `kubectl exec` does. It has session places of its
//! own, so that neither kind can starve the other.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use runtime_api::pipe::{PipeReader, pipe};
use runtime_api::{ExecError, ExecSpec, LoadError, LogSink, NodeCall, StdStream, Stdio, StopSignal};

use super::HandlerRunner;
use crate::pod::program;
use crate::pod::sandbox::Sandbox;

/// The captured output (upstream's bound). The rest is read and dropped, so that the command never blocks.
const OUTPUT_BYTES_MAX: usize = 10 << 10;

/// A command that ran to its end.
pub(super) struct ExecOutput {
    pub(super) code: i32,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl ExecOutput {
    /// The combined output, as upstream formats it.
    pub(super) fn combined(&self) -> String {
        let mut all = [self.stdout.as_slice(), &self.stderr].concat();
        all.truncate(OUTPUT_BYTES_MAX);
        String::from_utf8_lossy(&all).into_owned()
    }

    pub(super) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// The reason why a command did not run to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExecFailure {
    #[error("command timed out")]
    TimedOut,
    #[error("failed to exec in container: container is not running")]
    NoContainer,
    #[error("failed to exec in container: {}", .0.trim_end())]
    NotFound(String),
    #[error("failed to exec in container: no memory or no place was free beside what runs")]
    NoCapacity,
    #[error("failed to exec in container: {0}")]
    Load(#[from] LoadError),
}

/// Keeps the first bytes of an output.
#[derive(Default)]
struct OutputBuffer(Mutex<Vec<u8>>);

impl OutputBuffer {
    fn add(&self, bytes: &[u8]) {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = OUTPUT_BYTES_MAX - buffer.len();
        buffer.extend_from_slice(&bytes[..bytes.len().min(free)]);
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

/// Lines of the node, such as a trap's backtrace, follow the command's output.
impl LogSink for OutputBuffer {
    fn write(&self, _: StdStream, bytes: &[u8]) {
        self.add(bytes);
    }
}

impl HandlerRunner {
    /// Runs a command. The timeout starts with the command: neither the toolbox's compilation nor the wait for a place
    /// counts against the container.
    pub(super) async fn exec(&self, command: &[String], timeout: Option<Duration>) -> Result<ExecOutput, ExecFailure> {
        let sandbox = self.sandboxes.get(&self.uid, &self.container).ok_or(ExecFailure::NoContainer)?;
        let call = NodeCall::default();
        let (exit, wanted) = (self.start_session(&sandbox, command, &call).await?, timeout);
        match wanted {
            None => Ok(exit.await),
            Some(timeout) => match self.env.timeout(timeout, exit).await {
                Ok(ended) => Ok(ended),
                Err(_) if call.waits() => Err(ExecFailure::NoCapacity),
                Err(_) => Err(ExecFailure::TimedOut),
            },
        }
    }

    async fn start_session(
        &self,
        sandbox: &Arc<Sandbox>,
        command: &[String],
        call: &NodeCall,
    ) -> Result<impl Future<Output = ExecOutput> + use<>, ExecFailure> {
        let wanted = command.first().map(String::as_str).unwrap_or_default();
        if command.iter().any(|word| word.contains('\0')) {
            return Err(ExecFailure::NotFound("a command's arguments hold no NUL".into()));
        }
        // The pod's author chose this command, so `exec.coracle.dev` doesn't restrict it.
        let program = sandbox.program(wanted, true).await?;
        let (program, module) = program.ok_or_else(|| ExecFailure::NotFound(program::not_found(wanted)))?;
        let ((stdout, out), (stderr, err)) = (pipe(), pipe());
        let lines = Arc::new(OutputBuffer::default());
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
            ExecError::Busy => ExecFailure::NoCapacity,
            ExecError::Load(error) => ExecFailure::Load(error),
        })?;
        let gone = sandbox.gone.clone();
        Ok(async move {
            let stop = async move {
                gone.cancelled().await;
                StopSignal::Kill
            };
            let (stdout_buffer, stderr_buffer) = (OutputBuffer::default(), OutputBuffer::default());
            let reads = (stdout_buffer.read(out), stderr_buffer.read(err));
            let (outcome, (), ()) = futures::future::join3(session.run(stop.boxed()), reads.0, reads.1).await;
            stderr_buffer.add(&lines.take());
            ExecOutput { code: outcome.exit_code, stdout: stdout_buffer.take(), stderr: stderr_buffer.take() }
        })
    }
}
