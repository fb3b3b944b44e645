//! `wasi:io`: errors, pollables and streams, which every other interface builds on.

use wasmtime::component::{HasData, Linker, ResourceTable};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::p2::bindings::io;

use super::state::ComponentState;

struct Io;

impl HasData for Io {
    type Data<'a> = &'a mut ResourceTable;
}

fn table(state: &mut ComponentState) -> &mut ResourceTable {
    // Through the view, so that the call is counted.
    state.ctx().table
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    io::error::add_to_linker::<_, Io>(linker, table)?;
    io::poll::add_to_linker::<_, Io>(linker, table)?;
    io::streams::add_to_linker::<_, Io>(linker, table)
}
