//! The ledger: accounts host resources of guests at three levels (container, pod, node), each with a limit per resource
//! that may change at run time. An amount is charged at every level or at none.
//!
//! The caller decides the effect of a rejection: a growth of memory traps, an `open` fails in the guest, a request
//! waits. Waiting is woken by a release or a raised limit, and costs nothing without waiters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// A host resource used by guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Bytes of linear memories, tables, and host memory of a guest.
    Memory,
    /// Open files, folders and sockets of the process.
    Descriptors,
    /// Threads blocked by a guest's file operations.
    BlockingThreads,
    /// Outgoing requests and connections.
    Connections,
    /// Open sockets of guests: listeners, UDP sockets, and connections, also those that wait to be accepted.
    Sockets,
    /// Bound ports of guests.
    Listeners,
    /// Datagrams that wait for a guest or for a flow to open.
    Datagrams,
    /// Bytes of logs on the disk.
    LogBytes,
    /// Bytes of writable volumes on the disk.
    DiskBytes,
}

impl Resource {
    /// All resources, in the order of a ledger's rows.
    pub const ALL: [Self; 9] = [
        Self::Memory,
        Self::Descriptors,
        Self::BlockingThreads,
        Self::Connections,
        Self::Sockets,
        Self::Listeners,
        Self::Datagrams,
        Self::LogBytes,
        Self::DiskBytes,
    ];

    /// The value of the label `resource` of metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Descriptors => "descriptors",
            Self::BlockingThreads => "blocking_threads",
            Self::Connections => "connections",
            Self::Sockets => "sockets",
            Self::Listeners => "listeners",
            Self::Datagrams => "datagrams",
            Self::LogBytes => "log_bytes",
            Self::DiskBytes => "disk_bytes",
        }
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Memory => ("memory", "bytes"),
            Self::Descriptors => ("file descriptors", "descriptors"),
            Self::BlockingThreads => ("threads for file operations", "threads"),
            Self::Connections => ("connections", "connections"),
            Self::Sockets => ("sockets", "sockets"),
            Self::Listeners => ("ports", "ports"),
            Self::Datagrams => ("queued datagrams", "datagrams"),
            Self::LogBytes => ("log space", "bytes"),
            Self::DiskBytes => ("disk space", "bytes"),
        }
    }
}

/// The level of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// All guests of the process.
    Node,
    /// All containers of a pod.
    Pod,
    /// One container.
    Container,
}

/// A rejection because of a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "out of {}: {wanted} {unit} more than the {used} in use exceed the {} of {limit} {unit}",
    .resource.words().0,
    match .level { Level::Node => "node's limit", Level::Pod => "pod's limit", Level::Container => "limit" },
    unit = .resource.words().1
)]
pub struct Exceeded {
    /// The resource.
    pub resource: Resource,
    /// The level of the limit.
    pub level: Level,
    /// The requested amount.
    pub wanted: u64,
    /// The amount in use at that level.
    pub used: u64,
    /// The limit.
    pub limit: u64,
}

/// Use of a resource at one level, and the rejections of those who asked there, by whose limit rejected them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResourceUse {
    /// The charged amount.
    pub used: u64,
    /// Rejections by the node's limit.
    pub rejected_by_node: u64,
    /// Rejections by the pod's limit.
    pub rejected_by_pod: u64,
    /// Rejections by the container's limit.
    pub rejected_by_container: u64,
    /// Rejections by a bound of one socket: its backlog, its queue.
    pub rejected_by_socket: u64,
}

/// Counters of [`ResourceUse`].
#[derive(Debug, Default)]
struct Rejections {
    node: AtomicU64,
    pod: AtomicU64,
    container: AtomicU64,
    socket: AtomicU64,
}

