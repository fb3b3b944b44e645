//! Slots: concurrency limit of live instances, weighted by their part of the engine's pool, with fair sharing.
//!
//! A slot is held for as long as its guest runs, perhaps for hours, and is never revoked. So a share bounds a tenant's
//! slots relative to the free ones: it may grow while much is free, and always leaves something for the next tenant. A
//! container alone may hold some 44 % of all slots, its namespace 58 %; each further tenant with the same demand
//! shrinks the shares. The last eighth is reserved for the first instances of namespaces that hold few.
//!
//! Waiters are served in FIFO order among those whose share permits it, at each release of a slot. There is one
//! [`Slots`] per class of work: requests, the node's own calls (probes, hooks), which thus never wait for requests, and
//! commands, which hold theirs for life.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::oneshot;

/// A tenant may hold this many times the free slots.
const SHARE_OF_FREE: u64 = 2;
/// One part in this many is reserved for namespaces that hold few: the next one starts at once, however many tenants
/// have taken their share.
const RESERVED_PART: u32 = 8;
/// Maximum instances of such a namespace: a request each for a few concurrent callers.
const FEW_INSTANCES: u32 = 4;

/// Pool usage of an instance, or capacity of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Weight {
    /// Instances: each has a stack.
    pub(crate) instances: u32,
    /// Linear memories.
    pub(crate) memories: u32,
    /// Tables.
    pub(crate) tables: u32,
}

impl Weight {
    fn parts(self) -> [u32; 3] {
        [self.instances, self.memories, self.tables]
    }

    fn map(self, other: Self, act: impl Fn(u32, u32) -> u32) -> Self {
        Self {
            instances: act(self.instances, other.instances),
            memories: act(self.memories, other.memories),
            tables: act(self.tables, other.tables),
        }
    }

    fn plus(self, other: Self) -> Self {
        self.map(other, u32::saturating_add)
    }

    fn minus(self, other: Self) -> Self {
        self.map(other, u32::saturating_sub)
    }

    fn fits(self, free: Self) -> bool {
        self.parts().iter().zip(free.parts()).all(|(wanted, free)| *wanted <= free)
    }
}

/// Whether a container that holds `own`, in a namespace that holds `namespace`, may take `wanted` of what is `free`.
fn admits(capacity: Weight, free: Weight, namespace: Weight, own: Weight, wanted: Weight) -> bool {
    if !wanted.fits(free) {
        return false;
    }
    if namespace.instances < FEW_INSTANCES {
        return true;
    }
    let kept = capacity.map(capacity, |all, _| all / RESERVED_PART);
    let left = free.minus(wanted).minus(kept).parts();
    let (namespace_after, own_after) = (namespace.plus(wanted).parts(), own.plus(wanted).parts());
    (0..left.len()).filter(|part| wanted.parts()[*part] > 0).all(|part| {
        let share = SHARE_OF_FREE * u64::from(left[part]);
        let namespace_after = u64::from(namespace_after[part]);
        let together = namespace_after + u64::from(own_after[part]);
        // A container's first instance counts for its namespace alone.
        namespace_after <= share && (own.instances == 0 || together <= share)
    })
}

/// Slots held by one tenant; changed under the lock of its [`Slots`] only.
#[derive(Debug, Default)]
struct SlotAccount([AtomicU32; 3]);

impl SlotAccount {
    fn held(&self) -> Weight {
        let [instances, memories, tables] = [0, 1, 2].map(|part: usize| self.0[part].load(Ordering::Relaxed));
        Weight { instances, memories, tables }
    }

    fn set(&self, held: Weight) {
        for (part, value) in self.0.iter().zip(held.parts()) {
            part.store(value, Ordering::Relaxed);
        }
    }
}

struct Waiter {
    share: Arc<Share>,
    weight: Weight,
    granted: oneshot::Sender<Slot>,
}

struct SlotsState {
    capacity: Weight,
    free: Weight,
    waiting: VecDeque<Waiter>,
    namespaces: HashMap<Arc<str>, Weak<SlotAccount>>,
}

/// The slots of one class of work.
pub(crate) struct Slots {
    capacity: Weight,
    state: Mutex<SlotsState>,
    released: tokio::sync::Notify,
}

