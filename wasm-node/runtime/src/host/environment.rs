//! `wasi:cli/environment` and `exit`: arguments and environment, shared by a container's instances and written directly into a
//! calling guest. A pod's service links alone are dozens of variables, and some guests read them at each request.

use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::p2::bindings::cli::exit;

use super::guest::Guest;
use super::state::ComponentState;

/// Registered like wasmtime's bindings, which would copy each value first.
const ENVIRONMENT: &str = "wasi:cli/environment@0.2.12";

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    fn guest<'a>(store: &'a StoreContextMut<'_, ComponentState>) -> &'a Arc<Guest> {
        &store.data().guest
    }
    let mut environment = linker.instance(ENVIRONMENT)?;
    environment.func_wrap("get-environment", |store, (): ()| Ok((guest(&store).env.clone(),)))?;
    environment.func_wrap("get-arguments", |store, (): ()| Ok((guest(&store).argv.clone(),)))?;
    environment.func_wrap("initial-cwd", |store, (): ()| Ok((guest(&store).cwd.clone(),)))?;
    exit::add_to_linker::<_, WasiCli>(linker, ComponentState::cli)
}
