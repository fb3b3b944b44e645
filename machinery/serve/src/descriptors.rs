//! Quotas of the process's file descriptors by class, so that no flood of one kind exhausts those of the store.
//!
//! The system has one limit for a process. At that limit any open fails, possibly the store's next segment, which ends
//! the process. So each use has a [`Class`] with a share of its own; uses that must not fail (store, logs, images,
//! volumes, the runtimes) have a reserve outside all of them.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::seats::Seats;

/// Minimum reserve outside all shares: an idle process of one node holds some 30; the rest is for the store's segments,
/// pulls, compilers' pipes and volume writes.
const RESERVE_MIN: usize = 128;
/// The reserve as a part of larger limits: one in eight.
const RESERVE_PART: usize = 8;
/// Assumed limit if the system's can't be read.
const LIMIT_UNKNOWN: usize = 8192;
/// Requested limit if the system has no hard limit, or rejects it (macOS): its `OPEN_MAX`.
#[cfg(unix)]
const LIMIT_FALLBACK: u64 = 10_240;
/// Below this limit a cluster works, but with fewer connections and files than its other limits allow.
const AMPLE: usize = 16_384;

/// The part of [`Class::Backends`] for connections that host processes keep open to endpoints outside this process: half
/// is for UDP flows, and guests' requests have the rest.
const SPLICED_PART: usize = 3;

/// The use of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Connections to the API server.
    Api,
    /// Connections of host processes to Services and pods. Each costs some 200 KiB at worst (a buffer in each direction
    /// and a task).
    Clients,
    /// Connections to the outside, and to the API server on behalf of guests.
    Outbound,
    /// Connections to endpoints of Services outside this process.
    Backends,
    /// Listeners of Services and pods.
    Listeners,
    /// Connections to kubelets and the registry.
    Node,
    /// Log files being read.
    Logs,
    /// Files and folders opened by guests.
    Guests,
}

/// Every class with its part of the limit in percent (of what the reserve leaves) and the most that it ever takes.
const SHARES: [(Class, usize, usize); 8] = [
    (Class::Api, 25, 8192),
    (Class::Clients, 20, 8192),
    (Class::Outbound, 5, 4096),
    (Class::Backends, 5, 8192),
    (Class::Listeners, 15, 65_536),
    (Class::Node, 5, 4096),
    (Class::Logs, 5, 4096),
    (Class::Guests, 20, 65_536),
];

/// A counting limit below a parent's limit. It can be changed while in use.
#[derive(Debug)]
pub struct Quota {
    max: AtomicUsize,
    used: AtomicUsize,
    parent: Option<Arc<Quota>>,
}

impl Quota {
    /// At most `max`, and no more than `parent` has left.
    #[must_use]
    pub fn new(max: usize, parent: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self { max: AtomicUsize::new(max), used: AtomicUsize::new(0), parent })
    }

    /// Takes one until the guard is dropped; `None` if this quota or an ancestor is exhausted.
    #[must_use]
    pub fn take(self: &Arc<Self>) -> Option<DescriptorPermit> {
        self.charge().then(|| DescriptorPermit(self.clone()))
    }

    /// Changes the limit. Held units above it stay held.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// The limit.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// The number of held units.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn charge(&self) -> bool {
        let max = self.max();
        let more = |used: usize| (used < max).then_some(used + 1);
        if self.used.try_update(Ordering::AcqRel, Ordering::Acquire, more).is_err() {
            return false;
        }
        let whole = self.parent.as_ref().is_none_or(|parent| parent.charge());
        if !whole {
            self.used.fetch_sub(1, Ordering::AcqRel);
        }
        whole
    }

    fn give(&self) {
        self.used.fetch_sub(1, Ordering::AcqRel);
        if let Some(parent) = &self.parent {
            parent.give();
        }
    }
}

/// One unit of a [`Quota`], released on drop.
#[derive(Debug)]
pub struct DescriptorPermit(Arc<Quota>);

impl Drop for DescriptorPermit {
    fn drop(&mut self) {
        self.0.give();
    }
}

/// The quotas of one process.
#[derive(Debug)]
pub struct Descriptors {
    limit: usize,
    quotas: [Arc<Quota>; SHARES.len()],
    api: Arc<Seats>,
    node: Arc<Seats>,
    clients: Arc<Seats>,
    spliced: Arc<Seats>,
}

impl Descriptors {
    /// Divides `limit` descriptors.
    #[must_use]
    pub fn of(limit: usize) -> Self {
        let left = limit.saturating_sub(RESERVE_MIN.max(limit / RESERVE_PART));
        let quotas = SHARES.map(|(_, percent, most)| {
            // At least two: a limit that is far too low makes things slow, not impossible.
            Quota::new((left / 100 * percent + left % 100 * percent / 100).clamp(2, most), None)
        });
        let seats = |class: Class| Seats::new(quotas[class as usize].max());
        let spliced = Seats::new((quotas[Class::Backends as usize].max() / SPLICED_PART).max(1));
        let [api, node, clients] = [Class::Api, Class::Node, Class::Clients].map(seats);
        Self { limit, api, node, clients, spliced, quotas }
    }

