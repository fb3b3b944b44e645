//! `--takeover`: a process continues another one with the same data folder.

use clap::Args;
use machinery_env::Env;

use crate::addresses::ListenAddress;
use crate::taking::{self, TakenOver};
use tools_command::data_dir::DataDir;
use tools_command::output::print_stderr;
use tools_command::progress::Progress;

/// The flag of processes with a data folder.
#[derive(Debug, Clone, Args)]
pub struct TakeoverFlags {
    /// Takes over the listening sockets of the running process with the same data folder, which ends: no request is
    /// dropped. Starts normally if none runs
    #[arg(long, env = "CORACLE_TAKEOVER")]
    takeover: bool,
}

impl TakeoverFlags {
    /// Takes over, if wanted and if `check` finds no mistake that would fail this process's start. It listens on `wanted`, and its
    /// version and commit are `program`.
    ///
    /// # Errors
    /// If `check` fails or the running process refuses, which goes on then. If it doesn't release its data folder.
    pub async fn take(
        &self,
        env: &Env,
        data: &DataDir,
        progress: Progress,
        (wanted, program): (&[ListenAddress], &str),
        check: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<Option<TakenOver>> {
        if !self.takeover {
            return Ok(None);
        }
        progress.doing("taking over from the running process");
        let taken = taking::take(env, data, (wanted, program), check).await?;
        if taken.is_none() {
            progress.done();
            print_stderr!("coracle: no process runs with {}: this is a normal start", data.path().display());
        }
        Ok(taken)
    }
}

impl Default for TakeoverFlags {
    /// The command line without flags, whatever the environment is.
    fn default() -> Self {
        machinery_options::defaults()
    }
}
