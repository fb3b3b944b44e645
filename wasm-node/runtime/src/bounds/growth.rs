//! Growth of running guests: charged to the ledger, and waiting where others hold what it needs.
//!
//! Over its container's own limit a guest traps; it never sees a refused `memory.grow`. Where the pod's or the node's limit
//! stands in the way, others hold the memory and may give it back soon: the growth waits, no longer than its request may
//! take. While it waits nobody new is let in before it ([`Growth::wanted`]). Where all that is held is held by those who
//! wait, nobody would ever give anything back, so one of them fails.
//!
//! What the host holds for a guest is known only afterwards. Where others hold what it would need, it is counted over the
//! limit, and the guest goes on when they have given it back ([`StoreLimiter::debt`]), within the same time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use runtime_api::ledger::{Exceeded, Ledger, Level, Resource};
use tokio::time::Instant;
use wasmtime::ResourceLimiterAsync;

use super::limits::{CORE_INSTANCES_MAX, MEMORIES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX};
use super::parked::Parked;

/// How long a command waits for memory that others hold: it has no deadline of its own, and what it holds meanwhile is
/// missing elsewhere.
pub(crate) const COMMAND_GROWTH_WAIT_MAX: Duration = Duration::from_secs(10);
/// What one element of a table costs.
const TABLE_ELEMENT_BYTES: u64 = size_of::<usize>() as u64;
/// What counts as wanted where the system itself has no more: more than there is, so that nobody waits for others to give it
/// back.
const WANTED_OF_SYSTEM: u64 = u64::MAX;

/// All growth of the process that waits.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    waiters: Mutex<Waiters>,
    parked: Parked,
}

#[derive(Debug, Default)]
struct Waiters {
    /// What they hold already.
    held: u64,
    /// What they want beside it.
    wanted: u64,
}

impl Growth {
    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Instances that are given up before anything waits or fails.
    pub(crate) fn parked(&self) -> &Parked {
        &self.parked
    }

    /// Bytes that live guests wait for.
    pub(crate) fn wanted(&self) -> u64 {
        self.waiters().wanted
    }

    fn wait(self: &Arc<Self>, held: u64, wanted: u64) -> Wait {
        let mut waiters = self.waiters();
        waiters.held += held;
        waiters.wanted += wanted;
        Wait { growth: self.clone(), held, wanted, counted: true }
    }
}

/// One growth that waits.
struct Wait {
    growth: Arc<Growth>,
    held: u64,
    wanted: u64,
    counted: bool,
}

