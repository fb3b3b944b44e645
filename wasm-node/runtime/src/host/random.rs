//! `wasi:random`: seeded per instance by the system, bounded per call.

use wasmtime::component::Linker;
use wasmtime_wasi::p2::bindings::random;
use wasmtime_wasi::random::{WasiRandom, WasiRandomView};

use super::state::ComponentState;

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    random::random::add_to_linker::<_, WasiRandom>(linker, ComponentState::random)?;
    random::insecure::add_to_linker::<_, WasiRandom>(linker, ComponentState::random)?;
    random::insecure_seed::add_to_linker::<_, WasiRandom>(linker, ComponentState::random)
}
