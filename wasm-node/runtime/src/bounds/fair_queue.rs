//! Whose turn it is where a few seats are shared by namespaces: that one's which has had the least time of them, however many
//! of another wait. Pure.
//!
//! Start-time fair queueing: https://doi.org/10.1145/248156.248171 (Goyal, Vin, Cheng: SIGCOMM 1996).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Who waits, by namespace, and how much each namespace has had. Pure.
pub(crate) struct FairQueue<W> {
    seats: usize,
    free: usize,
    usual: Duration,
    /// What the namespace served last had had then: who comes new or comes back starts here, without credit for the past.
    clock: Duration,
    served: BTreeMap<String, Duration>,
    waiting: BTreeMap<String, VecDeque<W>>,
}

impl<W> FairQueue<W> {
    /// `usual` is what a turn is charged with while it lasts; at its end it is the time that it took.
    pub(crate) fn new(seats: usize, usual: Duration) -> Self {
        Self { seats, free: seats, usual, clock: Duration::ZERO, served: BTreeMap::new(), waiting: BTreeMap::new() }
    }

    /// Lets somebody wait.
    pub(crate) fn push(&mut self, namespace: &str, who: W) {
        if !self.waiting.contains_key(namespace) {
            let served = self.served.entry(namespace.to_owned()).or_default();
            *served = self.clock.max(*served);
        }
        self.waiting.entry(namespace.to_owned()).or_default().push_back(who);
    }

    /// The next, where a seat is free: the longest waiting of the namespace that has had least.
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

    /// Nobody has a turn, and nobody waits for one.
    pub(crate) fn is_idle(&self) -> bool {
        self.free == self.seats && self.waiting.is_empty()
    }

    /// A turn is over, and took so long.
    pub(crate) fn release(&mut self, namespace: &str, held: Duration) {
        self.free += 1;
        if let Some(served) = self.served.get_mut(namespace) {
            *served = (*served + held).saturating_sub(self.usual);
        }
        // Nothing is owed in an idle lane, and nothing is kept of namespaces that are gone.
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
    fn namespaces_take_turns_by_the_time_they_have_had() {
        let mut queue = FairQueue::new(1, USUAL);
        for who in 0..4 {
            queue.push("many", who);
        }
        queue.push("one", 100);
        queue.push("other", 200);
        // After the first of `many` the others are next, however many wait before them.
        assert_eq!(order(&mut queue, |_| 10), [0, 100, 200, 1, 2, 3]);
    }

    #[test]
    fn who_comes_back_has_no_credit_and_who_had_much_waits() {
        let mut queue = FairQueue::new(1, USUAL);
        queue.push("a", 1);
        let (a, _) = queue.pop().unwrap();
        queue.push("a", 2);
        queue.push("b", 3);
        queue.push("b", 4);
        queue.release(&a, Duration::from_secs(100));
        // `b` may take as much as `a` has had, and no more than that.
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
        /// Between two turns of a namespace that always waits, no other gets more than one turn beyond its own time.
        #[test]
        fn nobody_is_starved(busy in 1usize..40, held in 1u64..50) {
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