impl Slots {
    pub(crate) fn new(capacity: Weight) -> Arc<Self> {
        let state = SlotsState { capacity, free: capacity, waiting: VecDeque::new(), namespaces: HashMap::new() };
        Arc::new(Self { capacity, state: Mutex::new(state), released: tokio::sync::Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, SlotsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The total capacity.
    pub(crate) fn capacity(&self) -> Weight {
        self.capacity
    }

    #[cfg(test)]
    pub(crate) fn free(&self) -> Weight {
        self.lock().free
    }

    /// A container's share of these slots.
    pub(crate) fn share(self: &Arc<Self>, namespace: &Arc<str>) -> Arc<Share> {
        let mut state = self.lock();
        let account = match state.namespaces.get(namespace).and_then(Weak::upgrade) {
            Some(account) => account,
            None => {
                let account = Arc::new(SlotAccount::default());
                state.namespaces.retain(|_, account| account.strong_count() > 0);
                state.namespaces.insert(namespace.clone(), Arc::downgrade(&account));
                account
            }
        };
        Arc::new(Share { slots: self.clone(), namespace: account, own: SlotAccount::default() })
    }

    /// Whether any waiter is queued.
    pub(crate) fn has_waiters(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// Resolves when a slot is released.
    pub(crate) async fn released(&self) {
        self.released.notified().await;
    }
}

impl SlotsState {
    fn take(&mut self, share: &Arc<Share>, weight: Weight) -> Option<Slot> {
        let (namespace, own) = (share.namespace.held(), share.own.held());
        if !admits(self.capacity, self.free, namespace, own, weight) {
            return None;
        }
        self.free = self.free.minus(weight);
        share.namespace.set(namespace.plus(weight));
        share.own.set(own.plus(weight));
        Some(Slot { share: share.clone(), weight })
    }

    /// Serves waiters while slots suffice. Returns slots of cancelled waiters, to be dropped without the lock.
    fn serve(&mut self) -> Vec<Slot> {
        let mut unwanted = Vec::new();
        let mut index = 0;
        while self.free.instances > 0 && index < self.waiting.len() {
            let Some(waiter) = self.waiting.get(index) else { break };
            if waiter.granted.is_closed() {
                self.waiting.remove(index);
                continue;
            }
            let (share, weight) = (waiter.share.clone(), waiter.weight);
            match self.take(&share, weight) {
                None => index += 1,
                Some(slot) => {
                    let waiter = self.waiting.remove(index);
                    unwanted.extend(waiter.and_then(|waiter| waiter.granted.send(slot).err()));
                }
            }
        }
        unwanted
    }
}

/// One container's share of a class of slots.
pub(crate) struct Share {
    slots: Arc<Slots>,
    namespace: Arc<SlotAccount>,
    own: SlotAccount,
}

impl Share {
    /// Takes a slot if one is free for this container.
    pub(crate) fn try_take(self: &Arc<Self>, weight: Weight) -> Option<Slot> {
        self.slots.lock().take(self, weight)
    }

    /// Waits for a slot. A weight over the capacity waits for ever: loading rejects such a module.
    pub(crate) async fn take(self: &Arc<Self>, weight: Weight) -> Slot {
        let receiver = {
            let mut state = self.slots.lock();
            if let Some(slot) = state.take(self, weight) {
                return slot;
            }
            // Removes cancelled waiters, each time that the queue has doubled.
            if state.waiting.len().is_power_of_two() {
                state.waiting.retain(|waiter| !waiter.granted.is_closed());
            }
            let (granted, receiver) = oneshot::channel();
            state.waiting.push_back(Waiter { share: self.clone(), weight, granted });
            receiver
        };
        receiver.await.expect("a waiter is dropped only after its receiver")
    }

    /// Whether too little is free for this weight, for any tenant.
    pub(crate) fn is_exhausted_for(&self, weight: Weight) -> bool {
        !weight.fits(self.slots.lock().free)
    }

    /// Whether the other share is of the same class.
    pub(crate) fn is_of_class(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.slots, &other.slots)
    }

    /// Whether the other share is of the same class and namespace.
    pub(crate) fn is_same_namespace(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.namespace, &other.namespace)
    }

    /// The class of this share.
    pub(crate) fn slots(&self) -> &Arc<Slots> {
        &self.slots
    }
}

/// A slot, released on drop.
pub(crate) struct Slot {
    share: Arc<Share>,
    weight: Weight,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let slots = &self.share.slots;
        let unwanted = {
            let mut state = slots.lock();
            state.free = state.free.plus(self.weight);
            self.share.namespace.set(self.share.namespace.held().minus(self.weight));
            self.share.own.set(self.share.own.held().minus(self.weight));
            if state.waiting.is_empty() { Vec::new() } else { state.serve() }
        };
        drop(unwanted);
        slots.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(instances: u32, memories: u32, tables: u32) -> Weight {
        Weight { instances, memories, tables }
    }

    const ONE: Weight = Weight { instances: 1, memories: 1, tables: 2 };

    fn slots() -> Arc<Slots> {
        Slots::new(weight(1000, 2000, 4000))
    }

    fn fill(share: &Arc<Share>, each: Weight) -> Vec<Slot> {
        std::iter::from_fn(|| share.try_take(each)).collect()
    }

    #[test]
    fn a_single_container_gets_its_share_only() {
        let slots = slots();
        let (a, b) = (slots.share(&"a".into()), slots.share(&"b".into()));
        let held = fill(&a, ONE);
        assert_eq!(held.len(), 437);
        let others = fill(&b, ONE);
        assert!(others.len() > 200, "{}", others.len());
        drop(held);
        drop(others);
        assert_eq!(slots.lock().free, slots.capacity());
    }

    #[test]
    fn tables_and_memories_are_shared_as_slots_are() {
        let slots = slots();
        let hog = slots.share(&"a".into());
        let held = fill(&hog, weight(1, 1, 32));
        assert!(held.len() <= 4000 / 32 / 2 && held.len() > 40, "{}", held.len());
        // As many hogs as a namespace may have pods never take all tables or all memories.
        let hogs: Vec<_> = (0..50).map(|_| slots.share(&"a".into())).collect();
        let _all: Vec<_> = hogs.iter().flat_map(|hog| fill(hog, weight(1, 16, 32))).collect();
        let free = slots.lock().free;
        assert!(free.tables >= 4000 / 3 && free.memories >= 2000 / 3, "{free:?}");
        assert!(slots.share(&"b".into()).try_take(ONE).is_some());
    }

    #[test]
    fn many_namespaces_leave_something_for_one_more() {
        let slots = slots();
        let hogs: Vec<_> = (0..20).map(|n| slots.share(&format!("n{n}").into())).collect();
        let _all: Vec<_> = hogs.iter().flat_map(|hog| fill(hog, ONE)).collect();
        assert!(fill(&slots.share(&"victim".into()), ONE).len() >= FEW_INSTANCES as usize);
        // A weight above any share still runs alone.
        let small = Slots::new(weight(10, 16, 32));
        assert!(small.share(&"a".into()).try_take(weight(1, 16, 32)).is_some());
    }

    #[tokio::test]
    async fn waiters_are_served_in_order_within_their_share() {
        let slots = Slots::new(weight(16, 160, 160));
        let (a, b) = (slots.share(&"a".into()), slots.share(&"b".into()));
        let mut held = fill(&a, ONE);
        assert_eq!(held.len(), 7);
        let mut first = Box::pin(a.take(ONE));
        let mut second = Box::pin(a.take(ONE));
        assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
        let other = b.try_take(ONE);
        assert!(other.is_some(), "its share is its own");
        held.truncate(5);
        let got = first.await;
        assert!(futures::poll!(&mut second).is_pending());
        // A cancelled waiter doesn't keep its slot.
        let third = Box::pin(a.take(ONE));
        drop(second);
        drop(got);
        let third = third.await;
        drop((third, held, other));
        assert_eq!(slots.lock().free, slots.capacity());
        assert!(slots.lock().waiting.is_empty());
    }

    proptest::proptest! {
        /// Any sequence of takes and releases conserves the sum.
        #[test]
        fn sums_hold(steps in proptest::collection::vec((0usize..6, 1u32..4, 0u32..5, proptest::bool::ANY), 1..200)) {
            let slots = Slots::new(weight(20, 24, 40));
            let shares: Vec<_> = (0..6).map(|n| slots.share(&format!("n{}", n % 3).into())).collect();
            let mut held: Vec<Vec<(Weight, Slot)>> = (0..6).map(|_| Vec::new()).collect();
            for (who, memories, tables, take) in steps {
                let wanted = weight(1, memories, tables);
                if take {
                    held[who].extend(shares[who].try_take(wanted).map(|slot| (wanted, slot)));
                } else {
                    held[who].pop();
                }
                let sum = held.iter().flatten().fold(Weight::default(), |sum, (weight, _)| sum.plus(*weight));
                proptest::prop_assert_eq!(slots.lock().free.plus(sum), slots.capacity());
            }
        }
    }
}
