//! `coracle version`.

use super::Failure;
use crate::output::say;

/// The API's version: what it behaves like (contract.md §2).
pub(crate) const KUBERNETES: &str = apiserver::catalog::discovery::VERSION;

/// Prints one `key: value` line for each version.
///
/// # Errors
/// They can't be written.
pub(crate) fn run() -> Result<(), Failure> {
    say!("coracle: {}", env!("CARGO_PKG_VERSION"))?;
    say!("commit: {}", env!("CORACLE_COMMIT"))?;
    say!("kubernetes: {KUBERNETES}")?;
    say!("wasmtime: {}", wasm_runtime::engine::WASMTIME_VERSION)?;
    Ok(())
}
