//! `wasi:sockets`: linked, since standard libraries import it, but every socket and lookup is answered with `access-denied`:
//! wasmtime's own sockets are the host's and can't be redirected to the cluster's network.

use wasmtime::component::Linker;
use wasmtime_wasi::p2::bindings::sockets;
use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsView};

use super::state::ComponentState;

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    let view = ComponentState::sockets;
    sockets::tcp::add_to_linker::<_, WasiSockets>(linker, view)?;
    sockets::udp::add_to_linker::<_, WasiSockets>(linker, view)?;
    sockets::tcp_create_socket::add_to_linker::<_, WasiSockets>(linker, view)?;
    sockets::udp_create_socket::add_to_linker::<_, WasiSockets>(linker, view)?;
    sockets::instance_network::add_to_linker::<_, WasiSockets>(linker, view)?;
    sockets::network::add_to_linker::<_, WasiSockets>(linker, &sockets::network::LinkOptions::default(), view)?;
    sockets::ip_name_lookup::add_to_linker::<_, WasiSockets>(linker, view)
}
