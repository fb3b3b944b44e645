//! Connections that this process opens (docs/decisions/0141-one-dialer.md).
//!
//! - [`trust`]: the one verifier of servers' certificates.
//! - [`tls`]: the client's side of TLS: its trust, its identity, its protocol.
//! - [`unverified`]: TLS to a server whose certificate can't be verified.
//! - [`idle`]: idle connections for the next request, within limits. Pure.
//!
//! Absent: proxies of the environment, redirects, and the system's certificates. Each user names its authorities.

pub mod idle;
pub mod tls;
pub mod trust;
pub mod unverified;

use std::io;

use tokio::net::TcpStream;

use crate::accept::keep_alive;

/// Connects to the first address of a host that accepts, with keep-alive: a peer that lost its power closes no connection.
/// The timeout is the caller's.
///
/// # Errors
/// If the name has no address, or none accepts.
pub async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let socket = TcpStream::connect((host, port)).await?;
    keep_alive(&socket);
    Ok(socket)
}
