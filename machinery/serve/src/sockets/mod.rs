//! The listening sockets of a process: one table through which all of them are bound, so that the next process can take
//! them over without a refused connection (docs/decisions/0126-takeover-in-layers.md).
//!
//! - A process that gives its sockets away retires the table in two steps: its control listeners at the commit
//!   ([`Layer::Control`]), those of pods and Services when the other process has their pods ([`Layer::Pods`]). Accept loops
//!   end, and their sockets stay open in the other process.
//! - A process that takes sockets puts them into the table before it binds: an inherited address is not bound again.
//!   Listeners of pods and Services accept after [`SocketTable::admit`], when the pods run again.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::net::Protocol;

/// Connections that wait at a listener until they are accepted (tokio's value; the system's bound, `net.core.somaxconn`, is
/// often 4,096). A further one repeats its SYN after a second.
const BACKLOG: i32 = 1024;
/// Registered sockets from which closed ones are removed for the first time.
const SWEEP_AT: usize = 64;

/// A socket that the system can pass to another process.
#[cfg(unix)]
pub trait Descriptor: std::os::fd::AsFd + Send + Sync {}
#[cfg(unix)]
impl<T: std::os::fd::AsFd + Send + Sync> Descriptor for T {}
/// A socket. Systems without Unix sockets pass none.
#[cfg(not(unix))]
pub trait Descriptor: Send + Sync {}
#[cfg(not(unix))]
impl<T: Send + Sync> Descriptor for T {}

/// Identifies a socket in both processes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SocketKey {
    /// TCP: it listens. UDP: it is bound.
    pub protocol: Protocol,
    /// The bound address.
    pub address: SocketAddr,
    /// The socket's use, for those of the process itself: it is found by that where the port is chosen by the system. Empty
    /// for Services and pods.
    pub name: String,
}

/// A socket of another process.
#[derive(Debug)]
pub struct InheritedSocket {
    /// Its key.
    pub key: SocketKey,
    /// The open socket.
    pub socket: Socket,
}

/// The part of a process that a listener belongs to. At a takeover they change hands one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// API server, registry, kubelet API: there is one owner at a time.
    Control,
    /// Services, pods, cluster DNS, tunnel: both processes serve until the older one has completed its requests.
    Pods,
}

/// The retirement of one layer.
struct Retirement {
    begun: CancellationToken,
    serving: TaskTracker,
}

impl Default for Retirement {
    fn default() -> Self {
        Self { begun: CancellationToken::new(), serving: TaskTracker::new() }
    }
}

#[derive(Default)]
struct OpenSockets {
    by_key: BTreeMap<SocketKey, Weak<dyn Descriptor>>,
    sweep_at: usize,
}

/// All listening sockets of a process.
pub struct SocketTable {
    open: Mutex<OpenSockets>,
    inherited: Mutex<Vec<InheritedSocket>>,
    control: Retirement,
    pods: Retirement,
    admitting: watch::Sender<bool>,
    /// When the last control listener began to accept, on the scale of `Env::elapsed`, before pods were admitted.
    controls_since: Mutex<Option<Duration>>,
}

impl Default for SocketTable {
    fn default() -> Self {
        Self {
            open: Mutex::default(),
            inherited: Mutex::default(),
            control: Retirement::default(),
            pods: Retirement::default(),
            admitting: watch::Sender::new(true),
            controls_since: Mutex::default(),
        }
    }
}

