//! Runs a project's build command: in a process group of its own, without the cluster's credentials, with bounded output
//! and time.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use machinery_env::Env;
use machinery_env::child_process::cluster_variables;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use tools_command::output::aside;

/// Bytes of a failed build's output that are shown: its end has the errors.
const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Timeout of a build: a first one compiles its dependencies.
const BUILD_TIME_MAX: Duration = Duration::from_secs(1800);
/// Time for the rest of the output after the command's end: a process that it left behind may hold the pipe.
const DRAIN_TIME_MAX: Duration = Duration::from_millis(200);

/// A build command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Build {
    /// Command of a shell.
    pub(super) command: String,
    /// Its folder.
    pub(super) folder: PathBuf,
    /// Whether its output is shown while it runs.
    pub(super) verbose: bool,
}

impl Build {
    /// Runs the command. Dropping the future ends its processes.
    ///
    /// # Errors
    /// It can't be started, fails, or takes too long; with the end of its output, unless that was shown.
    pub(super) async fn run(&self, env: &Env) -> anyhow::Result<()> {
        let mut group = self.start().with_context(|| format!("cannot start `{}`", self.command))?;
        let mut output = Output { kept: Vec::new(), shown: self.verbose };
        let (Some(stdout), Some(stderr)) = (group.child.stdout.take(), group.child.stderr.take()) else {
            return Err(anyhow!("cannot read the output of `{}`", self.command));
        };
        let (ended, rest) = {
            let mut reads = std::pin::pin!(output.read(stdout, stderr));
            let ended = env.timeout(BUILD_TIME_MAX, async {
                tokio::select! {
                    () = &mut reads => (group.child.wait().await, true),
                    ended = group.child.wait() => (ended, false),
                }
            });
            match ended.await {
                Ok((ended, true)) => (Some(ended), true),
                Ok((ended, false)) => (Some(ended), env.timeout(DRAIN_TIME_MAX, &mut reads).await.is_ok()),
                Err(_) => (None, false),
            }
        };
        if !rest {
            tracing::debug!(command = self.command, "a process of the build was still running at its end");
        }
        let why = match ended {
            Some(Ok(status)) if status.success() => return Ok(()),
            Some(Ok(status)) => format!("`{}` failed: {status}", self.command),
            Some(Err(error)) => format!("`{}`: {error}", self.command),
            None => format!("`{}` took more than {} s", self.command, BUILD_TIME_MAX.as_secs()),
        };
        if !output.shown {
            aside(format_args!("{}", output.text()));
        }
        Err(anyhow!(why))
    }

    fn start(&self) -> std::io::Result<ProcessGroup> {
        #[cfg(unix)]
        let mut command = {
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(&self.command).process_group(0);
            command
        };
        #[cfg(not(unix))]
        let mut command = {
            let mut command = Command::new("cmd");
            command.arg("/C").arg(&self.command);
            command
        };
        for name in cluster_variables() {
            command.env_remove(name);
        }
        command.current_dir(&self.folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.kill_on_drop(true).spawn()?;
        #[cfg(unix)]
        let id = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        Ok(ProcessGroup {
            child,
            #[cfg(unix)]
            id,
        })
    }
}

/// A command with all processes that it starts. They end with this value.
struct ProcessGroup {
    child: Child,
    #[cfg(unix)]
    id: Option<rustix::process::Pid>,
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // The number is of this group while it has a process. Right after its last one, no other group has it yet.
        #[cfg(unix)]
        if let Some(group) = self.id {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// The end of a command's output.
struct Output {
    kept: Vec<u8>,
    shown: bool,
}

impl Output {
    /// Reads both streams to their ends.
    async fn read(&mut self, mut stdout: impl AsyncRead + Unpin, mut stderr: impl AsyncRead + Unpin) {
        let (mut first, mut second) = ([0; 4096], [0; 4096]);
        let (mut first_open, mut second_open) = (true, true);
        while first_open || second_open {
            let piece = tokio::select! {
                read = stdout.read(&mut first), if first_open => {
                    let read = read.unwrap_or(0);
                    first_open = read > 0;
                    &first[..read]
                }
                read = stderr.read(&mut second), if second_open => {
                    let read = read.unwrap_or(0);
                    second_open = read > 0;
                    &second[..read]
                }
            };
            self.add(piece);
        }
    }

    fn add(&mut self, piece: &[u8]) {
        if self.shown {
            aside(format_args!("{}", String::from_utf8_lossy(piece)));
            return;
        }
        self.kept.extend_from_slice(piece);
        let more = self.kept.len().saturating_sub(OUTPUT_BYTES_MAX);
        // Seldom: pieces are small.
        if more > OUTPUT_BYTES_MAX {
            self.kept.drain(..more);
        }
    }

    /// The end of the output, as whole lines.
    fn text(&self) -> String {
        let more = self.kept.len().saturating_sub(OUTPUT_BYTES_MAX);
        let text = String::from_utf8_lossy(&self.kept[more..]);
        let text = if more > 0 { text.split_once('\n').map_or("", |(_, text)| text) } else { &text };
        if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn build(command: &str, folder: &tempfile::TempDir) -> Build {
        Build { command: command.to_owned(), folder: folder.path().to_owned(), verbose: false }
    }

    #[tokio::test]
    async fn a_build_runs_in_its_folder_without_credentials() {
        let (env, folder) = (Env::real(), tempfile::tempdir().unwrap());
        build("env > out; pwd >> out", &folder).run(&env).await.unwrap();
        let out = std::fs::read_to_string(folder.path().join("out")).unwrap();
        assert!(out.contains("PATH=") && !out.contains("KUBECONFIG=") && !out.contains("CORACLE_"), "{out}");
        assert!(out.ends_with(&format!("{}\n", folder.path().canonicalize().unwrap().display())), "{out}");
        let error = build("echo wrong >&2; exit 3", &folder).run(&env).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        // A process that is left behind does not hold the build.
        build("sleep 60 & exit 0", &folder).run(&env).await.unwrap();
    }

    #[tokio::test]
    async fn an_abandoned_build_ends_with_its_processes() {
        let (env, folder) = (Env::real(), tempfile::tempdir().unwrap());
        let command = "sh -c 'echo $$ > pid; mv pid child; sleep 60' & wait";
        let build = build(command, &folder);
        let child = folder.path().join("child");
        {
            let mut running = std::pin::pin!(build.run(&env));
            while !child.exists() {
                assert!(env.timeout(Duration::from_millis(20), &mut running).await.is_err());
            }
        }
        let pid = std::fs::read_to_string(child).unwrap().trim().parse::<i32>().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        // A killed process may wait for its parent as a zombie.
        let ended = || {
            let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
            rustix::process::test_kill_process(pid).is_err() || state.is_ok_and(|state| state.contains(") Z "))
        };
        while !ended() {
            env.sleep(Duration::from_millis(20)).await;
        }
    }

    #[test]
    fn the_end_of_an_output_is_kept() {
        let mut output = Output { kept: Vec::new(), shown: false };
        let line = format!("{}\n", "x".repeat(99));
        for _ in 0..10_000 {
            output.add(line.as_bytes());
        }
        output.add(b"last");
        let text = output.text();
        assert!(text.len() <= OUTPUT_BYTES_MAX + 1 && text.starts_with(&line) && text.ends_with("last\n"));
        assert!(output.kept.len() <= 2 * OUTPUT_BYTES_MAX + line.len());
    }
}
