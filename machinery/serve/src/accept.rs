//! The accept loop of all listeners: limits connections by [`Seats`], spawns their service, drains at the end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use machinery_env::Env;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::descriptors::{Class, DescriptorPermit, Descriptors};
use crate::net::Protocol;
pub use crate::seats::{Client, Seats};
use crate::seats::{Seat, SeatHolder};
use crate::sockets::{Layer, SocketKey, SocketTable};

/// Pause after a failed `accept` (the process has no descriptors left), in order not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Idle time before the first TCP keep-alive probe, and interval of the probes …
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// … and number of unanswered probes after which the connection is dead (upstream's values, which are Go's).
const KEEP_ALIVE_TRIES: u32 = 9;

/// Time of a stream of bytes after the end of its listener: it may carry a request, or be open for days.
const STREAM_END: Duration = Duration::from_secs(2);

/// Time of an idle connection after the end of a control listener: the next process waits for it. A client that sends something
/// now needs milliseconds, and one that meets the end of a connection which it has used before repeats its request.
pub const LAST_REQUEST_MAX: Duration = Duration::from_millis(250);
/// Time of a connection without a whole request, from its handshake on. Few clients repeat the first request of a
/// connection, and on a busy machine one needs some hundred milliseconds for its handshake.
pub const FIRST_REQUEST_MAX: Duration = Duration::from_millis(450);

/// Resolves when an unfinished handshake is given up: shortly after `ending`.
pub async fn end_of_handshake(env: &Env, ending: &CancellationToken) {
    ending.cancelled().await;
    env.sleep(FIRST_REQUEST_MAX).await;
}

/// Resolves when a stream of bytes, whose requests are unknown, is to be closed: a while after `ending`.
pub async fn end_of_stream(env: &Env, ending: &CancellationToken) {
    ending.cancelled().await;
    env.sleep(STREAM_END).await;
}

/// Enables TCP keep-alive: a peer that lost its power or its network closes no connection and would occupy its permit
/// for ever. Slow readers still answer the probes.
pub fn keep_alive(stream: &TcpStream) {
    let often = TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE).with_retries(KEEP_ALIVE_TRIES);
    if let Err(error) = SockRef::from(stream).set_tcp_keepalive(&often) {
        tracing::debug!(%error, "TCP keep-alive cannot be enabled");
    }
}

/// Limit of concurrent connections: a pool of seats, and what the listener's connections are counted for in it.
#[derive(Debug, Clone)]
pub struct Limit {
    seats: Arc<Seats>,
    group: Arc<str>,
}

impl Limit {
    /// Connections take seats of `seats`, which other listeners may share, for `group`: a Service, a pod or a server.
    #[must_use]
    pub fn new(seats: &Arc<Seats>, group: impl Into<Arc<str>>) -> Self {
        Self { seats: seats.clone(), group: group.into() }
    }

    /// Takes a seat for a connection; `None` if it is to be closed.
    pub async fn take(&self, peer: SocketAddr) -> Option<ConnectionPermit> {
        let holder = SeatHolder { group: self.group.clone(), client: peer.ip().into() };
        self.seats.take(holder).await.map(ConnectionPermit)
    }
}

/// The seat of an open connection, kept through an upgrade.
#[derive(Debug)]
pub struct ConnectionPermit(Seat);

impl ConnectionPermit {
    /// Marks the peer as authenticated: the connection isn't displaced by waiting ones any more.
    pub fn mark_authenticated(&self) {
        self.0.mark_authenticated();
    }

    /// Marks the connection as in use until the guard is dropped.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> RunningOnPermit {
        self.0.begin();
        RunningOnPermit(self.clone())
    }

    /// Resolves when the connection has lost its seat, which the accept loop itself observes.
    pub async fn displaced(&self) {
        self.0.displaced().await;
    }

    /// Resolves when an upgraded connection has lost its seat: close it then. Without a wait it never loses it.
    pub async fn displaced_after_upgrade(&self) {
        self.0.displaced_after_upgrade().await;
    }
}

/// A request, or a use of another kind, of a connection.
#[derive(Debug)]
pub struct RunningOnPermit(Arc<ConnectionPermit>);

impl Drop for RunningOnPermit {
    fn drop(&mut self) {
        self.0.0.end();
    }
}

/// A listening socket with its descriptors.
#[derive(Debug)]
pub struct Listener {
    socket: Arc<TcpListener>,
    table: Arc<SocketTable>,
    /// One of the layer of pods may have to wait for them.
    layer: Layer,
    /// Of a Service or a pod, whose descriptors are limited.
    _held: Option<[DescriptorPermit; 2]>,
}

