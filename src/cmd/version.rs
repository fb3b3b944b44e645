//! `coracle version`: prints the versions of the program and of the parts that determine its behaviour.

use jiff::Timestamp;
use tools_command::failure::Failure;
use tools_command::output::print_stdout;
use tools_diagnosis::program::Program;

use crate::network::block_claims;

/// The Kubernetes version of the API (docs/contract.md §2).
pub(crate) const KUBERNETES: &str = apiserver_catalog::discovery::VERSION;

/// What reports of `coracle status` and checks of `coracle doctor` need of the program.
pub(crate) fn program() -> Program {
    Program {
        commit: env!("CORACLE_COMMIT"),
        committed_at: env!("CORACLE_COMMIT_SECONDS").parse().ok().and_then(|at| Timestamp::from_second(at).ok()),
        block_claims: block_claims(),
    }
}

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
