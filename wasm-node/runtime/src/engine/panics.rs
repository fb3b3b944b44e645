//! Panics of the engine within a guest's call. The tasks of WASI 0.3 have had several that a guest can cause (docs/security.md,
//! "Advisories of wasmtime"): such a guest ends like one that traps, and nothing else does.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;

/// Runs a call of a guest. A panic becomes its error; its store must not be used any more.
pub(super) async fn as_errors<T>(call: impl Future<Output = wasmtime::Result<T>>) -> wasmtime::Result<T> {
    match AssertUnwindSafe(call).catch_unwind().await {
        Ok(result) => result,
        // The panic hook has logged its message, which may name the host's files.
        Err(_) => Err(wasmtime::Error::msg("the engine failed within a call of the guest, which counts as a trap")),
    }
}