impl Listener {
    /// Listens for a Service or a pod: takes descriptors for the listener and for the one connection that waits at it.
    ///
    /// # Errors
    /// If the address is taken or not allowed, or there are too many listeners.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        Self::bind_in(SocketTable::process(), address)
    }

    /// As [`Listener::bind`], in another table than the process's.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub fn bind_in(table: &Arc<SocketTable>, address: SocketAddr) -> io::Result<Self> {
        let descriptors = Descriptors::process();
        let held = [descriptors.take(Class::Listeners)?, descriptors.take(Class::Listeners)?];
        let listener = Self::register(table, "", table.bind_tcp("", address)?)?;
        Ok(Self { _held: Some(held), ..listener.of_pods() })
    }

    /// Moves the listener to the layer of pods: it changes hands with them.
    #[must_use]
    pub fn of_pods(self) -> Self {
        Self { layer: Layer::Pods, ..self }
    }

    /// Listens for the control layer of the process: these are few and not limited. `name`: the use of the socket, by which the next
    /// process finds it where the port is 0.
    ///
    /// # Errors
    /// If the address is taken or not allowed.
    pub fn bind_own(name: &str, address: SocketAddr) -> io::Result<Self> {
        let table = SocketTable::process();
        Self::register(table, name, table.bind_tcp(name, address)?)
    }

    /// A listener of the process itself, from a non-blocking socket of the process's table.
    ///
    /// # Errors
    /// On errors of the system.
    pub fn from_bound(name: &str, socket: std::net::TcpListener) -> io::Result<Self> {
        Self::register(SocketTable::process(), name, socket)
    }

    fn register(table: &Arc<SocketTable>, name: &str, socket: std::net::TcpListener) -> io::Result<Self> {
        let key = SocketKey { protocol: Protocol::Tcp, address: socket.local_addr()?, name: name.to_owned() };
        let socket = Arc::new(TcpListener::from_std(socket)?);
        table.register(key, &socket);
        Ok(Self { socket, table: table.clone(), layer: Layer::Control, _held: None })
    }

    /// The bound address.
    ///
    /// # Errors
    /// On errors of the system.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Resolves when the listener may accept.
    async fn admitted(&self) {
        match self.layer {
            Layer::Control => {}
            Layer::Pods => self.table.admitted().await,
        }
    }
}

/// A listener that another process doesn't take over.
impl From<TcpListener> for Listener {
    fn from(socket: TcpListener) -> Self {
        Self { socket: Arc::new(socket), table: SocketTable::process().clone(), layer: Layer::Control, _held: None }
    }
}

/// Accepts connections until `stop`, then drains the open ones for `drain` (without limit if `None`) and aborts the
/// rest. `serve` makes the future of each connection, which is closed when that ends; its token is cancelled when the
/// connection is to complete its requests and to end.
///
/// When the listener's layer is retired, the loop ends as well: the connections complete without a limit until `stop`.
///
/// An idle listener holds no seat: an accepted connection takes one, or is closed. Dropping the future aborts all
/// connections.
pub async fn serve<F>(
    listener: Listener,
    limit: Limit,
    drain: Option<Duration>,
    env: &Env,
    stop: &CancellationToken,
    serve: impl Fn(TcpStream, SocketAddr, Arc<ConnectionPermit>, CancellationToken) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let connections = TaskTracker::new();
    let (cut, ending) = (CancellationToken::new(), stop.child_token());
    let _cut_when_dropped = cut.clone().drop_guard();
    let (table, layer) = (listener.table.clone(), listener.layer);
    let serving = table.keep_serving(layer);
    if layer == Layer::Control {
        table.record_control(env.elapsed());
    }
    loop {
        // The end first: a connection that isn't accepted yet is the next process's.
        let (stream, peer) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = table.retired(layer) => break,
            next = async { listener.admitted().await; accept(&listener.socket, env).await } => next,
        };
        // The seat first: an accepted connection is served, also at the end, as it is not the next process's any more.
        let permit = tokio::select! {
            biased;
            permit = limit.take(peer) => match permit {
                Some(permit) => Arc::new(permit),
                None => continue,
            },
            () = stop.cancelled() => break,
        };
        // Send small responses at once; a socket that refuses is only slower.
        let _ = stream.set_nodelay(true);
        keep_alive(&stream);
        let (connection, cut) = (serve(stream, peer, permit.clone(), ending.clone()), cut.clone());
        connections.spawn(async move {
            tokio::select! {
                () = cut.cancelled() => {}
                () = permit.displaced() => tracing::debug!(%peer, "a connection was displaced by another one"),
                // An upgraded connection goes on, and nothing here can end it.
                () = connection => permit.0.mark_handed_over(),
            }
        });
    }
    drop(listener);
    ending.cancel();
    connections.close();
    tokio::select! {
        () = stop.cancelled() => {}
        () = connections.wait() => {}
    }
    drop(serving);
    match drain {
        None => connections.wait().await,
        Some(drain) => {
            let _ = env.timeout(drain, connections.wait()).await;
            cut.cancel();
            connections.wait().await;
        }
    }
}

