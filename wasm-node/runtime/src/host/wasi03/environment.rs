//! `wasi:cli/environment` and `exit`: as in 0.2, shared by a container's instances and written directly into a calling guest.

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::p3::bindings::cli::exit;

use super::super::state::ComponentState;

/// The version that wasmtime's bindings register.
const ENVIRONMENT: &str = "wasi:cli/environment@0.3.0";

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    type Store<'a> = StoreContextMut<'a, ComponentState>;
    let mut environment = linker.instance(ENVIRONMENT)?;
    environment.func_wrap("get-environment", |store: Store<'_>, (): ()| Ok((store.data().guest.env.clone(),)))?;
    environment.func_wrap("get-arguments", |store: Store<'_>, (): ()| Ok((store.data().guest.argv.clone(),)))?;
    environment.func_wrap("get-initial-cwd", |store: Store<'_>, (): ()| Ok((store.data().guest.cwd.clone(),)))?;
    exit::add_to_linker::<_, WasiCli>(linker, ComponentState::cli)
}
