//! One peer's connections: made on demand, one at a time, with back-off.
//!
//! Requests and bulk (byte streams, datagrams) have connections of their own. Each connection has a bounded number of
//! streams, whose windows fit into the connection's together: a slow reader stops only its own stream.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use machinery_env::Env;
use machinery_serve::dial::tls::ClientTls;
use machinery_serve::log_limit::LogLimit;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::link::{Link, LinkEnd, LinkState, connect};
use super::metrics::TunnelMetrics;

/// Connections of each kind to a peer.
pub(super) const LINKS_MAX: usize = 4;
/// Time that a call waits for the first connection, or for a free stream.
const WAIT_MAX: Duration = Duration::from_secs(3);
/// First delay of a reconnect; doubles with each failure. A random half of it is left out.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Maximum delay of a reconnect: a peer that is back takes calls within it.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Time without a call after which an unreachable peer isn't dialled any more.
const INTEREST_MAX: Duration = Duration::from_secs(60);

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkKind {
    Requests = 0,
    Bulk = 1,
}

const KINDS: [LinkKind; 2] = [LinkKind::Requests, LinkKind::Bulk];

/// Why there is no stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unavailable {
    /// The peer is unreachable.
    Down,
    /// All streams of all connections are in use.
    Full,
}

#[derive(Default)]
struct Links {
    open: [Vec<Link>; 2],
    wanted: [bool; 2],
    dialing: bool,
    /// The last attempt failed, or the last connection died: calls don't wait.
    down: bool,
    /// When the last call wanted a connection, on the process's clock.
    wanted_at: Duration,
}

/// A peer with its connections. Dropping it cuts them.
pub(super) struct Peer {
    pub(super) name: Arc<str>,
    pub(super) address: SocketAddr,
    env: Env,
    tls: ClientTls,
    metrics: TunnelMetrics,
    links: Arc<Mutex<Links>>,
    changed: Arc<Notify>,
    /// For lines about failures, by kind: the peer can cause them as often as it is dialled.
    failure_log: Arc<LogLimit<&'static str>>,
    cut: CancellationToken,
    _cut_when_dropped: DropGuard,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("name", &self.name).field("address", &self.address).finish_non_exhaustive()
    }
}

/// A stream's place on a connection.
pub(super) struct Lease {
    pub(super) requests: SendRequest<Bytes>,
    pub(super) link: Arc<LinkState>,
    permit: Option<OwnedSemaphorePermit>,
    changed: Arc<Notify>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.permit = None;
        self.changed.notify_waiters();
    }
}

fn lock(links: &Mutex<Links>) -> MutexGuard<'_, Links> {
    links.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peer {
    pub(super) fn new(
        env: &Env,
        (name, address): (Arc<str>, SocketAddr),
        tls: ClientTls,
        metrics: &TunnelMetrics,
    ) -> Self {
        let cut = CancellationToken::new();
        Self {
            name,
            address,
            env: env.clone(),
            tls,
            metrics: metrics.clone(),
            links: Arc::default(),
            changed: Arc::default(),
            failure_log: Arc::default(),
            _cut_when_dropped: cut.clone().drop_guard(),
            cut,
        }
    }

    /// A place for a stream. Waits at most 3 s, and not at all for a peer that is known to be unreachable.
    pub(super) async fn lease(self: &Arc<Self>, kind: LinkKind) -> Result<Lease, Unavailable> {
        let until = self.env.deadline(WAIT_MAX);
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Registered before the state is read, so that no change is missed.
            changed.as_mut().enable();
            if let Some(result) = self.try_lease(kind) {
                return result;
            }
            if self.env.timeout_at(until, changed).await.is_err() {
                let links = lock(&self.links);
                return Err(if links.open[kind as usize].is_empty() { Unavailable::Down } else { Unavailable::Full });
            }
        }
    }

    /// A place if there is one, or the reason why none will come; `None` to wait. Starts a dial where it helps.
    fn try_lease(self: &Arc<Self>, kind: LinkKind) -> Option<Result<Lease, Unavailable>> {
        let mut links = lock(&self.links);
        links.wanted_at = self.env.elapsed();
        let open = &mut links.open[kind as usize];
        open.retain(|link| !link.state.is_retired());
        // The fullest connection with a free stream: others can become idle.
        let free = open.iter().filter(|link| link.streams.available_permits() > 0);
        if let Some(link) = free.min_by_key(|link| link.streams.available_permits())
            && let Ok(permit) = link.streams.clone().try_acquire_owned()
        {
            let (requests, state) = (link.requests.clone(), link.state.clone());
            return Some(Ok(Lease { requests, link: state, permit: Some(permit), changed: self.changed.clone() }));
        }
        let count = open.len();
        if count < LINKS_MAX {
            links.wanted[kind as usize] = true;
            if !std::mem::replace(&mut links.dialing, true) {
                tokio::spawn(Dialer::of(self).run());
            }
            if links.down && count == 0 {
                return Some(Err(Unavailable::Down));
            }
        }
        None
    }

    /// Whether calls would get no connection now.
    #[cfg(test)]
    pub(super) fn is_down(&self) -> bool {
        lock(&self.links).down
    }

    #[cfg(test)]
    pub(super) fn open_links(&self, kind: LinkKind) -> usize {
        lock(&self.links).open[kind as usize].len()
    }
}

