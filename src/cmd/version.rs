//! `coracle version`: prints the versions of the program and of the parts that determine its behaviour.

use tools_command::failure::Failure;
use tools_command::output::print_stdout;

/// The Kubernetes version of the API (docs/contract.md §2).
pub(crate) const KUBERNETES: &str = apiserver_catalog::discovery::VERSION;

/// Prints one `key: value` line for each version.
///
/// # Errors
/// If stdout can't be written.
pub(crate) fn run() -> Result<(), Failure> {
    print_stdout!("coracle: {}", env!("CARGO_PKG_VERSION"))?;
    print_stdout!("commit: {}", env!("CORACLE_COMMIT"))?;
    print_stdout!("kubernetes: {KUBERNETES}")?;
    print_stdout!("wasmtime: {}", wasm_runtime::engine::WASMTIME_VERSION)?;
    Ok(())
}
