//! `wasi:filesystem`: a container's volumes, opened once for all its instances and handed out when a guest asks.

use wasmtime::component::{HasData, Linker, Resource};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::filesystem::{preopens, types};

use crate::engine::state::ComponentState;

struct Preopens;

impl HasData for Preopens {
    type Data<'a> = PreopensView<'a>;
}

pub(crate) struct PreopensView<'a>(&'a mut ComponentState);

impl preopens::Host for PreopensView<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        let shared = self.0.shared.clone();
        let mut directories = Vec::with_capacity(shared.preopens.len());
        for (dir, guest) in &shared.preopens {
            directories.push((self.0.table.push(Descriptor::Dir(dir.clone()))?, guest.clone()));
        }
        Ok(directories)
    }
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    types::add_to_linker::<_, WasiFilesystem>(linker, ComponentState::filesystem)?;
    preopens::add_to_linker::<_, Preopens>(linker, |state| PreopensView(state))
}
