//! `wasi:sockets` 0.2 over the pod network (`guest_sockets`): wasmtime's own sockets are the host's, and can't be redirected.
//!
//! wasmtime's bindings name its own types in the signatures of the interface. A handle is only a number there, so
//! [`handle`] turns it into the handle of this module's type.
//!
//! - [`tcp`], [`udp`], [`lookup`]: the interfaces.
//! - [`streams`]: a connection as `wasi:io` streams.
//! - [`codes`]: errors and addresses.

mod codes;
mod lookup;
mod streams;
mod tcp;
mod udp;

use std::any::Any;
use std::task::{Context, Waker};

use guest_sockets::SocketContext;
use wasmtime::component::{HasData, Linker, Resource};
use wasmtime_wasi::p2::SocketResult;
use wasmtime_wasi::p2::bindings::sockets;
use wasmtime_wasi::p2::bindings::sockets::network::{self, ErrorCode};

use super::state::ComponentState;

/// The right to use the network: every guest with one has it.
struct NetworkHandle;

/// The state of an instance, for calls of these interfaces.
struct Sockets<'a>(&'a mut ComponentState);

impl HasData for Sockets<'static> {
    type Data<'a> = Sockets<'a>;
}

impl Sockets<'_> {
    /// The container's network.
    fn context(&self) -> SocketResult<SocketContext> {
        self.0.guest.sockets.clone().ok_or_else(|| ErrorCode::AccessDenied.into())
    }
}

/// The handle of this module's type `T` behind one of wasmtime's type `U`.
fn handle<T: 'static, U: 'static>(of: &Resource<U>) -> Resource<T> {
    if of.owned() { Resource::new_own(of.rep()) } else { Resource::new_borrow(of.rep()) }
}

/// The reverse of [`handle`].
fn foreign<T: 'static, U: 'static>(of: Resource<T>) -> Resource<U> {
    Resource::new_own(of.rep())
}

/// For polls whose guest waits by a `pollable`, which registers a waker.
fn no_waker() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Host memory of a handle besides itself.
pub(super) fn held_bytes(entry: &(dyn Any + Send)) -> Option<u64> {
    // Sockets are charged to the container's ledger by themselves.
    let is_socket = entry.is::<tcp::TcpHandle>() || entry.is::<udp::UdpHandle>();
    is_socket.then_some(0)
}

fn view(state: &mut ComponentState) -> Sockets<'_> {
    state.account();
    Sockets(state)
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    sockets::tcp::add_to_linker::<_, Sockets<'static>>(linker, view)?;
    sockets::udp::add_to_linker::<_, Sockets<'static>>(linker, view)?;
    sockets::tcp_create_socket::add_to_linker::<_, Sockets<'static>>(linker, view)?;
    sockets::udp_create_socket::add_to_linker::<_, Sockets<'static>>(linker, view)?;
    sockets::instance_network::add_to_linker::<_, Sockets<'static>>(linker, view)?;
    sockets::network::add_to_linker::<_, Sockets<'static>>(linker, &network::LinkOptions::default(), view)?;
    sockets::ip_name_lookup::add_to_linker::<_, Sockets<'static>>(linker, view)
}

impl sockets::instance_network::Host for Sockets<'_> {
    fn instance_network(&mut self) -> wasmtime::Result<Resource<network::Network>> {
        Ok(foreign(self.0.table.push(NetworkHandle)?))
    }
}

impl network::Host for Sockets<'_> {
    fn convert_error_code(&mut self, error: wasmtime_wasi::p2::SocketError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }

    fn network_error_code(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        Ok(codes::of_stream_error(self.0.table.get(&error)?))
    }
}

impl network::HostNetwork for Sockets<'_> {
    fn drop(&mut self, network: Resource<network::Network>) -> wasmtime::Result<()> {
        self.0.table.delete(handle::<NetworkHandle, _>(&network))?;
        Ok(())
    }
}
