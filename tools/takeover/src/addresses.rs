//! The addresses that the flags of a process name, checked before a takeover's commit.

use std::net::SocketAddr;

#[cfg(unix)]
use anyhow::Context as _;
#[cfg(unix)]
use machinery_serve::net::Protocol;
#[cfg(unix)]
use machinery_serve::sockets::SocketKey;

/// An address that a flag of the new process names.
#[derive(Debug, Clone)]
pub struct ListenAddress {
    /// The flag, as `--port`.
    pub flag: &'static str,
    /// What it names.
    pub address: SocketAddr,
}

/// Rejects addresses that are neither those of the running process nor free.
///
/// # Errors
/// If this process couldn't listen on one of them.
#[cfg(unix)]
pub(crate) fn check_addresses(inherited: &[SocketKey], wanted: &[ListenAddress]) -> anyhow::Result<()> {
    for ListenAddress { flag, address } in wanted.iter().filter(|wanted| wanted.address.port() != 0) {
        if inherited.iter().any(|key| key.protocol == Protocol::Tcp && key.address == *address) {
            continue;
        }
        std::net::TcpListener::bind(address).with_context(|| format!("{flag}: cannot listen on {address}"))?;
    }
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_inherited_or_free() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let key = SocketKey { protocol: Protocol::Tcp, address, name: "API server".into() };
        let wanted = |address| [ListenAddress { flag: "--port", address }];
        check_addresses(&[key], &wanted(address)).unwrap();
        let refused = check_addresses(&[], &wanted(address)).unwrap_err().to_string();
        assert!(refused.starts_with("--port: cannot listen on 127.0.0.1:"), "{refused}");
        drop(taken);
        check_addresses(&[], &wanted(address)).unwrap();
        check_addresses(&[], &wanted("127.0.0.1:0".parse().unwrap())).unwrap();
    }
}
