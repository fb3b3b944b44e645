//! `coracle version`.

use super::Failure;

/// The API's version: what it behaves like (contract.md §2).
pub(crate) const KUBERNETES: &str = apiserver::catalog::discovery::VERSION;

/// Prints one `key: value` line for each version.
///
/// # Errors
/// None.
#[expect(clippy::unnecessary_wraps, reason = "every verb has the same signature")]
pub(crate) fn run() -> Result<(), Failure> {
    println!("coracle: {}", env!("CARGO_PKG_VERSION"));
    println!("commit: {}", env!("CORACLE_COMMIT"));
    println!("kubernetes: {KUBERNETES}");
    println!("wasmtime: {}", wasm_runtime::engine::WASMTIME_VERSION);
    Ok(())
}
