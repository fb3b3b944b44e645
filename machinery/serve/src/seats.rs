//! The connection limit of a server or of several listeners, with shares: a full pool makes way for a newcomer from a
//! client or to a Service with fewer connections, so that no client locks another one out.
//!
//! A connection *waits* while no request of it runs (or while its peer is unauthenticated, where a server authenticates
//! connections). A newcomer to a full pool displaces
//!
//! 1. the longest waiting connections of the client with the most waiting ones, in the group with the most waiting ones;
//! 2. without a waiting connection: the oldest connection of the largest client of the largest group, if the newcomer's
//!    group has less than half as many, or of its own group's largest client, if the newcomer's client has less than half
//!    as many there.
//!
//! Otherwise the newcomer is rejected. The decision is pure: [`SeatTable`].

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The part of a client's waiting connections that is displaced at once: a flood of newcomers then searches the pool once
/// for many of them.
const DISPLACED_PART: usize = 32;
/// A newcomer displaces a connection in use only if its client or group has at most this part of the largest one's.
const SMALLER_PART: usize = 2;

/// The client of a connection, as far as shares are concerned: an IPv4 address, an IPv6 network of 64 bits (which one host
/// can use as a whole), or this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client(IpAddr);

impl From<IpAddr> for Client {
    fn from(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            ip if ip.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            ip => ip,
        })
    }
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a connection is counted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeatHolder {
    /// The Service, pod or server that it calls.
    pub group: Arc<str>,
    /// The client.
    pub client: Client,
}

/// The seats of a pool.
#[derive(Debug)]
pub struct Seats {
    free: Arc<Semaphore>,
    table: Mutex<SeatTable>,
    /// Numbers the ends of requests: a lower number waits for longer.
    turns: AtomicU64,
}

