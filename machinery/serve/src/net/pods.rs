//! Registry of listening pod addresses: the pods of this process, and a look-up of pods elsewhere.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use tokio::sync::watch;

use super::{Protocol, Serve};

/// Whether an address is a pod's own loopback: 127.0.0.0/16 or ::1 (docs/contract.md §3). The rest of 127.0.0.0/8 holds cluster
/// addresses.
#[must_use]
pub fn is_pod_loopback(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => matches!(ip.octets(), [127, 0, ..]),
        IpAddr::V6(ip) => ip.is_loopback(),
    }
}

/// The scope of a pod's listener, as given by a socket's bind address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// All addresses (0.0.0.0).
    Any,
    /// The pod's address only.
    Pod,
    /// The pod's loopback only (127.0.0.1).
    Loopback,
}

/// An address that a pod listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listen {
    /// The pod's address, also for its loopback.
    pub ip: IpAddr,
    /// The scope.
    pub scope: Scope,
    /// TCP and UDP ports are independent.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

impl Listen {
    /// A TCP port on all addresses.
    #[must_use]
    pub const fn tcp(ip: IpAddr, port: u16) -> Self {
        Self { ip, scope: Scope::Any, protocol: Protocol::Tcp, port }
    }

    const fn key(&self) -> ListenKey {
        (self.ip, self.protocol, self.port)
    }
}

/// The address is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bind: address already in use: {}:{}", .0.ip, .0.port)]
pub struct AddrInUse(pub Listen);

/// Pods of other processes, on this node or another: implemented by a tunnel to their node.
pub trait RemotePods: Send + Sync {
    /// The server on an address of another process.
    fn find(&self, ip: IpAddr, protocol: Protocol, port: u16) -> Option<Arc<dyn Serve>>;
}

type ListenKey = (IpAddr, Protocol, u16);

struct ListenerEntry {
    scope: Scope,
    /// Distinguishes the entry from others at the same address.
    id: u64,
    /// A reserved address is found by no caller.
    is_open: bool,
    serve: Arc<dyn Serve>,
}

/// At most two a key: the pod's address and its loopback.
type ListenersByKey = HashMap<ListenKey, Vec<ListenerEntry>>;

#[derive(Default)]
struct PodNetworkState {
    pods: RwLock<ListenersByKey>,
    next: AtomicU64,
    remote: OnceLock<Arc<dyn RemotePods>>,
    routed: watch::Sender<HashSet<IpAddr>>,
}

/// Servers of pods by address, and the pod IPs in this process's routing table.
#[derive(Clone, Default)]
pub struct PodNetwork {
    inner: Arc<PodNetworkState>,
}

impl std::fmt::Debug for PodNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodNetwork").finish_non_exhaustive()
    }
}

/// A registered address. Dropping it frees this registration and never a successor's.
#[must_use = "dropping it frees the address"]
pub struct Attached {
    network: PodNetwork,
    at: Listen,
    id: u64,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Attached").field(&self.at).finish()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut pods = self.network.inner.pods.write().unwrap_or_else(PoisonError::into_inner);
        let key = self.at.key();
        if let Some(entries) = pods.get_mut(&key) {
            entries.retain(|entry| entry.id != self.id);
            if entries.is_empty() {
                pods.remove(&key);
            }
        }
    }
}

impl Attached {
    /// Opens a reserved address.
    pub fn open(&self) {
        let mut pods = self.network.inner.pods.write().unwrap_or_else(PoisonError::into_inner);
        let entries = pods.get_mut(&self.at.key()).into_iter().flatten();
        for entry in entries.filter(|entry| entry.id == self.id) {
            entry.is_open = true;
        }
    }
}

impl PodNetwork {
    /// Registers `serve` for `at` until the guard is dropped.
    ///
    /// # Errors
    /// If the address is in use.
    pub fn attach(&self, at: Listen, serve: Arc<dyn Serve>) -> Result<Attached, AddrInUse> {
        let attached = self.reserve(at, serve)?;
        attached.open();
        Ok(attached)
    }

    /// As [`PodNetwork::attach`], but no caller finds `serve` until [`Attached::open`]: a socket that is bound and doesn't listen.
    ///
    /// # Errors
    /// If the address is in use.
    pub fn reserve(&self, at: Listen, serve: Arc<dyn Serve>) -> Result<Attached, AddrInUse> {
        let mut pods = self.inner.pods.write().unwrap_or_else(PoisonError::into_inner);
        let entries = pods.entry(at.key()).or_default();
        let clashes =
            |other: &ListenerEntry| other.scope == at.scope || other.scope == Scope::Any || at.scope == Scope::Any;
        if entries.iter().any(clashes) {
            return Err(AddrInUse(at));
        }
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        // Nearly always the only entry.
        entries.reserve_exact(1);
        entries.push(ListenerEntry { scope: at.scope, id, is_open: false, serve });
        Ok(Attached { network: self.clone(), at, id })
    }

    /// The server on a pod's address for other callers: of this process, else of another.
    #[must_use]
    pub fn find(&self, ip: IpAddr, protocol: Protocol, port: u16) -> Option<Arc<dyn Serve>> {
        self.find_local(ip, protocol, port)
            .or_else(|| self.inner.remote.get().and_then(|remote| remote.find(ip, protocol, port)))
    }

    /// The server on the address of a pod of this process, for other callers.
    #[must_use]
    pub fn find_local(&self, ip: IpAddr, protocol: Protocol, port: u16) -> Option<Arc<dyn Serve>> {
        self.local((ip, protocol, port), Scope::Pod)
    }

