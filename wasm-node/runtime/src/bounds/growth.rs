//! Memory growth of running guests: charges it to the ledger, and waits while other guests hold the needed memory.
//!
//! Growth over the container's own limit traps; a guest never sees a failed `memory.grow`. At the pod's or node's limit other
//! guests hold the memory and may free it soon: the growth waits, at most until its request's deadline. New instances are not
//! admitted before a waiting growth ([`Growth::wanted`]). If waiting guests hold all used memory, none of it would ever be
//! freed, so one of them fails.
//!
//! Host memory of a guest is known only after its allocation. If other guests hold the needed memory, it is charged over the
//! limit, and the guest is suspended until they have freed it ([`StoreLimiter::debt`]), within the same deadline.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use machinery_env::{Deadline, Env};
use runtime_api::ledger::{Exceeded, Ledger, Level, Resource};
use wasmtime::ResourceLimiterAsync;

use super::census::Census;
use super::limits::{CORE_INSTANCES_MAX, MEMORIES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX};
use super::parked::IdleRegistry;

/// Maximum wait of a command for memory that others hold: a command has no deadline, and other guests lack the memory
/// that it holds meanwhile.
pub(crate) const COMMAND_GROWTH_WAIT_MAX: Duration = Duration::from_secs(10);
/// Bytes of a table element.
const TABLE_ELEMENT_BYTES: u64 = size_of::<usize>() as u64;
/// One part in this many of a guest's memory is for handles before a message about memory names them.
const HANDLES_PART: u64 = 4;
/// Wanted bytes where the system is out of memory: more than any limit, so that no growth waits for others.
const WANTED_WITHOUT_LIMIT: u64 = u64::MAX;

/// All waiting growth of the process.
#[derive(Debug)]
pub(crate) struct Growth {
    env: Env,
    waiters: Mutex<Waiters>,
    parked: IdleRegistry,
}

#[derive(Debug, Default)]
struct Waiters {
    /// Bytes that the waiting guests hold.
    held: u64,
    /// Bytes that the waiting guests want in addition.
    wanted: u64,
}

impl Growth {
    pub(crate) fn new(env: Env) -> Self {
        Self { env, waiters: Mutex::default(), parked: IdleRegistry::default() }
    }

    /// The clock of the guests.
    pub(crate) fn env(&self) -> &Env {
        &self.env
    }

    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Idle instances, evicted before any growth waits or fails.
    pub(crate) fn parked(&self) -> &IdleRegistry {
        &self.parked
    }

    /// Bytes that live guests wait for.
    pub(crate) fn wanted(&self) -> u64 {
        self.waiters().wanted
    }

    fn wait(self: &Arc<Self>, held: u64, wanted: u64) -> GrowthWait {
        let mut waiters = self.waiters();
        waiters.held += held;
        waiters.wanted += wanted;
        GrowthWait { growth: self.clone(), held, wanted, counted: true }
    }
}

/// A waiting growth, counted in `Waiters`.
struct GrowthWait {
    growth: Arc<Growth>,
    held: u64,
    wanted: u64,
    counted: bool,
}

impl GrowthWait {
    /// Whether waiting guests hold all of the `used` bytes. Only one of them gets `true`: it fails.
    fn is_deadlocked(&mut self, used: u64) -> bool {
        let mut waiters = self.growth.waiters();
        let hopeless = self.counted && waiters.held >= used;
        if hopeless {
            self.counted = false;
            waiters.held -= self.held;
            waiters.wanted -= self.wanted;
        }
        hopeless
    }
}

impl Drop for GrowthWait {
    fn drop(&mut self) {
        if self.counted {
            let mut waiters = self.growth.waiters();
            waiters.held -= self.held;
            waiters.wanted -= self.wanted;
        }
    }
}

/// Charges one store's growth to its container's budget and releases it when the store is dropped.
#[derive(Debug)]
pub(crate) struct StoreLimiter {
    ledger: Arc<Ledger>,
    growth: Arc<Growth>,
    wait_max: Duration,
    guest_bytes: u64,
    host_bytes: u64,
    debt: Option<Debt>,
    exceeded: Option<Exceeded>,
    /// Whether the rejected growth exceeded the fixed bound of all tables, independent of limits.
    table_too_large: bool,
    /// The handles of a failed guest.
    pub(crate) handles: Option<Census>,
}

