//! Preview 1, as core modules import it: wasmtime's own, but for one answer about the folders that the node opened.

use wasmtime::{Caller, Linker};
use wasmtime_wasi::p1::wasi_snapshot_preview1;
use wiggle::GuestMemory;

use crate::engine::state::CoreState;

/// The module that preview 1 imports come from.
pub(crate) const MODULE: &str = "wasi_snapshot_preview1";
/// The first descriptor after stdin, stdout and stderr: where folders that are open from the start begin.
const PREOPENS_FROM: i32 = 3;
/// `errno.badf`.
const BADF: i32 = 8;

pub(crate) fn link(linker: &mut Linker<CoreState>) -> wasmtime::Result<()> {
    wasmtime_wasi::p1::add_to_linker_async(linker, CoreState::preview1)?;
    linker.allow_shadowing(true);
    // The node opens a folder for a command's termination message, and mounts. Where the guest asked for no folder it
    // expects no descriptor there (WASI's own tests do), so for sockets there is none.
    linker.func_wrap(MODULE, "sock_shutdown", |mut caller: Caller<'_, CoreState>, descriptor: i32, how: i32| {
        let state = caller.data_mut();
        let opened_by_node = i32::try_from(state.preopens).unwrap_or(i32::MAX);
        if (PREOPENS_FROM..PREOPENS_FROM.saturating_add(opened_by_node)).contains(&descriptor) {
            return Ok(BADF);
        }
        // The call reads nothing of the guest's memory.
        let mut memory = GuestMemory::Unshared(&mut []);
        wasi_snapshot_preview1::sock_shutdown(state.preview1(), &mut memory, descriptor, how)
    })?;
    linker.allow_shadowing(false);
    Ok(())
}
