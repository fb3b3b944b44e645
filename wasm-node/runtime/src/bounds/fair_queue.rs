//! Fair queue of namespaces for a few seats: the namespace with the least served time goes first, however many entries another
//! namespace has queued. Pure.
//!
//! Start-time fair queueing: https://doi.org/10.1145/248156.248171 (Goyal, Vin, Cheng: SIGCOMM 1996).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Queued entries by namespace, and the time served to each namespace. Pure.
pub(crate) struct FairQueue<W> {
    seats: usize,
    free: usize,
    usual: Duration,
    /// Served time of the last popped namespace at its pop: new and returning namespaces start here, without credit.
    clock: Duration,
    served: BTreeMap<String, Duration>,
    waiting: BTreeMap<String, VecDeque<W>>,
}

impl<W> FairQueue<W> {
    /// `usual` is the provisional charge of an entry that is being served; its release replaces it by the actual time.
    pub(crate) fn new(seats: usize, usual: Duration) -> Self {
        Self { seats, free: seats, usual, clock: Duration::ZERO, served: BTreeMap::new(), waiting: BTreeMap::new() }
    }

    /// Queues an entry.
    pub(crate) fn push(&mut self, namespace: &str, who: W) {
        if !self.waiting.contains_key(namespace) {
            let served = self.served.entry(namespace.to_owned()).or_default();
            *served = self.clock.max(*served);
        }
        self.waiting.entry(namespace.to_owned()).or_default().push_back(who);
    }

    /// Pops the next entry if a seat is free: the oldest of the namespace with the least served time.
    pub(crate) fn pop(&mut self) -> Option<(String, W)> {
        if self.free == 0 {
            return None;
        }
        let had = |namespace: &String| self.served.get(namespace).copied().unwrap_or(self.clock);
        let namespace = self.waiting.keys().min_by_key(|namespace| had(namespace))?.clone();
        let waiting = self.waiting.get_mut(&namespace)?;
        let who = waiting.pop_front()?;
        if waiting.is_empty() {
            self.waiting.remove(&namespace);
        }
        let served = self.served.entry(namespace.clone()).or_default();
        self.clock = *served;
        *served += self.usual;
        self.free -= 1;
        Some((namespace, who))
    }

    /// Whether no entry is queued or being served.
    pub(crate) fn is_idle(&self) -> bool {
        self.free == self.seats && self.waiting.is_empty()
    }

    /// Frees a seat and charges the time that it was held.
    pub(crate) fn release(&mut self, namespace: &str, held: Duration) {
        self.free += 1;
        if let Some(served) = self.served.get_mut(namespace) {
            *served = (*served + held).saturating_sub(self.usual);
        }
        // An idle queue keeps no debts and no state of deleted namespaces.
        if self.is_idle() {
            self.served.clear();
            self.clock = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const USUAL: Duration = Duration::from_secs(2);

    fn order(queue: &mut FairQueue<u32>, held: impl Fn(u32) -> u64) -> Vec<u32> {
        let mut order = Vec::new();
        while let Some((namespace, who)) = queue.pop() {
            order.push(who);
            queue.release(&namespace, Duration::from_secs(held(who)));
        }
        order
    }

    #[test]
    fn namespaces_take_turns_by_used_time() {
        let mut queue = FairQueue::new(1, USUAL);
        for who in 0..4 {
            queue.push("many", who);
        }
        queue.push("one", 100);
        queue.push("other", 200);
        // After the first entry of `many` the others come next, however many are queued before them.
        assert_eq!(order(&mut queue, |_| 10), [0, 100, 200, 1, 2, 3]);
    }

    #[test]
    fn a_returning_namespace_has_no_credit_and_a_heavy_one_waits() {
        let mut queue = FairQueue::new(1, USUAL);
        queue.push("a", 1);
        let (a, _) = queue.pop().unwrap();
        queue.push("a", 2);
        queue.push("b", 3);
        queue.push("b", 4);
        queue.release(&a, Duration::from_secs(100));
        // `b` may get as much as `a` has had, and no more.
        assert_eq!(order(&mut queue, |_| 60), [3, 4, 2]);
    }

    #[test]
    fn two_seats_go_to_two_namespaces() {
        let mut queue = FairQueue::new(2, USUAL);
        queue.push("a", 1);
        queue.push("a", 2);
        queue.push("b", 3);
        assert_eq!([queue.pop().unwrap().1, queue.pop().unwrap().1], [1, 3]);
        assert!(queue.pop().is_none());
    }

    proptest! {
        /// Between two entries of a namespace that always waits, no other gets more than one entry beyond its own time.
        #[test]
        fn no_namespace_starves(busy in 1usize..40, held in 1u64..50) {
            let mut queue = FairQueue::new(1, USUAL);
            for who in 0..busy {
                queue.push("busy", who);
            }
            let (first, _) = queue.pop().unwrap();
            queue.push("quiet", 1000);
            queue.release(&first, Duration::from_secs(held));
            prop_assert_eq!(queue.pop().unwrap().1, 1000);
        }
    }
}
