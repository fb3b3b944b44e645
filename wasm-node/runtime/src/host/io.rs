//! `wasi:io`: errors, pollables and streams, which every other interface builds on.

use bytes::Bytes;
use wasmtime::component::{HasData, Linker, ResourceTable};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::p2::bindings::io;
use wasmtime_wasi::p2::{DynOutputStream, OutputStream, Pollable, StreamResult};

use super::state::ComponentState;

struct Io;

impl HasData for Io {
    type Data<'a> = &'a mut ResourceTable;
}

fn table(state: &mut ComponentState) -> &mut ResourceTable {
    // Through the view, so that the call is counted.
    state.ctx().table
}

/// An output stream that passes no empty write on. The queue behind a stream counts bytes, and would hold empty writes
/// without end.
pub(super) struct NonEmptyWrites(pub(super) DynOutputStream);

#[async_trait::async_trait]
impl Pollable for NonEmptyWrites {
    async fn ready(&mut self) {
        self.0.ready().await;
    }
}

#[async_trait::async_trait]
impl OutputStream for NonEmptyWrites {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.is_empty() {
            // A closed stream returns its error.
            return self.0.check_write().map(|_| ());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.0.flush()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.0.check_write()
    }

    async fn cancel(&mut self) {
        self.0.cancel().await;
    }
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    io::error::add_to_linker::<_, Io>(linker, table)?;
    io::poll::add_to_linker::<_, Io>(linker, table)?;
    io::streams::add_to_linker::<_, Io>(linker, table)
}
