//! WASI 0.3: the interfaces with async functions, streams and futures, in engines of their own.
//!
//! wasmtime-wasi's implementations are used where they are bounded: standard streams over this node's pipes and logs, clocks,
//! random bytes, and sockets, which are denied. The environment, files and HTTP have the changes that they have in 0.2. Streams,
//! futures and tasks are entries of a store's table of concurrent state, which [`ComponentState`] limits and charges.

pub(crate) mod environment;
mod file_streams;
pub(crate) mod filesystem;
pub(crate) mod http;

use wasmtime::component::Linker;
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::p3::bindings::cli;
use wasmtime_wasi::p3::{clocks, random, sockets};

use super::state::ComponentState;

/// The minor version of these rows.
pub(crate) const VERSION: &str = "0.3";

/// `wasi:cli/stdin`, `stdout`, `stderr` and the terminal interfaces.
pub(crate) fn link_stdio(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    let view = ComponentState::cli;
    cli::stdin::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::stdout::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::stderr::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::terminal_input::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::terminal_output::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::terminal_stdin::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::terminal_stdout::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::terminal_stderr::add_to_linker::<_, WasiCli>(linker, view)
}

/// `wasi:clocks`. A wait is an entry of the concurrent state.
pub(crate) fn link_clocks(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    clocks::add_to_linker(linker)
}

/// `wasi:random`, with this node's maximum of bytes per call.
pub(crate) fn link_random(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    random::add_to_linker(linker)
}

/// `wasi:sockets`: linked, but every socket and lookup is answered with `access-denied`, as in 0.2.
pub(crate) fn link_sockets(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    sockets::add_to_linker(linker)
}
