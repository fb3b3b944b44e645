//! `--takeover`: a process continues another one with the same data folder.

use clap::Args;
use machinery_env::Env;

use crate::data_dir::DataDir;
use crate::output::print_stderr;
use crate::progress::Progress;
use crate::takeover::{self, TakenOver};

/// The flag of processes with a data folder.
#[derive(Debug, Clone, Args)]
pub(crate) struct TakeoverFlags {
    /// Takes over the listening sockets of the running process with the same data folder, which ends: no request is
    /// dropped. Starts normally if none runs
    #[arg(long, env = "CORACLE_TAKEOVER")]
    takeover: bool,
}

impl TakeoverFlags {
    /// Takes over, if wanted.
    ///
    /// # Errors
    /// If the running process refuses, or doesn't end after it has given its sockets away.
    pub(crate) async fn take(
        &self,
        env: &Env,
        data: &DataDir,
        progress: Progress,
    ) -> anyhow::Result<Option<TakenOver>> {
        if !self.takeover {
            return Ok(None);
        }
        progress.doing("taking over from the running process");
        let taken = takeover::take(env, data).await?;
        if taken.is_none() {
            progress.done();
            print_stderr!("coracle: no process runs with {}: this is a normal start", data.path().display());
        }
        Ok(taken)
    }
}

/// Reports a takeover once the process answers.
pub(crate) fn report(taken: Option<TakenOver>, env: &Env) {
    if let Some(taken) = taken {
        print_stderr!("coracle: {}", taken.summary(env));
    }
}