/// Host memory of a guest over the limit of its pod or of the node.
#[derive(Debug)]
struct Debt {
    bytes: u64,
    /// Deadline for other guests to free it.
    due: Deadline,
}

impl StoreLimiter {
    /// `wait_max`: maximum wait of a growth for other guests.
    pub(crate) fn new(ledger: Arc<Ledger>, growth: Arc<Growth>, wait_max: Duration) -> Self {
        Self {
            ledger,
            growth,
            wait_max,
            guest_bytes: 0,
            host_bytes: 0,
            debt: None,
            exceeded: None,
            table_too_large: false,
            handles: None,
        }
    }

    /// The limit that this store exceeded, if any: decides `OOMKilled` whatever error the guest ended with.
    pub(crate) fn exceeded(&self) -> Option<&Exceeded> {
        self.exceeded.as_ref()
    }

    /// How to raise the exceeded limit, where a setting exists.
    pub(crate) fn advice(&self) -> Option<String> {
        let exceeded = self.exceeded.as_ref()?;
        if self.table_too_large {
            let max = TABLE_ELEMENTS_MAX;
            return Some(format!(
                "a table may have {max} elements, which nothing raises: an optimized build has fewer"
            ));
        }
        if exceeded.wanted == WANTED_WITHOUT_LIMIT {
            return None;
        }
        let words = match exceeded.level {
            Level::Container => "the container is at its memory limit, which its resources.limits.memory raises",
            Level::Pod => {
                "the pod is at its memory limit, which the resources.limits.memory of its spec or containers raise"
            }
            Level::Node => {
                "the guests of this node hold all the memory that they may together: only fewer or smaller ones help"
            }
        };
        let many = |census: &&Census| census.bytes() > self.held_bytes() / HANDLES_PART;
        Some(self.handles.as_ref().filter(many).map_or(words.to_owned(), |census| format!("{words}; {census}")))
    }

