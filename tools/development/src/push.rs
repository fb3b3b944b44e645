//! `coracle push`: pushes a .wasm file to the built-in registry of the cluster in `--data-dir`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use images::push;
use machinery_env::Env;
use wasm_runtime::engine::MODULE_INSPECTOR;

use crate::module_file;
use crate::registry;
use tools_command::data_dir::DataDir;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_command::output::print_stdout;
use tools_command::progress::Progress;
use tools_command::runtime;

/// Arguments of `coracle push`.
#[derive(Debug, Clone, Args)]
pub struct Push {
    /// The module or component
    #[arg(value_name = "FILE.wasm")]
    pub(crate) file: PathBuf,
    /// Target: registry.local/NAME:TAG is the built-in registry of the cluster in --data-dir
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
}

/// Pushes and prints the artifact's name and digest.
///
/// # Errors
/// If the file can't be read or is no module, or there is no running cluster.
pub fn run(flags: &Push, common: &Common) -> Result<(), Failure> {
    let data = DataDir::of(common)?;
    let module = module_file::read(&flags.file)
        .with_context(|| format!("cannot read {}; give the path of a .wasm file", flags.file.display()))?;
    let access = registry::access(&data)?;
    let runtime = runtime::single_threaded()?;
    let progress = Progress::stderr();
    progress.doing(&format!("pushing {} ({} bytes)", flags.file.display(), module.len()));
    let pushed = runtime.block_on(push(&Env::real(), module, MODULE_INSPECTOR, &flags.reference, &access));
    progress.done();
    let pushed = pushed?;
    print_stdout!("{} {} ({} bytes)", pushed.name, pushed.digest, pushed.size_bytes)?;
    Ok(())
}
