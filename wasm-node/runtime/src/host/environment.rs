//! `wasi:cli/environment` and `exit`: arguments and environment, shared by a container's instances and copied only
//! when a guest asks (a pod's service links alone are dozens of variables).

use std::sync::Arc;

use wasmtime::component::{HasData, Linker};
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::p2::bindings::cli::{environment, exit};

use super::guest::Guest;
use super::state::ComponentState;

struct Environment;

impl HasData for Environment {
    type Data<'a> = EnvironmentView<'a>;
}

pub(crate) struct EnvironmentView<'a>(&'a Arc<Guest>);

impl environment::Host for EnvironmentView<'_> {
    fn get_environment(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        Ok(self.0.env.clone())
    }

    fn get_arguments(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(self.0.argv.clone())
    }

    fn initial_cwd(&mut self) -> wasmtime::Result<Option<String>> {
        Ok(self.0.cwd.clone())
    }
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    environment::add_to_linker::<_, Environment>(linker, |state| EnvironmentView(&state.guest))?;
    exit::add_to_linker::<_, WasiCli>(linker, ComponentState::cli)
}