    /// Bytes charged to this store.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.guest_bytes + self.host_bytes
    }

    /// Sets the guest's host memory (handles, fields, buffered bodies); returns false if that exceeds what it may ever
    /// have. Memory held by other guests is recorded as debt instead.
    pub(crate) fn set_host_bytes(&mut self, bytes: u64) -> bool {
        if bytes > self.host_bytes {
            let more = bytes - self.host_bytes;
            if let Err(exceeded) = self.take(more) {
                if !self.others_hold(&exceeded) {
                    self.exceeded = Some(exceeded);
                    return false;
                }
                self.ledger.overdraw(Resource::Memory, more);
                let due = self.growth.env.deadline(self.wait_max);
                self.debt.get_or_insert(Debt { bytes: 0, due }).bytes += more;
            }
        } else {
            self.ledger.give(Resource::Memory, self.host_bytes - bytes);
        }
        self.host_bytes = bytes;
        true
    }

    /// Whether the guest's host memory exceeds a limit.
    pub(crate) fn has_debt(&self) -> bool {
        self.debt.is_some()
    }

    /// The future that a guest has to await before it continues.
    ///
    /// # Errors
    /// The debt was not covered in time, or never could be.
    pub(crate) fn debt(&mut self) -> wasmtime::Result<Option<BoxFuture<'static, ()>>> {
        let Some(debt) = &self.debt else { return Ok(None) };
        let over = |at: &Ledger| at.used(Resource::Memory) > at.limit(Resource::Memory);
        let Some(level) = [Level::Node, Level::Pod].into_iter().find(|level| over(self.ledger.at(*level))) else {
            self.debt = None;
            return Ok(None);
        };
        let (due, at) = (debt.due, self.ledger.at(level));
        let mut wait = self.growth.wait(self.held_bytes(), 0);
        if due.passed(&self.growth.env) || wait.is_deadlocked(self.ledger.at(Level::Node).used(Resource::Memory)) {
            let used = at.used(Resource::Memory).saturating_sub(debt.bytes);
            let limit = at.limit(Resource::Memory);
            let exceeded = Exceeded { resource: Resource::Memory, level, wanted: debt.bytes, used, limit };
            self.exceeded = Some(exceeded.clone());
            return Err(wasmtime::Error::new(exceeded));
        }
        let (ledger, growth) = (self.ledger.clone(), self.growth.clone());
        Ok(Some(Box::pin(async move {
            let enough = |at: &Ledger| {
                growth.parked.evict_for_memory(&ledger, level);
                !over(at)
            };
            let given = ledger.changed(Resource::Memory, level, enough);
            let _ = growth.env.timeout_at(due, given).await;
            drop(wait);
        })))
    }

    async fn grow_to(
        &mut self,
        current: usize,
        desired: usize,
        max: Option<usize>,
        unit: u64,
    ) -> wasmtime::Result<bool> {
        let bytes = (desired.saturating_sub(current) as u64).saturating_mul(unit);
        let over_its_own = max.is_some_and(|max| desired > max);
        let mut taken = self.take(bytes);
        if let Err(exceeded) = &taken
            && self.others_hold(exceeded)
            && !over_its_own
        {
            taken = self.wait(exceeded.clone()).await;
        }
        match taken {
            // Within the budget but over the module's own maximum: wasm defines -1 for that.
            Ok(()) if over_its_own => {
                self.ledger.give(Resource::Memory, bytes);
                Ok(false)
            }
            Ok(()) => {
                self.guest_bytes += bytes;
                Ok(true)
            }
            Err(exceeded) => {
                self.exceeded = Some(exceeded.clone());
                Err(wasmtime::Error::new(exceeded))
            }
        }
    }

    /// Charges bytes to the budget; evicts idle instances that are in the way.
    fn take(&self, bytes: u64) -> Result<(), Exceeded> {
        loop {
            let exceeded = match self.ledger.take(Resource::Memory, bytes) {
                Ok(()) => return Ok(()),
                Err(exceeded) => exceeded,
            };
            if !self.growth.parked.evict_for_memory(&self.ledger, exceeded.level) {
                return Err(exceeded);
            }
        }
    }

    /// Whether other guests could free enough.
    fn others_hold(&self, exceeded: &Exceeded) -> bool {
        let alone = self.held_bytes().saturating_add(exceeded.wanted);
        exceeded.level != Level::Container && alone <= exceeded.limit
    }

    /// Charges a rejected growth once others have freed enough.
    async fn wait(&self, first: Exceeded) -> Result<(), Exceeded> {
        let bytes = first.wanted;
        let node = self.ledger.at(Level::Node);
        let mut wait = self.growth.wait(self.held_bytes(), bytes);
        let mut refused = first;
        let granted = async {
            loop {
                let level = refused.level;
                let fits = |at: &Ledger| {
                    self.growth.parked.evict_for_memory(&self.ledger, level);
                    let used = at.used(Resource::Memory);
                    used.checked_add(bytes).is_some_and(|after| after <= at.limit(Resource::Memory))
                };
                if wait.is_deadlocked(node.used(Resource::Memory)) {
                    return false;
                }
                self.ledger.changed(Resource::Memory, level, fits).await;
                match self.ledger.take(Resource::Memory, bytes) {
                    Ok(()) => return true,
                    Err(exceeded) => refused = exceeded,
                }
                if !self.others_hold(&refused) {
                    return false;
                }
            }
        };
        let granted = self.growth.env.timeout(self.wait_max, granted).await.unwrap_or(false);
        drop(wait);
        // Waiting admissions check again: this growth no longer precedes them.
        node.wake(Resource::Memory);
        if granted { Ok(()) } else { Err(refused) }
    }
}

impl Drop for StoreLimiter {
    fn drop(&mut self) {
        self.ledger.give(Resource::Memory, self.guest_bytes + self.host_bytes);
    }
}