    /// The quotas of this process, from the limit at the first call: see [`raise_limit`].
    #[must_use]
    pub fn process() -> &'static Self {
        // The limit belongs to the operating system's process, whatever is composed in it.
        static PROCESS: OnceLock<Descriptors> = OnceLock::new();
        PROCESS.get_or_init(|| Self::of(limit()))
    }

    /// A class's quota.
    #[must_use]
    pub fn quota(&self, class: Class) -> &Arc<Quota> {
        &self.quotas[class as usize]
    }

    /// The limit of a class.
    #[must_use]
    pub fn max(&self, class: Class) -> usize {
        self.quota(class).max()
    }

    /// Takes one, or returns the error that the system gives at the process's limit.
    ///
    /// # Errors
    /// If the class's share is exhausted.
    pub fn take(&self, class: Class) -> io::Result<DescriptorPermit> {
        self.quota(class).take().ok_or_else(exhausted)
    }

    /// Seats for connections to the API server.
    #[must_use]
    pub fn api_seats(&self) -> &Arc<Seats> {
        &self.api
    }

    /// Seats for connections of host processes to Services and pods. Their pools and those of the servers below have a
    /// descriptor for each seat, so that a seat is all that a connection takes.
    #[must_use]
    pub fn client_seats(&self) -> &Arc<Seats> {
        &self.clients
    }

    /// Seats for those of them whose bytes are passed on to an endpoint outside this process; each takes a descriptor of
    /// [`Class::Backends`] in addition.
    #[must_use]
    pub fn spliced_seats(&self) -> &Arc<Seats> {
        &self.spliced
    }

    /// Seats for connections to all kubelets, tunnels and the registry of this process.
    #[must_use]
    pub fn node_seats(&self) -> &Arc<Seats> {
        &self.node
    }

    /// A warning for the operator if the limit is low; `None` if it is ample.
    #[must_use]
    pub fn shortage(&self) -> Option<String> {
        (self.limit < AMPLE).then(|| {
            format!(
                "this process may open {} files, which allows {} connections to the API server, {} of the host's \
                 programs to Services, {} listeners of Services and {} open files of guests at once: raise the hard \
                 limit for more (ulimit -Hn, LimitNOFILE=)",
                self.limit,
                self.max(Class::Api),
                self.max(Class::Clients),
                self.max(Class::Listeners),
                self.max(Class::Guests),
            )
        })
    }
}

/// The system's error for an exhausted limit.
fn exhausted() -> io::Error {
    #[cfg(unix)]
    return rustix::io::Errno::MFILE.into();
    #[cfg(not(unix))]
    io::Error::other("too many open files")
}

/// Raises the soft limit of descriptors to the hard one. Call it before [`Descriptors::process`].
#[cfg(unix)]
pub fn raise_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = [maximum, Some(maximum.map_or(LIMIT_FALLBACK, |maximum| maximum.min(LIMIT_FALLBACK)))];
    for wanted in wanted.into_iter().flatten() {
        if current.is_none_or(|current| current >= wanted)
            || setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).is_ok()
        {
            return;
        }
    }
    tracing::warn!("the limit of open files cannot be raised");
}

/// No-op on systems without such a limit.
#[cfg(not(unix))]
pub fn raise_limit() {}

#[cfg(unix)]
fn limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(LIMIT_UNKNOWN, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

#[cfg(not(unix))]
fn limit() -> usize {
    LIMIT_UNKNOWN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_leave_the_reserve_at_any_limit() {
        for limit in [256, 1024, 4096, 20_000, 1 << 20, usize::MAX] {
            let all = Descriptors::of(limit);
            let shared: usize = SHARES.iter().map(|(class, ..)| all.max(*class)).sum();
            assert!(shared <= limit - RESERVE_MIN, "{limit}: {shared}");
            assert_eq!(all.shortage().is_some(), limit < AMPLE);
        }
        let low = Descriptors::of(64);
        assert!(SHARES.iter().all(|(class, ..)| low.max(*class) == 2), "slow and not impossible");
    }

    #[test]
    fn the_table_is_in_the_order_of_the_classes() {
        assert!(SHARES.iter().enumerate().all(|(index, (class, ..))| *class as usize == index));
    }

    #[test]
    fn a_rejection_charges_nothing_and_a_bound_can_change() {
        let parent = Quota::new(3, None);
        let (a, b) = (Quota::new(2, Some(parent.clone())), Quota::new(9, Some(parent.clone())));
        let held: Vec<_> = (0..3).map_while(|_| a.take()).collect();
        assert_eq!((held.len(), a.used(), parent.used()), (2, 2, 2));
        let _one = b.take().unwrap();
        assert!(b.take().is_none(), "the parent is used up");
        assert_eq!((b.used(), parent.used()), (1, 3));
        a.set_max(0);
        drop(held);
        assert!(a.take().is_none());
        assert_eq!((a.used(), parent.used()), (0, 1));
        let all = Descriptors::of(1024);
        let held: Vec<_> = (0..).map_while(|_| all.take(Class::Node).ok()).collect();
        assert_eq!(held.len(), all.max(Class::Node));
        let error = all.take(Class::Node).unwrap_err();
        assert!(error.to_string().to_lowercase().contains("too many open files"), "{error}");
    }
}