impl Seats {
    /// A pool of `max` seats.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { free, table: Mutex::default(), turns: AtomicU64::new(0) })
    }

    /// Takes a seat for a waiting connection; `None` if the pool is full and has no connection to displace.
    pub async fn take(self: &Arc<Self>, holder: SeatHolder) -> Option<Seat> {
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let displaced = self.lock().displace(&holder);
                if displaced.is_empty() {
                    return None;
                }
                for state in displaced {
                    state.displaced.cancel();
                }
                self.free.clone().acquire_owned().await.ok()?
            }
        };
        let state = Arc::new(SeatState { turn: AtomicU64::new(self.next_turn()), ..SeatState::default() });
        let number = self.lock().add(&holder, state.clone());
        Some(Seat { number, holder, state, seats: self.clone(), _permit: permit })
    }

    fn next_turn(&self) -> u64 {
        self.turns.fetch_add(1, Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, SeatTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of one connection.
#[derive(Debug, Default)]
struct SeatState {
    /// Running requests; an authenticated connection always has one.
    running: AtomicUsize,
    /// The number of the last request's end, or of the connection's start.
    turn: AtomicU64,
    authenticated: AtomicBool,
    /// Whether the connection was upgraded to a session that outlives its server ...
    handed_over: AtomicBool,
    /// ... and which ends when it is displaced.
    watched: AtomicBool,
    displaced: CancellationToken,
}

impl SeatState {
    fn is_waiting(&self) -> bool {
        self.running.load(Ordering::Relaxed) == 0
    }

    fn can_be_displaced(&self) -> bool {
        !self.handed_over.load(Ordering::Acquire) || self.watched.load(Ordering::Acquire)
    }
}

/// A connection's seat, released on drop.
#[derive(Debug)]
pub struct Seat {
    number: u64,
    holder: SeatHolder,
    state: Arc<SeatState>,
    seats: Arc<Seats>,
    _permit: OwnedSemaphorePermit,
}

impl Seat {
    /// Begins a request; [`Seat::end`] ends it.
    pub fn begin(&self) {
        self.state.running.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends a request: without another one the connection waits.
    pub fn end(&self) {
        self.state.turn.store(self.seats.next_turn(), Ordering::Relaxed);
        self.state.running.fetch_sub(1, Ordering::Relaxed);
    }

    /// Marks the peer as authenticated: the connection is in use from now on.
    pub fn mark_authenticated(&self) {
        if !self.state.authenticated.swap(true, Ordering::Relaxed) {
            self.begin();
        }
    }

    /// Marks the connection as upgraded: it isn't displaced any more, unless its session waits for [`Seat::displaced`].
    pub fn mark_handed_over(&self) {
        self.state.handed_over.store(true, Ordering::Release);
    }

    /// Resolves when the seat is lost: drop the connection then.
    pub async fn displaced(&self) {
        self.state.displaced.cancelled().await;
    }

    /// As [`Seat::displaced`], for an upgraded connection.
    pub async fn displaced_after_upgrade(&self) {
        self.state.watched.store(true, Ordering::Release);
        self.displaced().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().remove(&self.holder, self.number);
    }
}

/// The taken seats by group and client; displaced ones are removed at once.
#[derive(Debug, Default)]
struct SeatTable {
    next: u64,
    groups: HashMap<Arc<str>, GroupSeats>,
}

#[derive(Debug, Default)]
struct GroupSeats {
    count: usize,
    /// By number: the oldest first.
    clients: HashMap<Client, BTreeMap<u64, Arc<SeatState>>>,
}

impl GroupSeats {
    fn waiting(&self) -> usize {
        self.clients.values().map(waiting).sum()
    }
}

fn waiting(seats: &BTreeMap<u64, Arc<SeatState>>) -> usize {
    seats.values().filter(|seat| seat.is_waiting() && seat.can_be_displaced()).count()
}

impl SeatTable {
    fn add(&mut self, holder: &SeatHolder, state: Arc<SeatState>) -> u64 {
        let number = self.next;
        self.next += 1;
        let group = self.groups.entry(holder.group.clone()).or_default();
        group.count += 1;
        group.clients.entry(holder.client).or_default().insert(number, state);
        number
    }

    fn remove(&mut self, holder: &SeatHolder, number: u64) -> Option<Arc<SeatState>> {
        let group = self.groups.get_mut(&holder.group)?;
        let seats = group.clients.get_mut(&holder.client)?;
        let state = seats.remove(&number)?;
        group.count -= 1;
        if seats.is_empty() {
            group.clients.remove(&holder.client);
        }
        if group.count == 0 {
            self.groups.remove(&holder.group);
        }
        Some(state)
    }

    /// Removes the connections that make way for one of `newcomer`; none if it is to be rejected.
    fn displace(&mut self, newcomer: &SeatHolder) -> Vec<Arc<SeatState>> {
        let mut victims = self.waiting_victims();
        if victims.is_empty() {
            victims.extend(self.victim_in_use(newcomer));
        }
        victims.into_iter().filter_map(|(holder, number)| self.remove(&holder, number)).collect()
    }

    fn waiting_victims(&self) -> Vec<(SeatHolder, u64)> {
        let by_waiting = self.groups.iter().map(|(name, group)| (group.waiting(), name, group));
        // By name and address among equals: the order of a hash map doesn't decide.
        let Some((_, name, group)) = by_waiting.max_by_key(|(count, name, _)| (*count, *name)) else {
            return Vec::new();
        };
        let clients = group.clients.iter().map(|(client, seats)| (waiting(seats), client, seats));
        let Some((count, client, seats)) = clients.max_by_key(|(count, client, _)| (*count, *client)) else {
            return Vec::new();
        };
        if count == 0 {
            return Vec::new();
        }
        let candidates = seats.iter().filter(|(_, seat)| seat.is_waiting() && seat.can_be_displaced());
        let mut by_turn: Vec<(u64, u64)> =
            candidates.map(|(number, seat)| (seat.turn.load(Ordering::Relaxed), *number)).collect();
        by_turn.sort_unstable();
        let holder = SeatHolder { group: name.clone(), client: *client };
        by_turn.into_iter().take(count.div_ceil(DISPLACED_PART)).map(|(_, number)| (holder.clone(), number)).collect()
    }

    fn victim_in_use(&self, newcomer: &SeatHolder) -> Option<(SeatHolder, u64)> {
        let is_smaller = |own: usize, largest: usize| own < largest / SMALLER_PART;
        let (largest_name, largest) = self.groups.iter().max_by_key(|(name, group)| (group.count, *name))?;
        let own = self.groups.get(&newcomer.group);
        let (name, group) = if is_smaller(own.map_or(0, |group| group.count), largest.count) {
            (largest_name, largest)
        } else {
            let own = own?;
            let own_client = own.clients.get(&newcomer.client).map_or(0, BTreeMap::len);
            let largest_client = own.clients.values().map(BTreeMap::len).max().unwrap_or(0);
            if !is_smaller(own_client, largest_client) {
                return None;
            }
            (&newcomer.group, own)
        };
        let gives_way = |seats: &BTreeMap<u64, Arc<SeatState>>| seats.values().any(|seat| seat.can_be_displaced());
        let clients = group.clients.iter().filter(|(_, seats)| gives_way(seats));
        let (client, seats) = clients.max_by_key(|(client, seats)| (seats.len(), **client))?;
        let (number, _) = seats.iter().find(|(_, seat)| seat.can_be_displaced())?;
        Some((SeatHolder { group: name.clone(), client: *client }, *number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(group: &str, client: &str) -> SeatHolder {
        SeatHolder { group: group.into(), client: Client::from(client.parse::<IpAddr>().unwrap()) }
    }

    /// Polls once.
    fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    fn take(seats: &Arc<Seats>, group: &str, client: &str) -> Option<Seat> {
        poll_once(std::pin::pin!(seats.take(holder(group, client)))).expect("no wait")
    }

    fn is_displaced(seat: &Seat) -> bool {
        seat.state.displaced.is_cancelled()
    }

    /// Fills a pool with connections of one client to one group; `in_use`: each with a request.
    fn flood(seats: &Arc<Seats>, group: &str, client: &str, count: usize, in_use: bool) -> Vec<Seat> {
        (0..count)
            .map(|_| {
                let seat = take(seats, group, client).unwrap();
                if in_use {
                    seat.begin();
                }
                seat
            })
            .collect()
    }

    /// A newcomer that has to wait for a displaced connection: returns whether it gets that one's seat.
    fn comes_in(seats: &Arc<Seats>, group: &str, client: &str, held: &mut Vec<Seat>) -> Option<Seat> {
        let mut next = std::pin::pin!(seats.take(holder(group, client)));
        if let Some(done) = poll_once(next.as_mut()) {
            return done;
        }
        held.retain(|seat| !is_displaced(seat));
        poll_once(next).expect("a displaced connection made way")
    }

    #[test]
    fn a_flood_of_one_client_makes_way_for_others() {
        for in_use in [false, true] {
            for (group, client) in [("a", "192.0.2.9"), ("b", "192.0.2.9"), ("b", "192.0.2.1")] {
                let seats = Seats::new(100);
                let other = take(&seats, "c", "192.0.2.5").unwrap();
                other.begin();
                let mut held = flood(&seats, "a", "192.0.2.1", 99, in_use);
                let seat = comes_in(&seats, group, client, &mut held);
                assert!(seat.is_some() && !is_displaced(&other), "{in_use} {group} {client}");
                assert!(held.len() >= 95, "{}", held.len());
            }
        }
    }

    #[test]
    fn a_flood_of_many_clients_at_one_service_leaves_the_other_services() {
        let seats = Seats::new(200);
        let mut held: Vec<Seat> = (0..200).map(|n| take(&seats, "a", &format!("192.0.2.{n}")).unwrap()).collect();
        held.iter().for_each(Seat::begin);
        let other = comes_in(&seats, "b", "127.0.0.1", &mut held);
        assert!(other.is_some() && held.len() == 199);
        other.iter().for_each(Seat::begin);
        assert!(comes_in(&seats, "a", "198.51.100.1", &mut held).is_none(), "each client of the Service has one");
    }

    #[test]
    fn connections_in_use_keep_their_seats_against_their_own_client() {
        let seats = Seats::new(4);
        let mut held = flood(&seats, "a", "192.0.2.1", 4, true);
        assert!(comes_in(&seats, "a", "192.0.2.1", &mut held).is_none());
        held[2].end();
        let seat = comes_in(&seats, "a", "192.0.2.1", &mut held).unwrap();
        assert_eq!(held.iter().map(|seat| seat.number).collect::<Vec<_>>(), [0, 1, 3], "the waiting one made way");
        drop(seat);
    }

    #[test]
    fn the_longest_waiting_connection_is_displaced_first() {
        let seats = Seats::new(3);
        let mut held = flood(&seats, "a", "192.0.2.1", 3, false);
        held[0].begin();
        held[0].end();
        comes_in(&seats, "a", "192.0.2.1", &mut held).unwrap();
        assert_eq!(held.iter().map(|seat| seat.number).collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn authenticated_connections_are_in_use_and_sessions_stay() {
        let seats = Seats::new(4);
        let mut held = flood(&seats, "api", "192.0.2.1", 4, false);
        held[0].mark_authenticated();
        held[0].mark_authenticated();
        held[0].end();
        assert!(held[0].state.is_waiting(), "marked once");
        held[0].begin();
        held.iter().for_each(Seat::mark_authenticated);
        held[0].mark_handed_over();
        assert!(comes_in(&seats, "api", "192.0.2.1", &mut held).is_none(), "all are authenticated");
        let seat = comes_in(&seats, "api", "192.0.2.2", &mut held).unwrap();
        assert_eq!(held.iter().map(|seat| seat.number).collect::<Vec<_>>(), [0, 2, 3], "the session stays");
        drop((seat, held));
        let seats = Seats::new(1);
        let session = take(&seats, "api", "192.0.2.1").unwrap();
        session.mark_handed_over();
        assert!(take(&seats, "api", "192.0.2.2").is_none());
        assert!(poll_once(std::pin::pin!(session.displaced_after_upgrade())).is_none());
        assert!(comes_in(&seats, "api", "192.0.2.2", &mut vec![session]).is_some());
    }

    #[test]
    fn a_search_displaces_several_of_a_large_client() {
        let seats = Seats::new(1000);
        let mut held = flood(&seats, "a", "192.0.2.1", 1000, false);
        assert!(comes_in(&seats, "a", "192.0.2.1", &mut held).is_some());
        assert_eq!(held.len(), 1000 - 1000_usize.div_ceil(DISPLACED_PART));
        drop(held);
        assert!(seats.lock().groups.is_empty(), "no row is left behind");
    }

    #[test]
    fn one_host_is_one_client() {
        let client = |ip: &str| Client::from(ip.parse::<IpAddr>().unwrap());
        assert_eq!(client("127.0.0.1"), client("127.200.3.4"));
        assert_eq!(client("127.0.0.1"), client("::1"));
        assert_eq!(client("192.0.2.1"), client("::ffff:192.0.2.1"));
        assert_eq!(client("2001:db8::1"), client("2001:db8:0:0:ffff::2"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
    }

    proptest::proptest! {
        /// Whatever the others hold, a client and a Service without a connection come in.
        #[test]
        fn a_newcomer_to_an_unused_service_is_never_rejected(
            taken in proptest::collection::vec((0_u8..4, 1_u8..20, proptest::bool::ANY), 8..64)
        ) {
            let seats = Seats::new(taken.len());
            let mut held: Vec<Seat> = Vec::new();
            for (group, client, in_use) in taken {
                let seat = take(&seats, &group.to_string(), &format!("192.0.2.{client}")).unwrap();
                if in_use {
                    seat.begin();
                }
                held.push(seat);
            }
            let largest = seats.lock().groups.values().map(|group| group.count).max().unwrap();
            proptest::prop_assert!(largest >= SMALLER_PART);
            proptest::prop_assert!(comes_in(&seats, "new", "198.51.100.1", &mut held).is_some());
        }
    }
}