#[async_trait]
impl ResourceLimiterAsync for StoreLimiter {
    async fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.grow_to(current, desired, maximum, 1).await
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        // The growth was charged and then failed in the system: a trap, never -1. A growth over the module's own
        // maximum was rejected above and arrives here uncharged.
        if self.exceeded.is_none() && error.downcast_ref::<std::io::Error>().is_some() {
            self.exceeded = Some(Exceeded {
                resource: Resource::Memory,
                level: Level::Container,
                wanted: WANTED_WITHOUT_LIMIT,
                used: self.ledger.used(Resource::Memory),
                limit: self.ledger.limit(Resource::Memory),
            });
            return Err(error.context("the system has no memory for this growth"));
        }
        Ok(())
    }

    async fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > TABLE_ELEMENTS_MAX && maximum.is_none_or(|maximum| maximum >= TABLE_ELEMENTS_MAX) {
            // The node's own bound, not the module's: a trap, as for memory. A pool reports it as the table's maximum.
            let exceeded = Exceeded {
                resource: Resource::Memory,
                level: Level::Container,
                wanted: (desired as u64).saturating_mul(TABLE_ELEMENT_BYTES),
                used: current as u64 * TABLE_ELEMENT_BYTES,
                limit: TABLE_ELEMENTS_MAX as u64 * TABLE_ELEMENT_BYTES,
            };
            self.exceeded = Some(exceeded.clone());
            self.table_too_large = true;
            return Err(wasmtime::Error::new(exceeded).context("one table has grown too large"));
        }
        self.grow_to(current, desired, maximum, TABLE_ELEMENT_BYTES).await
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    struct Node {
        ledger: Arc<Ledger>,
        growth: Arc<Growth>,
    }

    impl Node {
        fn new(limit: usize) -> Self {
            let ledger = Ledger::node();
            ledger.set_limit(Resource::Memory, limit as u64);
            Self { ledger, growth: Arc::new(Growth::new(Env::real())) }
        }

        fn container(&self, limit: u64) -> Arc<Ledger> {
            let container = Ledger::container(&Ledger::pod(&self.ledger));
            container.set_limit(Resource::Memory, limit);
            container
        }

        fn store(&self, container: &Arc<Ledger>) -> StoreLimiter {
            StoreLimiter::new(container.clone(), self.growth.clone(), Duration::from_secs(5))
        }

        fn used(&self) -> u64 {
            self.ledger.used(Resource::Memory)
        }
    }

    async fn grow(store: &mut StoreLimiter, to: usize) -> wasmtime::Result<bool> {
        let from = usize::try_from(store.guest_bytes).unwrap();
        store.memory_growing(from, to, None).await
    }

    #[tokio::test(start_paused = true)]
    async fn stores_share_one_budget_and_give_back() {
        let node = Node::new(100 * MIB);
        let container = node.container(MIB as u64);
        let (mut a, mut b) = (node.store(&container), node.store(&container));
        assert!(grow(&mut a, 700 << 10).await.unwrap());
        let before = node.growth.env.instant();
        assert!(grow(&mut b, 700 << 10).await.is_err(), "two stores, one budget");
        assert_eq!(node.growth.env.instant() - before, Duration::ZERO, "over its container's own limit nobody waits");
        assert!(b.exceeded().is_some() && a.exceeded().is_none());
        assert_eq!(node.used(), 700 << 10, "a refused growth charges nobody");
        drop(a);
        assert!(grow(&mut b, 700 << 10).await.unwrap());
        assert!(!b.set_host_bytes(400 << 10), "host buffers count too");
        drop(b);
        assert_eq!((container.used(Resource::Memory), node.used()), (0, 0));
        assert_eq!(container.peak(Resource::Memory), 700 << 10);
    }

    #[tokio::test(start_paused = true)]
    async fn growth_waits_for_memory_of_neighbours() {
        let node = Node::new(10 * MIB);
        let (mut neighbour, mut other) = (node.store(&node.container(u64::MAX)), node.store(&node.container(u64::MAX)));
        grow(&mut neighbour, 8 * MIB).await.unwrap();
        grow(&mut other, MIB).await.unwrap();
        let ends = async {
            node.growth.env.sleep(Duration::from_secs(2)).await;
            assert_eq!(node.growth.wanted(), 3 * MIB as u64, "nobody new is let in before it");
            drop(neighbour);
            node.growth.env.instant()
        };
        let before = node.growth.env.instant();
        let (grown, at) = tokio::join!(grow(&mut other, 4 * MIB), ends);
        assert!(grown.unwrap());
        assert_eq!((at - before, node.growth.env.instant() - before), (Duration::from_secs(2), Duration::from_secs(2)));
        assert_eq!((node.used(), node.growth.wanted()), (4 * MIB as u64, 0));
        assert!(grow(&mut other, 11 * MIB).await.is_err(), "more than there is, for nobody");
        assert_eq!(node.growth.env.instant() - before, Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn host_memory_growth_waits_for_neighbours() {
        let node = Node::new(10 * MIB);
        let (mut neighbour, mut other) = (node.store(&node.container(u64::MAX)), node.store(&node.container(u64::MAX)));
        grow(&mut neighbour, 8 * MIB).await.unwrap();
        assert!(other.set_host_bytes(2 * MIB as u64) && !other.has_debt());
        assert!(other.debt().unwrap().is_none());
        assert!(other.set_host_bytes(3 * MIB as u64) && other.has_debt(), "it is there: others hold what it takes");
        assert_eq!(node.used(), 11 * MIB as u64);
        let mut debt = other.debt().unwrap().unwrap();
        assert!(futures::poll!(&mut debt).is_pending());
        grow(&mut neighbour, 9 * MIB).await.unwrap_err();
        drop(neighbour);
        debt.await;
        assert!(other.debt().unwrap().is_none() && !other.has_debt());
        assert!(!other.set_host_bytes(11 * MIB as u64), "more than there is");
        assert_eq!(other.exceeded().unwrap().level, Level::Node);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unpaid_debt_is_an_error_at_the_deadline() {
        let node = Node::new(10 * MIB);
        let (mut neighbour, mut other) = (node.store(&node.container(u64::MAX)), node.store(&node.container(u64::MAX)));
        grow(&mut neighbour, 8 * MIB).await.unwrap();
        assert!(other.set_host_bytes(3 * MIB as u64));
        let before = node.growth.env.instant();
        other.debt().unwrap().unwrap().await;
        assert_eq!(node.growth.env.instant() - before, Duration::from_secs(5));
        assert!(other.debt().is_err());
        let exceeded = other.exceeded().unwrap();
        assert_eq!((exceeded.wanted, exceeded.used, exceeded.limit), (3 << 20, 8 << 20, 10 << 20));
        drop(other);
        // If all holders of memory wait, one of them fails at once.
        let mut other = node.store(&node.container(u64::MAX));
        assert!(other.set_host_bytes(3 * MIB as u64) && neighbour.set_host_bytes(MIB as u64));
        let waits = neighbour.debt().unwrap().unwrap();
        assert!(other.debt().is_err());
        drop(other);
        waits.await;
        assert!(neighbour.debt().unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn waits_fail_at_their_deadline_and_a_deadlock_fails_one_at_once() {
        let node = Node::new(10 * MIB);
        let mut stores: Vec<StoreLimiter> = (0..3).map(|_| node.store(&node.container(u64::MAX))).collect();
        for store in &mut stores {
            grow(store, 3 * MIB).await.unwrap();
        }
        let before = node.growth.env.instant();
        let mut c = stores.pop().unwrap();
        assert!(grow(&mut c, 5 * MIB).await.is_err());
        assert_eq!(
            node.growth.env.instant() - before,
            Duration::from_secs(5),
            "the others run, and may end at any time"
        );
        let (mut b, mut a) = (stores.pop().unwrap(), stores.pop().unwrap());
        // Each wants memory that only the others could free: the last one fails, which is enough for the others.
        let mut rest = [Box::pin(grow(&mut a, 5 * MIB)), Box::pin(grow(&mut b, 5 * MIB))];
        for one in &mut rest {
            assert!(futures::poll!(one).is_pending());
        }
        let before = node.growth.env.instant();
        assert!(grow(&mut c, 5 * MIB).await.is_err());
        assert_eq!(node.growth.env.instant() - before, Duration::ZERO);
        drop(c);
        let [first, second] = rest;
        let (first, second) = tokio::join!(first, second);
        assert!(first.unwrap() && second.unwrap());
    }
}
