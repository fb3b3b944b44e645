//! Which addresses a guest may bind and call. Pure.

use std::net::{IpAddr, SocketAddr};

use machinery_serve::net::{Scope, is_pod_loopback};

use crate::SocketError;

/// The address family of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6, without IPv4-mapped addresses.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn check(self, ip: IpAddr) -> Result<(), SocketError> {
        let is_mapped = matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
        if Self::of(ip) == self && !is_mapped { Ok(()) } else { Err(SocketError::InvalidArgument) }
    }
}

/// The scope of a socket that is bound to `ip` in a pod with the address `pod`.
///
/// # Errors
/// Another family ([`SocketError::InvalidArgument`]), an address that isn't the pod's, or a family that the pod's address isn't of:
/// only its loopback can be bound.
pub fn bind_scope(family: Family, ip: IpAddr, pod: IpAddr) -> Result<Scope, SocketError> {
    family.check(ip)?;
    match ip {
        ip if ip.is_multicast() => Err(SocketError::InvalidArgument),
        ip if ip.is_unspecified() && Family::of(pod) == family => Ok(Scope::Any),
        ip if ip.is_unspecified() || is_pod_loopback(ip) => Ok(Scope::Loopback),
        ip if ip == pod => Ok(Scope::Pod),
        _ => Err(SocketError::AddressNotBindable),
    }
}

/// Checks a destination.
///
/// # Errors
/// Another family, no address or no port ([`SocketError::InvalidArgument`]). Whether it may be called is decided by the data plane.
pub fn check_remote(family: Family, remote: SocketAddr) -> Result<(), SocketError> {
    family.check(remote.ip())?;
    if remote.ip().is_unspecified() || remote.port() == 0 { Err(SocketError::InvalidArgument) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_binds_its_own_addresses_alone() {
        let bind = |family, ip: &str| bind_scope(family, ip.parse().unwrap(), [127, 66, 0, 2].into());
        for (family, ip, expected) in [
            (Family::V4, "0.0.0.0", Ok(Scope::Any)),
            (Family::V4, "127.66.0.2", Ok(Scope::Pod)),
            (Family::V4, "127.0.0.1", Ok(Scope::Loopback)),
            (Family::V4, "127.0.255.9", Ok(Scope::Loopback)),
            (Family::V4, "127.66.0.3", Err(SocketError::AddressNotBindable)),
            (Family::V4, "127.1.0.1", Err(SocketError::AddressNotBindable)),
            (Family::V4, "10.0.0.1", Err(SocketError::AddressNotBindable)),
            (Family::V4, "224.0.0.1", Err(SocketError::InvalidArgument)),
            (Family::V4, "::1", Err(SocketError::InvalidArgument)),
            (Family::V6, "::", Ok(Scope::Loopback)),
            (Family::V6, "::1", Ok(Scope::Loopback)),
            (Family::V6, "fd00::1", Err(SocketError::AddressNotBindable)),
            (Family::V6, "::ffff:127.66.0.2", Err(SocketError::InvalidArgument)),
            (Family::V6, "0.0.0.0", Err(SocketError::InvalidArgument)),
        ] {
            assert_eq!(bind(family, ip), expected, "{ip}");
        }
        assert_eq!(bind_scope(Family::V6, "::".parse().unwrap(), "fd00::2".parse().unwrap()), Ok(Scope::Any));
    }

    #[test]
    fn a_destination_has_the_sockets_family_an_address_and_a_port() {
        let check = |family, remote: &str| check_remote(family, remote.parse().unwrap());
        assert_eq!(check(Family::V4, "10.0.0.1:80"), Ok(()));
        assert_eq!(check(Family::V6, "[fd00::1]:80"), Ok(()));
        for (family, remote) in [
            (Family::V4, "0.0.0.0:80"),
            (Family::V4, "10.0.0.1:0"),
            (Family::V4, "[::1]:80"),
            (Family::V6, "[::ffff:10.0.0.1]:80"),
        ] {
            assert_eq!(check(family, remote), Err(SocketError::InvalidArgument), "{remote}");
        }
    }
}
