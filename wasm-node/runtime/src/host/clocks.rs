//! `wasi:clocks`: the machine's wall and monotonic clocks.

use wasmtime::component::Linker;
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView};
use wasmtime_wasi::p2::bindings::clocks;

use super::state::ComponentState;

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    clocks::wall_clock::add_to_linker::<_, WasiClocks>(linker, ComponentState::clocks)?;
    clocks::monotonic_clock::add_to_linker::<_, WasiClocks>(linker, ComponentState::clocks)
}
