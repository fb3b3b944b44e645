//! What the registry of a cluster and its clients agree on: the user, and where it speaks TLS (docs/contract.md §4).

use std::net::SocketAddr;

/// The registry's only user.
pub const USER: &str = "coracle";

/// Whether the registry at an address speaks TLS, which needs no configuration of the client where it doesn't.
pub fn serves_tls(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|address| !address.ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::serves_tls;

    #[test]
    fn only_other_machines_need_tls() {
        assert!(!serves_tls("127.0.0.1:5000") && !serves_tls("[::1]:5000") && !serves_tls("registry.local"));
        assert!(serves_tls("10.0.0.1:5000") && serves_tls("[fd00::1]:5000"));
    }
}
