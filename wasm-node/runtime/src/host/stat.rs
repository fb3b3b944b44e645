//! `coracle:host/stat`: attributes of an open file that `wasi:filesystem` lacks. Available to every guest, as it covers only
//! files that the guest could open (`docs/decisions/0075-file-modes.md`).

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::filesystem::Descriptor;

use super::filesystem;
use super::state::ComponentState;

const NAME: &str = "coracle:host/stat@0.1.0";
/// Permission bits of a mode: the type is in `descriptor-stat`.
#[cfg(unix)]
const PERMISSION_BITS: u32 = 0o7777;

#[cfg(unix)]
fn permissions(metadata: &std::fs::Metadata) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt as _;
    Some(metadata.permissions().mode() & PERMISSION_BITS)
}

#[cfg(not(unix))]
fn permissions(_: &std::fs::Metadata) -> Option<u32> {
    None
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    let mut stat = linker.instance(NAME)?;
    stat.func_wrap_async("mode", |mut store: StoreContextMut<'_, ComponentState>, (fd,): (Resource<Descriptor>,)| {
        Box::new(async move {
            let metadata = filesystem::metadata(store.data_mut(), &fd).await?;
            Ok((metadata.as_ref().and_then(permissions),))
        })
    })
}