impl Rejections {
    fn count(&self, level: Level) {
        let counter = match level {
            Level::Node => &self.node,
            Level::Pod => &self.pod,
            Level::Container => &self.container,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct LedgerRow {
    limit: AtomicU64,
    used: AtomicU64,
    peak: AtomicU64,
    waiting: AtomicUsize,
    rejections: Rejections,
}

impl LedgerRow {
    fn new() -> Self {
        Self {
            limit: AtomicU64::new(u64::MAX),
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            rejections: Rejections::default(),
        }
    }

    /// Never exceeds the limit, not even temporarily: a rejected large amount must not cause others to be rejected.
    fn take(&self, amount: u64) -> Result<(), (u64, u64)> {
        let limit = self.limit.load(Ordering::Acquire);
        let add = |used: u64| used.checked_add(amount).filter(|after| *after <= limit);
        match self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, add) {
            Ok(before) => {
                self.peak.fetch_max(before + amount, Ordering::Relaxed);
                Ok(())
            }
            Err(used) => Err((used, limit)),
        }
    }

    fn give(&self, amount: u64) {
        self.used.fetch_sub(amount, Ordering::SeqCst);
    }
}

/// Accounts of one container, one pod or the node.
#[derive(Debug)]
pub struct Ledger {
    level: Level,
    rows: [LedgerRow; Resource::ALL.len()],
    /// Notified when a resource with waiters is released. One for all rows: there are two ledgers per pod, most of them never
    /// with a waiter, and a waiter checks again.
    freed: Notify,
    parent: Option<Arc<Ledger>>,
}

impl Ledger {
    /// The root: the process's ledger.
    #[must_use]
    pub fn node() -> Arc<Self> {
        Self::new(Level::Node, None)
    }

    /// A pod's ledger, below the node's.
    #[must_use]
    pub fn pod(node: &Arc<Self>) -> Arc<Self> {
        Self::new(Level::Pod, Some(node.clone()))
    }

    /// A container's ledger, below its pod's.
    #[must_use]
    pub fn container(pod: &Arc<Self>) -> Arc<Self> {
        Self::new(Level::Container, Some(pod.clone()))
    }

    fn new(level: Level, parent: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self { level, rows: std::array::from_fn(|_| LedgerRow::new()), freed: Notify::new(), parent })
    }

    fn row(&self, resource: Resource) -> &LedgerRow {
        &self.rows[resource as usize]
    }

    /// Charges `amount` at this level and at all above, or nothing at all.
    pub fn take(&self, resource: Resource, amount: u64) -> Result<(), Exceeded> {
        let row = self.row(resource);
        row.take(amount).map_err(|(used, limit)| Exceeded {
            resource,
            level: self.level,
            wanted: amount,
            used,
            limit,
        })?;
        if let Some(parent) = &self.parent
            && let Err(exceeded) = parent.take(resource, amount)
        {
            row.give(amount);
            self.wake(resource);
            return Err(exceeded);
        }
        Ok(())
    }

    /// Charges an amount that is already in use and was rejected: the ledger is over a limit until others release.
    pub fn overdraw(&self, resource: Resource, amount: u64) {
        let row = self.row(resource);
        let used = row.used.fetch_add(amount, Ordering::AcqRel).saturating_add(amount);
        row.peak.fetch_max(used, Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.overdraw(resource, amount);
        }
    }

    /// Releases a charged amount.
    pub fn give(&self, resource: Resource, amount: u64) {
        if amount == 0 {
            return;
        }
        self.row(resource).give(amount);
        self.wake(resource);
        if let Some(parent) = &self.parent {
            parent.give(resource, amount);
        }
    }

    /// Charges `amount` and releases it when the guard is dropped. A rejection is counted: the caller fails by it.
    pub fn hold(self: &Arc<Self>, resource: Resource, amount: u64) -> Result<ResourceGuard, Exceeded> {
        let held = self.try_hold(resource, amount);
        held.inspect_err(|exceeded| self.row(resource).rejections.count(exceeded.level))
    }

    /// As [`Ledger::hold`], for a caller that frees something or waits and tries again: a rejection isn't counted.
    pub fn try_hold(self: &Arc<Self>, resource: Resource, amount: u64) -> Result<ResourceGuard, Exceeded> {
        self.take(resource, amount)?;
        Ok(ResourceGuard { ledger: self.clone(), resource, amount })
    }

    /// Counts a rejection by a bound of one socket, which is below this ledger's limits.
    pub fn count_rejection_by_socket(&self, resource: Resource) {
        self.row(resource).rejections.socket.fetch_add(1, Ordering::Relaxed);
    }

    /// The use of a resource, and the rejections of [`Ledger::hold`] of this ledger.
    #[must_use]
    pub fn resource_use(&self, resource: Resource) -> ResourceUse {
        let row = self.row(resource);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ResourceUse {
            used: read(&row.used),
            rejected_by_node: read(&row.rejections.node),
            rejected_by_pod: read(&row.rejections.pod),
            rejected_by_container: read(&row.rejections.container),
            rejected_by_socket: read(&row.rejections.socket),
        }
    }

    /// As [`Ledger::hold`], but waits while others hold too much. An amount over a limit waits for a raise.
    pub async fn acquire(self: &Arc<Self>, resource: Resource, amount: u64) -> ResourceGuard {
        loop {
            let exceeded = match self.try_hold(resource, amount) {
                Ok(held) => return held,
                Err(exceeded) => exceeded,
            };
            let fits = |ledger: &Self| {
                let row = ledger.row(resource);
                let limit = row.limit.load(Ordering::SeqCst);
                row.used.load(Ordering::SeqCst).checked_add(amount).is_some_and(|after| after <= limit)
            };
            self.changed(resource, exceeded.level, fits).await;
        }
    }

    /// Waits until some of `resource` is released at `level`, or its limit is changed; returns at once if `enough`
    /// holds for that level. May return earlier.
    pub async fn changed(&self, resource: Resource, level: Level, enough: impl FnOnce(&Self) -> bool) {
        let at = self.at(level);
        let row = at.row(resource);
        let _waiting = WaiterGuard::new(&row.waiting);
        let freed = at.freed.notified();
        tokio::pin!(freed);
        freed.as_mut().enable();
        if !enough(at) {
            freed.await;
        }
    }

    /// Wakes waiters for `resource` at this level to check again.
    pub fn wake(&self, resource: Resource) {
        // A waiter counts itself before its last read of `used`, so one of the two sees the other.
        if self.row(resource).waiting.load(Ordering::SeqCst) > 0 {
            self.freed.notify_waiters();
        }
    }

    /// The ledger of a level at or above this one.
    pub fn at(&self, level: Level) -> &Self {
        match &self.parent {
            Some(parent) if self.level != level => parent.at(level),
            _ => self,
        }
    }

    /// Whether there is a waiter for `resource` at this level or above.
    #[must_use]
    pub fn is_waited_for(&self, resource: Resource) -> bool {
        let waited_for = self.row(resource).waiting.load(Ordering::SeqCst) > 0;
        waited_for || self.parent.as_ref().is_some_and(|parent| parent.is_waited_for(resource))
    }

    /// The charged amount.
    #[must_use]
    pub fn used(&self, resource: Resource) -> u64 {
        self.row(resource).used.load(Ordering::Relaxed)
    }

    /// The maximum charged amount so far.
    #[must_use]
    pub fn peak(&self, resource: Resource) -> u64 {
        self.row(resource).peak.load(Ordering::Relaxed)
    }

    /// The limit of this level; [`u64::MAX`]: none.
    #[must_use]
    pub fn limit(&self, resource: Resource) -> u64 {
        self.row(resource).limit.load(Ordering::Relaxed)
    }

    /// Changes a limit. Charges over a lowered limit remain; new ones are rejected until usage is below it.
    pub fn set_limit(&self, resource: Resource, limit: u64) {
        let row = self.row(resource);
        row.limit.store(limit, Ordering::SeqCst);
        self.wake(resource);
    }
}

/// A charged amount, released on drop.
#[derive(Debug)]
pub struct ResourceGuard {
    ledger: Arc<Ledger>,
    resource: Resource,
    amount: u64,
}

impl Drop for ResourceGuard {
    fn drop(&mut self) {
        self.ledger.give(self.resource, self.amount);
    }
}

/// Counts a waiter until it is dropped.
pub struct WaiterGuard<'a>(Option<&'a AtomicUsize>);