impl std::fmt::Debug for SocketTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SocketTable(…)")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SocketTable {
    /// The table of this process.
    #[must_use]
    pub fn process() -> &'static Arc<Self> {
        // Sockets belong to the operating system's process, whatever is composed in it.
        static PROCESS: OnceLock<Arc<SocketTable>> = OnceLock::new();
        PROCESS.get_or_init(Arc::default)
    }

    /// A listening TCP socket at an address: an inherited one, else a new one. Non-blocking.
    ///
    /// # Errors
    /// If the address is taken or not allowed.
    pub fn bind_tcp(&self, name: &str, address: SocketAddr) -> io::Result<TcpListener> {
        if let Some(socket) = self.claim(Protocol::Tcp, name, address) {
            return Ok(socket.into());
        }
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // As std: a restart doesn't wait for the last connections' end. On Windows the option means something else.
        #[cfg(unix)]
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }

    /// A UDP socket at an address: an inherited one, else a new one. Non-blocking.
    ///
    /// # Errors
    /// If the address is taken or not allowed.
    pub fn bind_udp(&self, name: &str, address: SocketAddr) -> io::Result<UdpSocket> {
        if let Some(socket) = self.claim(Protocol::Udp, name, address) {
            return Ok(socket.into());
        }
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// Records a socket for as long as it is open.
    pub fn register<T: Descriptor + 'static>(&self, key: SocketKey, socket: &Arc<T>) {
        let socket: Arc<dyn Descriptor> = socket.clone();
        let mut open = lock(&self.open);
        open.by_key.insert(key, Arc::downgrade(&socket));
        if open.by_key.len() >= open.sweep_at.max(SWEEP_AT) {
            open.by_key.retain(|_, socket| socket.strong_count() > 0);
            open.sweep_at = open.by_key.len() * 2;
        }
    }

    /// The open sockets.
    #[must_use]
    pub fn open(&self) -> Vec<(SocketKey, Arc<dyn Descriptor>)> {
        let open = lock(&self.open);
        open.by_key.iter().filter_map(|(key, socket)| Some((key.clone(), socket.upgrade()?))).collect()
    }

    fn layer(&self, layer: Layer) -> &Retirement {
        match layer {
            Layer::Control => &self.control,
            Layer::Pods => &self.pods,
        }
    }

    /// Ends the accept loops of a layer for good. Accepted connections are completed.
    pub fn retire(&self, layer: Layer) {
        let layer = self.layer(layer);
        layer.begun.cancel();
        layer.serving.close();
    }

    /// Resolves when the layer is retired.
    pub async fn retired(&self, layer: Layer) {
        self.layer(layer).begun.cancelled().await;
    }

    /// A token that is cancelled when the layer is retired.
    #[must_use]
    pub fn retirement(&self, layer: Layer) -> CancellationToken {
        self.layer(layer).begun.child_token()
    }

    /// Resolves when the connections of the retired layer have ended.
    pub async fn drained(&self, layer: Layer) {
        self.layer(layer).serving.wait().await;
    }

    /// Keeps [`SocketTable::drained`] waiting until it is dropped.
    pub fn keep_serving(&self, layer: Layer) -> TaskTrackerToken {
        self.layer(layer).serving.token()
    }

    /// Records that a control listener begins to accept after a takeover.
    pub(crate) fn record_control(&self, now: Duration) {
        if !self.is_admitting() {
            *lock(&self.controls_since) = Some(now);
        }
    }

    /// When the last control listener began to accept after a takeover, on the scale of `Env::elapsed`.
    #[must_use]
    pub fn controls_since(&self) -> Option<Duration> {
        *lock(&self.controls_since)
    }

    /// Takes the sockets of another process. Listeners of pods and Services don't accept before [`SocketTable::admit`].
    pub fn inherit(&self, sockets: Vec<InheritedSocket>) {
        self.admitting.send_replace(false);
        lock(&self.inherited).extend(sockets);
    }

    /// Whether the listeners of pods and Services may accept. False in a process that has taken over and isn't ready.
    #[must_use]
    pub fn is_admitting(&self) -> bool {
        *self.admitting.borrow()
    }

    /// Lets the listeners of pods and Services accept.
    pub fn admit(&self) {
        self.admitting.send_replace(true);
    }

    /// Resolves when the listeners of pods and Services may accept.
    pub async fn admitted(&self) {
        if self.is_admitting() {
            return;
        }
        // The sender lives as long as `self`.
        let _ = self.admitting.subscribe().wait_for(|admitting| *admitting).await;
    }

    /// Closes the inherited sockets that nothing has bound, and returns their keys.
    pub fn close_unclaimed(&self) -> Vec<SocketKey> {
        std::mem::take(&mut *lock(&self.inherited)).into_iter().map(|socket| socket.key).collect()
    }

    fn claim(&self, protocol: Protocol, name: &str, address: SocketAddr) -> Option<Socket> {
        let mut inherited = lock(&self.inherited);
        let found = position(inherited.iter().map(|socket| &socket.key), protocol, name, address)?;
        Some(inherited.swap_remove(found).socket)
    }
}

/// The inherited socket for an address: the one of that address, or of that name where any port is wanted.
fn position<'a>(
    mut keys: impl Iterator<Item = &'a SocketKey>,
    protocol: Protocol,
    name: &str,
    address: SocketAddr,
) -> Option<usize> {
    keys.position(|key| {
        let of_name = address.port() == 0 && !name.is_empty() && key.name == name && key.address.ip() == address.ip();
        key.protocol == protocol && (key.address == address || of_name)
    })
}
