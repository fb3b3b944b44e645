//! Who answers on which address: the pods of this process, and the place of those that are elsewhere.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use tokio::sync::watch;

use super::{Protocol, Serve};

/// From where an address of a pod is reached: what a socket's bind address says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// From everywhere (0.0.0.0).
    Any,
    /// By the pod's address only.
    Pod,
    /// From within the pod only (127.0.0.1).
    Loopback,
}

/// An address that a pod listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listen {
    /// The pod's address, also of its loopback.
    pub ip: IpAddr,
    /// From where it is reached.
    pub scope: Scope,
    /// TCP and UDP have ports of their own.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

impl Listen {
    /// A TCP port that is reached from everywhere.
    #[must_use]
    pub const fn tcp(ip: IpAddr, port: u16) -> Self {
        Self { ip, scope: Scope::Any, protocol: Protocol::Tcp, port }
    }

    const fn place(&self) -> Place {
        (self.ip, self.protocol, self.port)
    }
}

/// The address is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bind: address already in use: {}:{}", .0.ip, .0.port)]
pub struct AddrInUse(pub Listen);

/// Pods that run in another process, on this node or another: what a tunnel to their node implements.
pub trait RemotePods: Send + Sync {
    /// What answers on an address that is none of this process.
    fn find(&self, ip: IpAddr, protocol: Protocol, port: u16) -> Option<Arc<dyn Serve>>;
}

type Place = (IpAddr, Protocol, u16);

struct Entry {
    scope: Scope,
    /// Tells it from what stood or will stand at the same address.
    id: u64,
    serve: Arc<dyn Serve>,
}

/// At most two at a place: one of the pod's address, one of its loopback.
type Pods = HashMap<Place, Vec<Entry>>;

#[derive(Default)]
struct Inner {
    pods: RwLock<Pods>,
    next: AtomicU64,
    remote: OnceLock<Arc<dyn RemotePods>>,
    routed: watch::Sender<HashSet<IpAddr>>,
}

/// Pods by address, and which of them a routing table of this process still names.
#[derive(Clone, Default)]
pub struct PodNetwork {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for PodNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodNetwork").finish_non_exhaustive()
    }
}

/// An address that is taken as long as this lives. Dropping it frees this one and never a successor's.
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
        let place = self.at.place();
        if let Some(entries) = pods.get_mut(&place) {
            entries.retain(|entry| entry.id != self.id);
            if entries.is_empty() {
                pods.remove(&place);
            }
        }
    }
}

impl PodNetwork {
    /// Makes `serve` answer on `at` until the guard is dropped.
    ///
    /// # Errors
    /// Another one answers there.
    pub fn attach(&self, at: Listen, serve: Arc<dyn Serve>) -> Result<Attached, AddrInUse> {
        let mut pods = self.inner.pods.write().unwrap_or_else(PoisonError::into_inner);
        let entries = pods.entry(at.place()).or_default();
        let clashes = |other: &Entry| other.scope == at.scope || other.scope == Scope::Any || at.scope == Scope::Any;
        if entries.iter().any(clashes) {
            return Err(AddrInUse(at));
        }
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        // Nearly always the only one.
        entries.reserve_exact(1);
        entries.push(Entry { scope: at.scope, id, serve });
        Ok(Attached { network: self.clone(), at, id })
    }

    /// What answers to others on an address of a pod: one of this process, else one that is elsewhere.
    #[must_use]
    pub fn find(&self, ip: IpAddr, protocol: Protocol, port: u16) -> Option<Arc<dyn Serve>> {
        self.local((ip, protocol, port), Scope::Pod)
            .or_else(|| self.inner.remote.get().and_then(|remote| remote.find(ip, protocol, port)))
    }

    /// What answers to the pod itself on its loopback.
    #[must_use]
    pub fn loopback(&self, pod_ip: IpAddr, protocol: Protocol, port: u16) -> Option<Arc<dyn Serve>> {
        self.local((pod_ip, protocol, port), Scope::Loopback)
    }

    fn local(&self, place: Place, scope: Scope) -> Option<Arc<dyn Serve>> {
        let pods = self.inner.pods.read().unwrap_or_else(PoisonError::into_inner);
        let entries = pods.get(&place)?;
        let entry = entries.iter().find(|entry| entry.scope == scope || entry.scope == Scope::Any)?;
        Some(entry.serve.clone())
    }

    /// Where pods are looked for that are not of this process. Set once, before the first call.
    ///
    /// # Errors
    /// It is set already.
    pub fn set_remote(&self, remote: Arc<dyn RemotePods>) -> Result<(), Arc<dyn RemotePods>> {
        self.inner.remote.set(remote)
    }

    /// The data plane publishes which pod IPs its routing table has begun and ceased to name, after each change.
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

    /// Waits until no routing table of this process names `ip` (at once where there is no data plane).
    pub async fn until_unrouted(&self, ip: IpAddr) {
        let mut routed = self.inner.routed.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = routed.wait_for(|ips| !ips.contains(&ip)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Body, Origin, Refused};
    use http::{Request, Response};

    struct Silent;

    #[async_trait::async_trait]
    impl Serve for Silent {
        async fn http(&self, _: &Origin, request: Request<Body>) -> Result<Response<Body>, Refused<Request<Body>>> {
            Err(Refused::gone(request))
        }
    }

    fn ip() -> IpAddr {
        "127.66.0.2".parse().expect("an address")
    }

    fn at(scope: Scope, protocol: Protocol) -> Listen {
        Listen { ip: ip(), scope, protocol, port: 80 }
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
    fn pods_elsewhere_are_asked_for_last() {
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
    async fn waiting_for_routes_follows_what_is_published() {
        let network = PodNetwork::default();
        network.until_unrouted(ip()).await;
        network.publish_routes(&[ip()], &[]);
        let waiting = network.until_unrouted(ip());
        network.publish_routes(&[], &[ip()]);
        waiting.await;
    }
}
