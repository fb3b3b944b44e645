//! `coracle status`: prints what runs in a cluster. Exit code 1 if something isn't healthy.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::Args;
use machinery_env::Env;
use tools_command::data_dir::DataDir;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_command::format::{Format, OutputFlags};
use tools_command::output::{print_stdout, result};

use super::gather::{self, Source};
use super::text;
use crate::program::Program;

/// Flags of `coracle status`.
#[derive(Debug, Clone, Args)]
pub struct Status {
    /// Kubeconfig of the cluster [default: the one of --data-dir]
    #[arg(long, env = "CORACLE_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    output: OutputFlags,
}

/// Prints the state of a cluster.
///
/// # Errors
/// If something isn't healthy, or stdout can't be written.
pub fn run(flags: &Status, common: &Common, program: &Program) -> Result<(), Failure> {
    let env = Env::real();
    let source = match &flags.kubeconfig {
        Some(file) => Source::Kubeconfig(file.clone()),
        None => Source::Folder(DataDir::of(common)?),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.context("cannot start threads")?;
    let report = runtime.block_on(gather::read(&env, &source, program));
    // A program for credentials that doesn't end isn't waited for.
    runtime.shutdown_background();
    match flags.output.format {
        Format::Json => print_stdout!("{}", serde_json::to_string_pretty(&report).context("cannot print the status")?)?,
        Format::Table => result(format_args!("{}", text::format(&report)))?,
    }
    match report.problems.as_slice() {
        [] => Ok(()),
        [one] => Err(anyhow!("{}; next: {}", one.message, one.next).into()),
        [first, ..] => {
            let count = report.problems.len();
            Err(anyhow!("{count} problems; the first: {}; next: {}", first.message, first.next).into())
        }
    }
}
