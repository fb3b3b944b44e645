//! Who compiles next: a lane has a few seats, and namespaces take turns on them by the time that they have had, so that
//! one with a hundred slow modules delays another's single one by at most the module that compiles now.
//!
//! Start-time fair queueing: https://doi.org/10.1145/248156.248171 (Goyal, Vin, Cheng: SIGCOMM 1996).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use machinery_env::Env;
use tokio::sync::oneshot;

/// A few seats for compilations, shared fairly between namespaces.
pub(super) struct Lane {
    env: Env,
    queue: Mutex<FairQueue<oneshot::Sender<Seat>>>,
}

impl Lane {
    /// `usual` is what a compilation is charged with while it runs; at its end it is the time that it had its seat.
    pub(super) fn new(seats: usize, usual: Duration, env: Env) -> Arc<Self> {
        Arc::new(Self { env, queue: Mutex::new(FairQueue::new(seats, usual)) })
    }

    /// Waits for a seat. Giving up waiting (dropping the future) leaves nothing behind.
    pub(super) async fn seat(self: &Arc<Self>, namespace: &str) -> Seat {
        let (sender, receiver) = oneshot::channel();
        self.queue().push(namespace, sender);
        self.grant();
        receiver.await.expect("a sender is dropped only after it was used")
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, FairQueue<oneshot::Sender<Seat>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands out free seats. Whoever gave up waiting drops the seat, which frees it for the next.
    fn grant(self: &Arc<Self>) {
        loop {
            let Some((namespace, sender)) = self.queue().pop() else { return };
            let _ = sender.send(Seat { lane: self.clone(), namespace, since: self.env.elapsed() });
        }
    }
}

/// The right to compile one module in a lane; freed when dropped.
pub(super) struct Seat {
    lane: Arc<Lane>,
    namespace: String,
    since: Duration,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let held = self.lane.env.elapsed().saturating_sub(self.since);
        self.lane.queue().release(&self.namespace, held);
        self.lane.grant();
    }
}

/// Who waits, by namespace, and how much each namespace has had. Pure.
struct FairQueue<W> {
    seats: usize,
    free: usize,
    usual: Duration,
    /// What the namespace served last had had then: who comes new or comes back starts here, without credit for the past.
    clock: Duration,
    served: BTreeMap<String, Duration>,
    waiting: BTreeMap<String, VecDeque<W>>,
}

impl<W> FairQueue<W> {
    fn new(seats: usize, usual: Duration) -> Self {
        Self { seats, free: seats, usual, clock: Duration::ZERO, served: BTreeMap::new(), waiting: BTreeMap::new() }
    }

    fn push(&mut self, namespace: &str, who: W) {
        if !self.waiting.contains_key(namespace) {
            let served = self.served.entry(namespace.to_owned()).or_default();
            *served = self.clock.max(*served);
        }
        self.waiting.entry(namespace.to_owned()).or_default().push_back(who);
    }

    /// The next to compile, where a seat is free: the longest waiting of the namespace that has had least.
    fn pop(&mut self) -> Option<(String, W)> {
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

    fn release(&mut self, namespace: &str, held: Duration) {
        self.free += 1;
        if let Some(served) = self.served.get_mut(namespace) {
            *served = (*served + held).saturating_sub(self.usual);
        }
        // Nothing is owed in an idle lane, and nothing is kept of namespaces that are gone.
        if self.free == self.seats && self.waiting.is_empty() {
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

    #[tokio::test]
    async fn who_gives_up_waiting_keeps_no_seat() {
        let lane = Lane::new(1, USUAL, Env::real());
        let first = lane.seat("a").await;
        {
            let mut second = std::pin::pin!(lane.seat("b"));
            assert!(futures::poll!(second.as_mut()).is_pending());
        }
        let mut third = std::pin::pin!(lane.seat("c"));
        assert!(futures::poll!(third.as_mut()).is_pending());
        drop(first);
        drop(third.await);
        drop(lane.seat("a").await);
    }
}