impl<'a> WaiterGuard<'a> {
    /// Adds a waiter to the count.
    pub fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Some(count))
    }

    /// Removes the waiter from the count.
    pub fn end(&mut self) {
        if let Some(count) = self.0.take() {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels() -> (Arc<Ledger>, Arc<Ledger>, Arc<Ledger>) {
        let node = Ledger::node();
        let pod = Ledger::pod(&node);
        let container = Ledger::container(&pod);
        (node, pod, container)
    }

    #[test]
    fn every_level_counts_or_none() {
        let (node, pod, a) = levels();
        let b = Ledger::container(&pod);
        a.set_limit(Resource::Memory, 10);
        pod.set_limit(Resource::Memory, 12);
        a.take(Resource::Memory, 8).unwrap();
        assert_eq!(a.take(Resource::Memory, 3).unwrap_err().level, Level::Container);
        let exceeded = b.take(Resource::Memory, 5).unwrap_err();
        assert_eq!((exceeded.level, exceeded.used, exceeded.limit), (Level::Pod, 8, 12));
        assert_eq!(
            exceeded.to_string(),
            "out of memory: 5 bytes more than the 8 in use exceed the pod's limit of 12 bytes"
        );
        assert_eq!((b.used(Resource::Memory), node.used(Resource::Memory)), (0, 8));
        a.give(Resource::Memory, 8);
        b.take(Resource::Memory, 5).unwrap();
        assert_eq!((a.peak(Resource::Memory), pod.used(Resource::Memory)), (8, 5));
        assert_eq!(a.used(Resource::Descriptors), 0, "rows are apart");
        node.take(Resource::Memory, 1).unwrap();
        assert!(node.take(Resource::Memory, u64::MAX).is_err(), "no sum wraps around");
    }

    #[test]
    fn overdrafts_count_and_block_other_charges() {
        let (node, pod, container) = levels();
        node.set_limit(Resource::Memory, 10);
        container.take(Resource::Memory, 8).unwrap();
        container.overdraw(Resource::Memory, 5);
        assert_eq!([&node, &pod, &container].map(|ledger| ledger.used(Resource::Memory)), [13; 3]);
        assert!(pod.take(Resource::Memory, 1).is_err());
        container.give(Resource::Memory, 13);
        assert_eq!((node.used(Resource::Memory), container.peak(Resource::Memory)), (0, 13));
    }

    #[test]
    fn limits_change_while_something_is_held() {
        let (node, _, container) = levels();
        let held = container.hold(Resource::Descriptors, 5).unwrap();
        node.set_limit(Resource::Descriptors, 3);
        assert!(container.hold(Resource::Descriptors, 1).is_err());
        drop(held);
        let _held = container.hold(Resource::Descriptors, 3).unwrap();
        assert_eq!(container.hold(Resource::Descriptors, 1).unwrap_err().level, Level::Node);
    }

    #[test]
    fn rejections_are_counted_at_the_callers_level_by_the_level_of_the_limit() {
        let (node, pod, container) = levels();
        container.set_limit(Resource::Sockets, 3);
        pod.set_limit(Resource::Sockets, 2);
        assert!(container.hold(Resource::Sockets, 4).is_err());
        assert!(container.hold(Resource::Sockets, 3).is_err());
        node.set_limit(Resource::Sockets, 1);
        assert!(container.hold(Resource::Sockets, 2).is_err());
        assert!(container.try_hold(Resource::Sockets, 2).is_err(), "the caller tries again");
        let _held = container.hold(Resource::Sockets, 1).unwrap();
        container.count_rejection_by_socket(Resource::Sockets);
        let once = ResourceUse {
            used: 1,
            rejected_by_node: 1,
            rejected_by_pod: 1,
            rejected_by_container: 1,
            rejected_by_socket: 1,
        };
        assert_eq!(container.resource_use(Resource::Sockets), once);
        assert_eq!(pod.resource_use(Resource::Sockets), ResourceUse { used: 1, ..ResourceUse::default() });
        assert_eq!(container.resource_use(Resource::Datagrams), ResourceUse::default(), "rows are apart");
    }

    #[tokio::test]
    async fn waiters_are_woken_by_releases_and_limit_changes() {
        let (node, _, a) = levels();
        let b = Ledger::container(&Ledger::pod(&node));
        node.set_limit(Resource::BlockingThreads, 1);
        let held = a.hold(Resource::BlockingThreads, 1).unwrap();
        let waits = b.acquire(Resource::BlockingThreads, 1);
        tokio::pin!(waits);
        assert!(futures::poll!(&mut waits).is_pending());
        drop(held);
        let held = waits.await;
        let more = a.acquire(Resource::BlockingThreads, 1);
        tokio::pin!(more);
        assert!(futures::poll!(&mut more).is_pending());
        node.set_limit(Resource::BlockingThreads, 2);
        let _both = (held, more.await);
        assert_eq!(node.used(Resource::BlockingThreads), 2);
    }
}
