//! `coracle explain-scheduling` and `coracle explain-reconcile`: what a component would decide, without an action.
//!
//! Input: the user's view of the cluster, or a recording of it. Output: the decision of the component's own core, as text or JSON.
//! A verb is a module; the flags and files of all of them are here.

pub mod reconcile;
pub mod scheduling;

use std::fmt::Display;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::Args;
use kube::Client;
use machinery_env::Env;
use serde::Serialize;
use tools_command::data_dir::DataDir;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_command::format::Format;
use tools_command::output::{print_stdout, result};
use tools_command::output_file;

/// Maximum size of a recording: some hundred thousand pods.
const RECORDING_BYTES_MAX: u64 = 512 << 20;

/// Flags of all verbs that explain.
#[derive(Debug, Clone, Args)]
struct ExplainFlags {
    /// A recording of --record, used without a cluster
    #[arg(long, env = "CORACLE_REPLAY", value_name = "FILE")]
    replay: Option<PathBuf>,
    /// The namespace
    #[arg(short, long, env = "CORACLE_NAMESPACE", default_value = "default", value_name = "NS")]
    namespace: String,
    /// Kubeconfig of the API server [default: the one of --data-dir]
    #[arg(long, env = "CORACLE_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// File for a recording of all that the decision reads, for --replay
    #[arg(long, env = "CORACLE_RECORD", value_name = "FILE", conflicts_with = "replay")]
    record: Option<PathBuf>,
    /// Output format
    #[arg(short = 'o', long, alias = "output", env = "CORACLE_FORMAT", default_value = "table", value_name = "FORMAT")]
    format: Format,
}

impl ExplainFlags {
    /// A client of the kubeconfig, by default that of `--data-dir`.
    async fn client(&self, env: &Env, common: &Common) -> anyhow::Result<Client> {
        let data = DataDir::of(common)?;
        let kubeconfig = self.kubeconfig.clone().unwrap_or_else(|| data.kubeconfig());
        let client = machinery_client::from_kubeconfig(env, &kubeconfig).await;
        client.with_context(|| {
            format!(
                "{}: name a kubeconfig with --kubeconfig, or a cluster's folder with --data-dir",
                kubeconfig.display()
            )
        })
    }

    /// Writes the recording of `--record`.
    fn write_recording(&self, recording: &impl Serialize) -> anyhow::Result<()> {
        let Some(file) = &self.record else { return Ok(()) };
        let text = serde_json::to_vec(recording).context("cannot write the recording")?;
        output_file::write(file, |mut beside| Ok(beside.write_all(&text)?))
    }

    /// Prints an explanation as JSON, or as the text of `table`.
    fn print(&self, explanation: &impl Serialize, table: impl FnOnce() -> String) -> Result<(), Failure> {
        match self.format {
            Format::Json => print_stdout!("{}", serde_json::to_string_pretty(explanation).context("cannot print it")?)?,
            Format::Table => result(format_args!("{}", table()))?,
        }
        Ok(())
    }
}

fn file_error(file: &Path, why: impl Display) -> anyhow::Error {
    anyhow!("{}: {why}", file.display())
}

/// Reads a file up to a maximum size.
fn read_text(file: &Path, bytes_max: u64) -> anyhow::Result<String> {
    let open = std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut text = String::new();
    let read = open.take(bytes_max + 1).read_to_string(&mut text);
    if read.with_context(|| format!("cannot read {}", file.display()))? as u64 > bytes_max {
        return Err(file_error(file, format_args!("it is larger than {bytes_max} bytes")));
    }
    Ok(text)
}

/// Reads a recording with `parse`.
fn read_recording<R, E: Display>(file: &Path, parse: impl FnOnce(&str) -> Result<R, E>) -> anyhow::Result<R> {
    parse(&read_text(file, RECORDING_BYTES_MAX)?).map_err(|why| file_error(file, why))
}