/// Accepts the next connection; retries on errors.
async fn accept(listener: &TcpListener, env: &Env) -> (TcpStream, SocketAddr) {
    let mut failing = false;
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                // Log once per series of failures: the log must not grow with the attempts.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "accepting a connection failed");
                }
                env.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A listener with `limit` whose connections echo each byte and stay open.
    fn echoing(
        limit: Limit,
        drain: Option<Duration>,
        stop: &CancellationToken,
    ) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), stop.clone());
        let running = tokio::spawn(async move {
            serve(listener, limit, drain, &Env::real(), &stop, |mut stream, _, permit, _| async move {
                let _permit = permit;
                let (mut reads, mut writes) = stream.split();
                let _ = tokio::io::copy(&mut reads, &mut writes).await;
            })
            .await;
        });
        (address, running)
    }

    async fn echoed(stream: &mut TcpStream) -> io::Result<u8> {
        stream.write_all(b"x").await?;
        stream.read_u8().await
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn accepted_connections_have_tcp_keep_alive() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        let stop = CancellationToken::new();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let env = Env::real();
        let serving = serve(listener, Limit::new(&Seats::new(1), "test"), None, &env, &stop, |stream, _, _, _| {
            let sender = sender.clone();
            async move {
                let socket = SockRef::from(&stream);
                let often = (socket.keepalive().unwrap(), socket.tcp_keepalive_time().unwrap());
                sender.send((often, socket.tcp_keepalive_retries().unwrap())).await.unwrap();
            }
        });
        let asks = async {
            let _client = TcpStream::connect(address).await.unwrap();
            let seen = receiver.recv().await.unwrap();
            stop.cancel();
            seen
        };
        let ((), seen) = tokio::join!(serving, asks);
        assert_eq!(seen, ((true, KEEP_ALIVE), KEEP_ALIVE_TRIES));
    }

    #[tokio::test]
    async fn idle_listeners_hold_no_seat_and_idle_connections_give_theirs_away() {
        let seats = Seats::new(1);
        let stop = CancellationToken::new();
        // More listeners than seats, all idle but one.
        let all: Vec<_> = (0..4).map(|n| echoing(Limit::new(&seats, n.to_string()), None, &stop)).collect();
        let mut last: Option<TcpStream> = None;
        for (address, _) in &all {
            let mut stream = TcpStream::connect(address).await.unwrap();
            assert_eq!(echoed(&mut stream).await.unwrap(), b'x');
            if let Some(mut last) = last.replace(stream) {
                assert!(echoed(&mut last).await.is_err(), "it waited, and made way");
            }
        }
        stop.cancel();
        drop(last);
        for (_, running) in all {
            running.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_connection_at_the_end_is_served_or_left_to_the_next_process() {
        let (env, seats) = (Env::real(), Seats::new(1));
        for _ in 0..64 {
            let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            let (address, next) = (socket.local_addr().unwrap(), socket.try_clone().unwrap());
            let (stop, served) = (CancellationToken::new(), std::sync::atomic::AtomicBool::new(false));
            let listener = Listener::from(TcpListener::from_std(socket).unwrap());
            let running = serve(listener, Limit::new(&seats, "test"), None, &env, &stop, |_, _, _, _| {
                served.store(true, std::sync::atomic::Ordering::Relaxed);
                async {}
            });
            let client = async {
                let client = TcpStream::connect(address).await.unwrap();
                stop.cancel();
                client
            };
            let ((), _client) = tokio::join!(running, client);
            assert_ne!(served.into_inner(), next.accept().is_ok());
        }
    }

    #[tokio::test]
    async fn a_connection_without_a_seat_is_closed() {
        let (seats, stop) = (Seats::new(2), CancellationToken::new());
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (env, stopped) = (Env::real(), stop.clone());
        let running = tokio::spawn(async move {
            serve(listener, Limit::new(&seats, "test"), None, &env, &stopped, |mut stream, _, permit, _| async move {
                let _in_use = permit.begin();
                let (mut reads, mut writes) = stream.split();
                let _ = tokio::io::copy(&mut reads, &mut writes).await;
            })
            .await;
        });
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            assert_eq!(echoed(&mut stream).await.unwrap(), b'x');
            held.push(stream);
        }
        let mut next = TcpStream::connect(address).await.unwrap();
        assert!(echoed(&mut next).await.is_err(), "all are in use");
        assert_eq!(echoed(&mut held[0]).await.unwrap(), b'x');
        drop(held.pop());
        while echoed(&mut TcpStream::connect(address).await.unwrap()).await.is_err() {}
        stop.cancel();
        drop(held);
        running.await.unwrap();
    }

    #[tokio::test]
    async fn open_connections_are_aborted_after_the_drain() {
        let stop = CancellationToken::new();
        let seats = Limit::new(&Seats::new(2), "test");
        let (address, running) = echoing(seats, Some(Duration::from_millis(200)), &stop);
        let (mut one, mut two) =
            (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        echoed(&mut one).await.unwrap();
        echoed(&mut two).await.unwrap();
        stop.cancel();
        assert_eq!(echoed(&mut one).await.unwrap(), b'x', "during the drain");
        drop(one);
        running.await.unwrap();
        assert!(echoed(&mut two).await.is_err(), "cut off");
    }

    #[tokio::test]
    async fn dropping_the_future_aborts_its_connections() {
        let (address, running) = echoing(Limit::new(&Seats::new(2), "test"), None, &CancellationToken::new());
        let mut stream = TcpStream::connect(address).await.unwrap();
        echoed(&mut stream).await.unwrap();
        running.abort();
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
    }
}
