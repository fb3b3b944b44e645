//! Whose sockets they are.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use machinery_env::Env;
use machinery_serve::net::{Attached, Caller, Dial, Listen, PodNetwork, Protocol, Scope, Serve};
use runtime_api::ledger::{Ledger, Resource, ResourceGuard};

use crate::SocketError;
use crate::limits::SOCKET_BYTES;
use crate::memory::BufferMemory;
use crate::ports::Ports;

/// The network of one container.
#[derive(Clone)]
pub struct SocketContext {
    /// Servers of pods by address.
    pub network: PodNetwork,
    /// The pod, for rules and names; its address is the sockets' own.
    pub caller: Caller,
    /// Opens connections and flows, and resolves names.
    pub dial: Arc<dyn Dial>,
    /// The container's account.
    pub ledger: Arc<Ledger>,
    /// The clock of timeouts.
    pub env: Env,
    /// The part of the account that buffers may use.
    pub(crate) buffers: Arc<BufferMemory>,
    /// Picks ports.
    ports: Arc<Ports>,
}

/// The account of one socket.
#[derive(Debug)]
pub struct SocketGuard {
    _socket: ResourceGuard,
    _memory: ResourceGuard,
}

impl SocketContext {
    /// The network of a container.
    #[must_use]
    pub fn new(network: PodNetwork, caller: Caller, dial: Arc<dyn Dial>, ledger: Arc<Ledger>, env: Env) -> Self {
        let buffers = BufferMemory::new(&ledger);
        Self { network, caller, dial, ledger, env, buffers, ports: Arc::default() }
    }

    /// The pod's address.
    pub(crate) fn ip(&self) -> Result<IpAddr, SocketError> {
        self.caller.ip.ok_or(SocketError::AccessDenied)
    }

    /// The pod's address for a socket of a family: a pod has one family, the other one has its loopback.
    pub(crate) fn own_ip(&self, is_ipv4: bool) -> IpAddr {
        let own = self.caller.ip.filter(|ip| ip.is_ipv4() == is_ipv4);
        own.unwrap_or(if is_ipv4 { [127, 0, 0, 1].into() } else { Ipv6Addr::LOCALHOST.into() })
    }

    /// Reserves a port of the pod for a server; 0 is replaced by a free one.
    ///
    /// # Errors
    /// If the pod has no address, or the port or all ports are used.
    pub(crate) fn reserve_port(
        &self,
        scope: Scope,
        protocol: Protocol,
        port: u16,
        serve: &Arc<dyn Serve>,
    ) -> Result<(u16, Attached), SocketError> {
        let ip = self.ip()?;
        let reserve = |port| self.network.reserve(Listen { ip, scope, protocol, port }, serve.clone()).ok();
        let reserved = match port {
            0 => self.ports.find(|port| Some((port, reserve(port)?))),
            port => reserve(port).map(|attached| (port, attached)),
        };
        reserved.ok_or(SocketError::AddressInUse)
    }

    /// The port of a connection or flow, whose address is unique by its remote end: it need not be free.
    pub(crate) fn next_port(&self) -> u16 {
        self.ports.next()
    }

    /// Charges a socket.
    ///
    /// # Errors
    /// If a quota is used up, or the container's memory limit.
    pub(crate) fn socket(&self) -> Result<Arc<SocketGuard>, SocketError> {
        let socket = self.ledger.hold(Resource::Sockets, 1)?;
        let memory = self.ledger.hold(Resource::Memory, SOCKET_BYTES).map_err(|_| SocketError::OutOfMemory)?;
        Ok(Arc::new(SocketGuard { _socket: socket, _memory: memory }))
    }
}

impl std::fmt::Debug for SocketContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SocketContext").field("pod", &self.caller.pod).finish_non_exhaustive()
    }
}