impl Wait {
    /// Whether all of the `used` bytes are held by those who wait. Only one is told so: it fails, and gives back.
    fn is_hopeless(&mut self, used: u64) -> bool {
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

impl Drop for Wait {
    fn drop(&mut self) {
        if self.counted {
            let mut waiters = self.growth.waiters();
            waiters.held -= self.held;
            waiters.wanted -= self.wanted;
        }
    }
}

/// Charges one store's growth to its container's budget and gives everything back when the store is dropped.
#[derive(Debug)]
pub(crate) struct StoreLimiter {
    ledger: Arc<Ledger>,
    growth: Arc<Growth>,
    wait_max: Duration,
    guest_bytes: u64,
    host_bytes: u64,
    owed: Option<Debt>,
    exceeded: Option<Exceeded>,
    /// What was refused is one table's growth over the bound that all tables have, whatever the limits are.
    table_too_large: bool,
}

/// What the host holds for a guest over the limit of its pod or of the node.
#[derive(Debug)]
struct Debt {
    bytes: u64,
    /// When others must have given it back.
    due: Instant,
}

impl StoreLimiter {
    /// `wait_max`: how long a growth waits for others.
    pub(crate) fn new(ledger: Arc<Ledger>, growth: Arc<Growth>, wait_max: Duration) -> Self {
        Self {
            ledger,
            growth,
            wait_max,
            guest_bytes: 0,
            host_bytes: 0,
            owed: None,
            exceeded: None,
            table_too_large: false,
        }
    }

    /// What this store was refused, if anything: decides `OOMKilled` whatever error the guest ended with.
    pub(crate) fn exceeded(&self) -> Option<&Exceeded> {
        self.exceeded.as_ref()
    }

    /// What raises the limit that this store was at when it was refused something, if anything does.
    pub(crate) fn advice(&self) -> Option<String> {
        let exceeded = self.exceeded.as_ref()?;
        if self.table_too_large {
            let max = TABLE_ELEMENTS_MAX;
            return Some(format!(
                "a table may have {max} elements, which nothing raises: an optimized build has fewer"
            ));
        }
        if exceeded.wanted == WANTED_OF_SYSTEM {
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
        Some(words.to_owned())
    }

    /// What this store holds.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.guest_bytes + self.host_bytes
    }

    /// Sets what the host holds for this guest (handles, fields, buffered bodies); false when that is more than it may
    /// ever have. Where only others stand in the way it is owed.
    pub(crate) fn set_host_bytes(&mut self, bytes: u64) -> bool {
        if bytes > self.host_bytes {
            let more = bytes - self.host_bytes;
            if let Err(exceeded) = self.take(more) {
                if !self.others_hold(&exceeded) {
                    self.exceeded = Some(exceeded);
                    return false;
                }
                self.ledger.overdraw(Resource::Memory, more);
                let due = Instant::now() + self.wait_max;
                self.owed.get_or_insert(Debt { bytes: 0, due }).bytes += more;
            }
        } else {
            self.ledger.give(Resource::Memory, self.host_bytes - bytes);
        }
        self.host_bytes = bytes;
        true
    }

    /// Whether the host holds more for this guest than there is room for.
    pub(crate) fn owes(&self) -> bool {
        self.owed.is_some()
    }

    /// What a guest has to wait for before it goes on.
    ///
    /// # Errors
    /// Others have not given back in time what it owes, or never could.
    pub(crate) fn debt(&mut self) -> wasmtime::Result<Option<BoxFuture<'static, ()>>> {
        let Some(owed) = &self.owed else { return Ok(None) };
        let over = |at: &Ledger| at.used(Resource::Memory) > at.limit(Resource::Memory);
        let Some(level) = [Level::Node, Level::Pod].into_iter().find(|level| over(self.ledger.at(*level))) else {
            self.owed = None;
            return Ok(None);
        };
        let (due, at) = (owed.due, self.ledger.at(level));
        let mut wait = self.growth.wait(self.held_bytes(), 0);
        if Instant::now() >= due || wait.is_hopeless(self.ledger.at(Level::Node).used(Resource::Memory)) {
            let used = at.used(Resource::Memory).saturating_sub(owed.bytes);
            let limit = at.limit(Resource::Memory);
            let exceeded = Exceeded { resource: Resource::Memory, level, wanted: owed.bytes, used, limit };
            self.exceeded = Some(exceeded.clone());
            return Err(wasmtime::Error::new(exceeded));
        }
        let (ledger, growth) = (self.ledger.clone(), self.growth.clone());
        Ok(Some(Box::pin(async move {
            let enough = |at: &Ledger| {
                growth.parked.for_memory(&ledger, level);
                !over(at)
            };
            let given = ledger.changed(Resource::Memory, level, enough);
            let _ = tokio::time::timeout_at(due, given).await;
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
            // Within the budget but over the module's own maximum: -1 is the answer wasm defines for that.
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

    /// Takes bytes of the budget; parked instances that stand in the way are given up for it.
    fn take(&self, bytes: u64) -> Result<(), Exceeded> {
        loop {
            let exceeded = match self.ledger.take(Resource::Memory, bytes) {
                Ok(()) => return Ok(()),
                Err(exceeded) => exceeded,
            };
            if !self.growth.parked.for_memory(&self.ledger, exceeded.level) {
                return Err(exceeded);
            }
        }
    }

    /// Whether others could give back enough.
    fn others_hold(&self, exceeded: &Exceeded) -> bool {
        let alone = self.held_bytes().saturating_add(exceeded.wanted);
        exceeded.level != Level::Container && alone <= exceeded.limit
    }

    /// Takes what was refused once others have given enough back.
    async fn wait(&self, first: Exceeded) -> Result<(), Exceeded> {
        let bytes = first.wanted;
        let node = self.ledger.at(Level::Node);
        let mut wait = self.growth.wait(self.held_bytes(), bytes);
        let mut refused = first;
        let granted = async {
            loop {
                let level = refused.level;
                let fits = |at: &Ledger| {
                    self.growth.parked.for_memory(&self.ledger, level);
                    let used = at.used(Resource::Memory);
                    used.checked_add(bytes).is_some_and(|after| after <= at.limit(Resource::Memory))
                };
                if wait.is_hopeless(node.used(Resource::Memory)) {
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
        let granted = tokio::time::timeout(self.wait_max, granted).await.unwrap_or(false);
        drop(wait);
        // Whoever waits to be let in looks anew: this growth stands before nobody any more.
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
        // maximum was refused above and comes here uncharged.
        if self.exceeded.is_none() && error.downcast_ref::<std::io::Error>().is_some() {
            self.exceeded = Some(Exceeded {
                resource: Resource::Memory,
                level: Level::Container,
                wanted: WANTED_OF_SYSTEM,
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
            // The node's own bound, not the module's: a trap, as for memory. A pool gives it as the table's maximum.
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
            Self { ledger, growth: Arc::default() }
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
        let before = tokio::time::Instant::now();
        assert!(grow(&mut b, 700 << 10).await.is_err(), "two stores, one budget");
        assert_eq!(before.elapsed(), Duration::ZERO, "over its container's own limit nobody waits");
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
    async fn growth_waits_for_what_neighbours_hold() {
        let node = Node::new(10 * MIB);
        let (mut neighbour, mut other) = (node.store(&node.container(u64::MAX)), node.store(&node.container(u64::MAX)));
        grow(&mut neighbour, 8 * MIB).await.unwrap();
        grow(&mut other, MIB).await.unwrap();
        let ends = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(node.growth.wanted(), 3 * MIB as u64, "nobody new is let in before it");
            drop(neighbour);
            tokio::time::Instant::now()
        };
        let before = tokio::time::Instant::now();
        let (grown, at) = tokio::join!(grow(&mut other, 4 * MIB), ends);
        assert!(grown.unwrap());
        assert_eq!((at - before, before.elapsed()), (Duration::from_secs(2), Duration::from_secs(2)));
        assert_eq!((node.used(), node.growth.wanted()), (4 * MIB as u64, 0));
        assert!(grow(&mut other, 11 * MIB).await.is_err(), "more than there is, for nobody");
        assert_eq!(before.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_host_holds_for_a_guest_waits_for_neighbours_too() {
        let node = Node::new(10 * MIB);
        let (mut neighbour, mut other) = (node.store(&node.container(u64::MAX)), node.store(&node.container(u64::MAX)));
        grow(&mut neighbour, 8 * MIB).await.unwrap();
        assert!(other.set_host_bytes(2 * MIB as u64) && !other.owes());
        assert!(other.debt().unwrap().is_none());
        assert!(other.set_host_bytes(3 * MIB as u64) && other.owes(), "it is there: others hold what it takes");
        assert_eq!(node.used(), 11 * MIB as u64);
        let mut debt = other.debt().unwrap().unwrap();
        assert!(futures::poll!(&mut debt).is_pending());
        grow(&mut neighbour, 9 * MIB).await.unwrap_err();
        drop(neighbour);
        debt.await;
        assert!(other.debt().unwrap().is_none() && !other.owes());
        assert!(!other.set_host_bytes(11 * MIB as u64), "more than there is");
        assert_eq!(other.exceeded().unwrap().level, Level::Node);
    }

    #[tokio::test(start_paused = true)]
    async fn a_debt_that_nobody_pays_is_an_error_in_the_end() {
        let node = Node::new(10 * MIB);
        let (mut neighbour, mut other) = (node.store(&node.container(u64::MAX)), node.store(&node.container(u64::MAX)));
        grow(&mut neighbour, 8 * MIB).await.unwrap();
        assert!(other.set_host_bytes(3 * MIB as u64));
        let before = Instant::now();
        other.debt().unwrap().unwrap().await;
        assert_eq!(before.elapsed(), Duration::from_secs(5));
        assert!(other.debt().is_err());
        let exceeded = other.exceeded().unwrap();
        assert_eq!((exceeded.wanted, exceeded.used, exceeded.limit), (3 << 20, 8 << 20, 10 << 20));
        drop(other);
        // Where all who hold anything wait, one fails at once.
        let mut other = node.store(&node.container(u64::MAX));
        assert!(other.set_host_bytes(3 * MIB as u64) && neighbour.set_host_bytes(MIB as u64));
        let waits = neighbour.debt().unwrap().unwrap();
        assert!(other.debt().is_err());
        drop(other);
        waits.await;
        assert!(neighbour.debt().unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_in_vain_fails_at_its_deadline_and_of_all_who_wait_one_fails_at_once() {
        let node = Node::new(10 * MIB);
        let mut stores: Vec<StoreLimiter> = (0..3).map(|_| node.store(&node.container(u64::MAX))).collect();
        for store in &mut stores {
            grow(store, 3 * MIB).await.unwrap();
        }
        let before = tokio::time::Instant::now();
        let mut c = stores.pop().unwrap();
        assert!(grow(&mut c, 5 * MIB).await.is_err());
        assert_eq!(before.elapsed(), Duration::from_secs(5), "the others run, and may end at any time");
        let (mut b, mut a) = (stores.pop().unwrap(), stores.pop().unwrap());
        // Each wants what only the others could give: the last one fails, which is enough for the others.
        let mut rest = [Box::pin(grow(&mut a, 5 * MIB)), Box::pin(grow(&mut b, 5 * MIB))];
        for one in &mut rest {
            assert!(futures::poll!(one).is_pending());
        }
        let before = tokio::time::Instant::now();
        assert!(grow(&mut c, 5 * MIB).await.is_err());
        assert_eq!(before.elapsed(), Duration::ZERO);
        drop(c);
        let [first, second] = rest;
        let (first, second) = tokio::join!(first, second);
        assert!(first.unwrap() && second.unwrap());
    }
}
