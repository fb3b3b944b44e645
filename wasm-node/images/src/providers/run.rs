//! Runs a credential provider's process: writes the request, reads the response, and kills the process at the end. Time
//! and bytes are bounded.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use machinery_env::Env;
use machinery_env::child_process::cluster_variables;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::config::ProviderConfig;

/// Maximum characters of a provider's stderr in errors.
const STDERR_CHARS_MAX: usize = 1024;

/// The limits of a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallLimits {
    pub(super) time: Duration,
    /// Maximum bytes of stdout, and of stderr.
    pub(super) bytes: u64,
}

/// Upstream's time limit of a call, and this node's byte limit.
pub(super) const BOUNDS: CallLimits = CallLimits { time: Duration::from_secs(60), bytes: 1 << 20 };

/// Why a call returned no response. Errors never contain the provider's stdout.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    /// The process can't be started, or its pipes failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The process was killed after a timeout.
    #[error("not finished within {} s", .0.as_secs_f32())]
    Time(Duration),
    /// The process was killed for too much output.
    #[error("it wrote more than {0} bytes")]
    TooMuch(u64),
    /// The process exited with an error.
    #[error("{0}: {1}")]
    Failed(ExitStatus, String),
}

/// A running provider. Dropping it kills the process group, with all processes that the provider has started.
struct ProviderProcess(Child);

impl Drop for ProviderProcess {
    fn drop(&mut self) {
        // `None` after the process was reaped: its number may belong to another process by then.
        #[cfg(unix)]
        if let Some(group) = self.0.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// Runs a provider with `request` on its stdin. Dropping the future kills the process. Errors don't contain `secret`.
pub(super) async fn run(
    env: &Env,
    provider: &ProviderConfig,
    (request, secret): (&[u8], Option<&str>),
    bounds: CallLimits,
) -> Result<Vec<u8>, RunError> {
    let mut command = Command::new(&provider.program);
    for name in cluster_variables() {
        command.env_remove(name);
    }
    command
        .args(&provider.args)
        .envs(provider.env.iter().map(|variable| (&variable.name, &variable.value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    #[cfg(unix)]
    command.process_group(0);
    let mut process = ProviderProcess(command.spawn()?);
    let call = call(&mut process.0, (request, secret), bounds.bytes);
    env.timeout(bounds.time, call).await.unwrap_or(Err(RunError::Time(bounds.time)))
}

async fn call(
    child: &mut Child,
    (request, secret): (&[u8], Option<&str>),
    bytes_max: u64,
) -> Result<Vec<u8>, RunError> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let send = async {
        if let Some(mut stdin) = stdin {
            // A provider that doesn't read its stdin may still respond.
            let _ = stdin.write_all(request).await;
        }
        Ok(())
    };
    let ((), out, stderr_text) = tokio::try_join!(send, read(stdout, bytes_max), read(stderr, bytes_max))?;
    let status = child.wait().await?;
    if status.success() { Ok(out) } else { Err(RunError::Failed(status, format_stderr(&stderr_text, secret))) }
}

async fn read(pipe: Option<impl tokio::io::AsyncRead + Unpin>, bytes_max: u64) -> Result<Vec<u8>, RunError> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(bytes_max + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() as u64 > bytes_max { Err(RunError::TooMuch(bytes_max)) } else { Ok(bytes) }
}

/// Formats a provider's stderr as one line for the log.
fn format_stderr(stderr_text: &[u8], secret: Option<&str>) -> String {
    let stderr_text = String::from_utf8_lossy(stderr_text);
    // Redacts before truncating: a truncated token would not be found.
    let stderr_text = match secret.filter(|secret| !secret.is_empty()) {
        Some(secret) => stderr_text.replace(secret, "…"),
        None => stderr_text.into_owned(),
    };
    let start: String = stderr_text.trim().chars().take(STDERR_CHARS_MAX).collect();
    start.escape_debug().to_string()
}
