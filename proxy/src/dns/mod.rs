//! Cluster DNS on the wire, for processes of the host: UDP and TCP on the cluster's DNS address and on an address of its
//! own (docs/contract.md §3). Guests resolve in process, by the same data ([`crate::plane::look_up`]).
//!
//! - [`records`], [`answer`], [`outside`], [`packet`], [`limit`]: pure.
//! - [`forward`]: names outside the cluster, by the host's name servers.
//! - [`server`]: the sockets.

mod answer;
mod forward;
#[cfg(test)]
mod fuzz;
mod limit;
mod outside;
mod packet;
mod records;
mod server;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use machinery_serve::accept::Listener;
use machinery_serve::sockets::SocketTable;
use tokio_util::sync::CancellationToken;

use crate::dns::server::DnsServer;
use crate::egress::external::DNS_PORT;
use crate::plane::DataPlane;
use crate::udp::listener;

/// Attempts to find a port that is free for both UDP and TCP.
const PORT_ATTEMPTS_MAX: usize = 16;

/// The sockets of one address.
#[derive(Debug)]
pub struct DnsSockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl DnsSockets {
    /// Binds the standard port of an address.
    ///
    /// # Errors
    /// If it is taken or not allowed.
    pub fn bind_standard(ip: IpAddr) -> io::Result<Self> {
        Self::bind(SocketAddr::new(ip, DNS_PORT))
    }

    /// Binds UDP and TCP of an address; a port 0 stands for a free port of both.
    ///
    /// # Errors
    /// If the address is taken or not allowed.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let table = SocketTable::process();
        let mut attempts = if address.port() == 0 { PORT_ATTEMPTS_MAX } else { 1 };
        loop {
            attempts -= 1;
            let tcp = table.bind_tcp("", address)?;
            match table.bind_udp("", tcp.local_addr()?) {
                Ok(udp) => return Ok(Self { udp, tcp }),
                Err(error) if attempts == 0 => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Binds the address of the last run if it is a free loopback address, else any free port of 127.0.0.1.
    ///
    /// # Errors
    /// If no port is free.
    pub fn bind_local(before: Option<SocketAddr>) -> io::Result<Self> {
        let before = before.filter(|address| address.ip().is_loopback());
        match before.map(Self::bind) {
            Some(Ok(sockets)) => Ok(sockets),
            _ => Self::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)),
        }
    }

    /// The bound address.
    ///
    /// # Errors
    /// On errors of the system.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

/// Serves cluster DNS on all sockets until `stop`.
///
/// # Errors
/// If a socket can't be registered with the runtime.
pub async fn serve(plane: &DataPlane, sockets: Vec<DnsSockets>, stop: &CancellationToken) -> io::Result<()> {
    let server = DnsServer::new(plane.state.clone());
    let mut serving = Vec::with_capacity(sockets.len());
    for DnsSockets { udp, tcp } in sockets {
        let udp = server.clone().serve_udp(listener::registered(udp)?, stop.clone());
        let tcp = server.clone().serve_tcp(Listener::from_bound("", tcp)?.of_pods(), stop.clone());
        serving.push(async move { tokio::join!(udp, tcp) });
    }
    futures::future::join_all(serving).await;
    Ok(())
}
