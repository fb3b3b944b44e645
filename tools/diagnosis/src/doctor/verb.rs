//! `coracle doctor`: prints what of this machine keeps a cluster from working well. Exit code 1 with an error among it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, anyhow};
use clap::Args;
use machinery_env::Env;
use tools_command::data_dir::DataDir;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_command::format::{Format, OutputFlags};
use tools_command::output::{print_stdout, result};

use super::gather;
use super::report::DoctorReport;
use crate::program::Program;

/// Flags of `coracle doctor`.
#[derive(Debug, Clone, Args)]
pub struct Doctor {
    /// Address on which the API server will listen, as of `coracle up`
    #[arg(long, env = "CORACLE_BIND", default_value = "127.0.0.1", value_name = "ADDR")]
    bind: IpAddr,
    /// Port of the API server, as of `coracle up`; 0: a free one
    #[arg(long, env = "CORACLE_PORT", default_value_t = 6443, value_name = "PORT")]
    port: u16,
    #[command(flatten)]
    output: OutputFlags,
}

/// Prints the results of all checks.
///
/// # Errors
/// If a check finds an error, or stdout can't be written.
pub fn run(flags: &Doctor, common: &Common, program: &Program) -> Result<(), Failure> {
    let env = Env::real();
    let data = DataDir::of(common)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.context("cannot start threads")?;
    let facts = runtime.block_on(gather::read(&env, &data, SocketAddr::new(flags.bind, flags.port), program))?;
    runtime.shutdown_background();
    let report = DoctorReport::of(&facts);
    match flags.output.format {
        Format::Json => {
            print_stdout!("{}", serde_json::to_string_pretty(&report).context("cannot print the findings")?)?
        }
        Format::Table => result(format_args!("{}", report.text()))?,
    }
    match report.errors().next() {
        None => Ok(()),
        Some(first) => Err(anyhow!("{}; fix: {}", first.message, first.fix).into()),
    }
}
