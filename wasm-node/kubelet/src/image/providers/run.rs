//! Running a credential provider: what it is told, what it says, and its end. Bounded in time and bytes, whatever it does.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::config::ProviderConfig;

/// Characters that are told of what a provider writes to stderr.
const SAID_MAX: usize = 1024;

/// What a call may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) time: Duration,
    /// Of stdout, and of stderr.
    pub(super) bytes: u64,
}

/// Upstream's time for a call.
pub(super) const BOUNDS: Bounds = Bounds { time: Duration::from_secs(60), bytes: 1 << 20 };

/// Why there is no answer. What a provider writes to stdout is never told.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    /// It can't be started, or talked to.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It took too long, and was killed.
    #[error("not finished within {} s", .0.as_secs_f32())]
    Time(Duration),
    /// It said too much, and was killed.
    #[error("it wrote more than {0} bytes")]
    TooMuch(u64),
    /// It failed.
    #[error("{0}: {1}")]
    Failed(ExitStatus, String),
}

/// A provider that runs. With this its process group ends: what it has started itself, too.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // None once its end was seen: the number may be another's by then.
        #[cfg(unix)]
        if let Some(group) = self.0.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// Runs a provider with `request` on its stdin. It is killed when this is dropped. What it says of `secret` is not told.
pub(super) async fn run(
    provider: &ProviderConfig,
    (request, secret): (&[u8], Option<&str>),
    bounds: Bounds,
) -> Result<Vec<u8>, RunError> {
    let mut command = Command::new(&provider.program);
    command
        .args(&provider.args)
        .envs(provider.env.iter().map(|variable| (&variable.name, &variable.value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    #[cfg(unix)]
    command.process_group(0);
    let mut running = Running(command.spawn()?);
    let call = call(&mut running.0, (request, secret), bounds.bytes);
    tokio::time::timeout(bounds.time, call).await.unwrap_or(Err(RunError::Time(bounds.time)))
}

async fn call(
    child: &mut Child,
    (request, secret): (&[u8], Option<&str>),
    bytes_max: u64,
) -> Result<Vec<u8>, RunError> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let tell = async {
        if let Some(mut stdin) = stdin {
            // Who doesn't care to read may answer all the same.
            let _ = stdin.write_all(request).await;
        }
        Ok(())
    };
    let ((), out, said) = tokio::try_join!(tell, read(stdout, bytes_max), read(stderr, bytes_max))?;
    let status = child.wait().await?;
    if status.success() { Ok(out) } else { Err(RunError::Failed(status, shown(&said, secret))) }
}

async fn read(pipe: Option<impl tokio::io::AsyncRead + Unpin>, bytes_max: u64) -> Result<Vec<u8>, RunError> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(bytes_max + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() as u64 > bytes_max { Err(RunError::TooMuch(bytes_max)) } else { Ok(bytes) }
}

/// What a provider said, as a line of a log has it.
fn shown(said: &[u8], secret: Option<&str>) -> String {
    let said = String::from_utf8_lossy(said);
    // Before it is cut: a part of a token is one too many.
    let said = match secret.filter(|secret| !secret.is_empty()) {
        Some(secret) => said.replace(secret, "…"),
        None => said.into_owned(),
    };
    let start: String = said.trim().chars().take(SAID_MAX).collect();
    start.escape_debug().to_string()
}