    /// The server on a pod's loopback for the pod itself.
    #[must_use]
    pub fn loopback(&self, pod_ip: IpAddr, protocol: Protocol, port: u16) -> Option<Arc<dyn Serve>> {
        self.local((pod_ip, protocol, port), Scope::Loopback)
    }

    fn local(&self, key: ListenKey, scope: Scope) -> Option<Arc<dyn Serve>> {
        let pods = self.inner.pods.read().unwrap_or_else(PoisonError::into_inner);
        let entries = pods.get(&key)?;
        let fits = |entry: &&ListenerEntry| entry.is_open && (entry.scope == scope || entry.scope == Scope::Any);
        let entry = entries.iter().find(fits)?;
        Some(entry.serve.clone())
    }

    /// Sets the look-up of other processes' pods. Set once, before the first call.
    ///
    /// # Errors
    /// If it is set already.
    pub fn set_remote(&self, remote: Arc<dyn RemotePods>) -> Result<(), Arc<dyn RemotePods>> {
        self.inner.remote.set(remote)
    }

    /// Publishes the pod IPs that the data plane has added to and removed from its routing table, after each change.
    pub fn publish_routes(&self, begun: &[IpAddr], ceased: &[IpAddr]) {
        self.inner.routed.send_if_modified(|ips| {
            let mut changed = false;
            for ip in ceased {
                changed |= ips.remove(ip);
            }
            for ip in begun {
                changed |= ips.insert(*ip);
            }
            changed
        });
    }

    /// Waits until no routing table of this process has `ip` (returns at once without a data plane).
    pub async fn wait_unrouted(&self, ip: IpAddr) {
        let mut routed = self.inner.routed.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = routed.wait_for(|ips| !ips.contains(&ip)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Body, CallRejected, Origin};
    use http::{Request, Response};

    struct Silent;

    #[async_trait::async_trait]
    impl Serve for Silent {
        async fn http(
            &self,
            _: &Origin,
            request: Request<Body>,
        ) -> Result<Response<Body>, CallRejected<Request<Body>>> {
            Err(CallRejected::gone(request))
        }
    }

    fn ip() -> IpAddr {
        "127.66.0.2".parse().expect("an address")
    }

    fn at(scope: Scope, protocol: Protocol) -> Listen {
        Listen { ip: ip(), scope, protocol, port: 80 }
    }

    #[test]
    fn a_reserved_address_is_in_use_and_not_found() {
        let network = PodNetwork::default();
        let reserved = network.reserve(at(Scope::Any, Protocol::Tcp), Arc::new(Silent)).unwrap();
        assert!(network.attach(at(Scope::Pod, Protocol::Tcp), Arc::new(Silent)).is_err());
        assert!(network.find(ip(), Protocol::Tcp, 80).is_none());
        reserved.open();
        assert!(network.find(ip(), Protocol::Tcp, 80).is_some());
    }

    #[test]
    fn a_taken_address_is_refused_until_its_guard_goes() {
        let network = PodNetwork::default();
        let first = network.attach(at(Scope::Any, Protocol::Tcp), Arc::new(Silent)).unwrap();
        for scope in [Scope::Any, Scope::Pod, Scope::Loopback] {
            let refused = network.attach(at(scope, Protocol::Tcp), Arc::new(Silent)).unwrap_err();
            assert_eq!(refused.to_string(), "bind: address already in use: 127.66.0.2:80");
        }
        let _udp = network.attach(at(Scope::Any, Protocol::Udp), Arc::new(Silent)).unwrap();
        drop(first);
        let _second = network.attach(at(Scope::Any, Protocol::Tcp), Arc::new(Silent)).unwrap();
        assert!(network.find(ip(), Protocol::Tcp, 80).is_some(), "the first guard frees its own address only");
    }

    #[test]
    fn each_pod_has_a_loopback_of_its_own() {
        let network = PodNetwork::default();
        let own = network.attach(at(Scope::Loopback, Protocol::Tcp), Arc::new(Silent)).unwrap();
        assert!(network.loopback(ip(), Protocol::Tcp, 80).is_some());
        assert!(network.find(ip(), Protocol::Tcp, 80).is_none(), "others don't reach it");
        assert!(network.loopback("127.66.0.3".parse().unwrap(), Protocol::Tcp, 80).is_none());
        let _public = network.attach(at(Scope::Pod, Protocol::Tcp), Arc::new(Silent)).unwrap();
        drop(own);
        assert!(network.loopback(ip(), Protocol::Tcp, 80).is_none(), "bound to the pod's address alone");
        assert!(network.find(ip(), Protocol::Tcp, 80).is_some());
    }

    #[test]
    fn remote_pods_are_consulted_last() {
        struct Elsewhere;
        impl RemotePods for Elsewhere {
            fn find(&self, _: IpAddr, _: Protocol, port: u16) -> Option<Arc<dyn Serve>> {
                (port == 81).then(|| Arc::new(Silent) as Arc<dyn Serve>)
            }
        }
        let network = PodNetwork::default();
        assert!(network.set_remote(Arc::new(Elsewhere)).is_ok());
        assert!(network.find(ip(), Protocol::Tcp, 81).is_some() && network.find(ip(), Protocol::Tcp, 80).is_none());
        assert!(network.loopback(ip(), Protocol::Tcp, 81).is_none());
    }

    #[tokio::test]
    async fn waiting_for_routes_follows_published_revisions() {
        let network = PodNetwork::default();
        network.wait_unrouted(ip()).await;
        network.publish_routes(&[ip()], &[]);
        let waiting = network.wait_unrouted(ip());
        network.publish_routes(&[], &[ip()]);
        waiting.await;
    }
}