/// The task that makes a peer's connections. It holds no peer: it ends when that is dropped.
#[derive(Clone)]
struct Dialer {
    name: Arc<str>,
    address: SocketAddr,
    env: Env,
    tls: ClientTls,
    metrics: TunnelMetrics,
    links: Arc<Mutex<Links>>,
    changed: Arc<Notify>,
    failure_log: Arc<LogLimit<&'static str>>,
    cut: CancellationToken,
}

impl Dialer {
    fn of(peer: &Peer) -> Self {
        Self {
            name: peer.name.clone(),
            address: peer.address,
            env: peer.env.clone(),
            tls: peer.tls.clone(),
            metrics: peer.metrics.clone(),
            links: peer.links.clone(),
            changed: peer.changed.clone(),
            failure_log: peer.failure_log.clone(),
            cut: peer.cut.clone(),
        }
    }

    /// Dials until nothing more is wanted.
    async fn run(self) {
        let cut = self.cut.clone();
        cut.run_until_cancelled_owned(self.dial_wanted()).await;
    }

    async fn dial_wanted(self) {
        let mut delay = RETRY_MIN;
        while let Some(kind) = self.next_wanted() {
            match connect(&self.env, self.address, &self.tls, &self.metrics).await {
                Ok((link, driver)) => {
                    delay = RETRY_MIN;
                    let mut links = lock(&self.links);
                    if std::mem::take(&mut links.down) {
                        tracing::info!(node = %self.name, "the node is reachable again");
                    }
                    links.wanted[kind as usize] = false;
                    links.open[kind as usize].push(link);
                    drop(links);
                    let (watched, cut) = (self.clone(), self.cut.clone());
                    tokio::spawn(async move {
                        let end = driver.run(&cut).await;
                        watched.link_ended(end);
                    });
                }
                Err(failure) => {
                    self.metrics.dial_failed(failure.outcome());
                    if !std::mem::replace(&mut lock(&self.links).down, true)
                        && let Some(left_out) = self.failure_log.admit(&"dial", self.env.elapsed())
                    {
                        tracing::warn!(left_out, node = %self.name, address = %self.address, error = %failure, "the node is unreachable; its pods get no calls");
                    }
                    self.changed.notify_waiters();
                    let half = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX) / 2;
                    self.env.sleep(Duration::from_millis(half + self.env.below(half + 1))).await;
                    delay = RETRY_MAX.min(delay * 2);
                }
            }
            self.changed.notify_waiters();
        }
    }

    /// The next kind of connection to dial; `None` ends the dialling.
    fn next_wanted(&self) -> Option<LinkKind> {
        let mut links = lock(&self.links);
        if self.env.elapsed().saturating_sub(links.wanted_at) > INTEREST_MAX {
            links.wanted = [false; 2];
        }
        let next = KINDS.into_iter().find(|kind| links.wanted[*kind as usize]);
        if next.is_none() {
            links.dialing = false;
            // Not known to be unreachable any more: the next call tries.
            links.down = false;
        }
        next
    }

    /// Forgets ended connections. After the death of the last one the peer is down, and is dialled again.
    fn link_ended(self, end: LinkEnd) {
        let mut links = lock(&self.links);
        for open in &mut links.open {
            open.retain(|link| !link.state.is_retired());
        }
        let outcome = match end {
            LinkEnd::Closed => None,
            LinkEnd::Broken => Some("broken"),
            LinkEnd::Dead => Some("dead"),
        };
        if let Some(outcome) = outcome {
            self.metrics.dial_failed(outcome);
            if let Some(left_out) = self.failure_log.admit(&outcome, self.env.elapsed()) {
                tracing::warn!(node = %self.name, outcome, left_out, "a connection to a node ended");
            }
            if links.open.iter().all(Vec::is_empty) {
                links.down = true;
                links.wanted[LinkKind::Requests as usize] = true;
                if !std::mem::replace(&mut links.dialing, true) {
                    let again = self.clone();
                    tokio::spawn(again.run());
                }
            }
        }
        drop(links);
        self.changed.notify_waiters();
    }
}
