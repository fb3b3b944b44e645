//! Wakes who waits for a ring's events: a few at once, and where there are more, the others by a task, a crowd after the
//! other, so that thousands of watchers neither hold up the writer nor come before everybody's requests.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Watchers that are woken at once. Less than the 61 tasks after which tokio looks at its sockets, and wakes the task
/// that goes on with the next crowd: what is to be run doesn't grow, however many watchers there are.
const CROWD: usize = 32;

/// The number of a ring's next event, and all who wait until it grows.
#[derive(Debug)]
pub(super) struct Bell {
    next: watch::Sender<u64>,
    crowds: Arc<Mutex<Crowds>>,
}

/// Those beyond the first few.
#[derive(Debug, Default)]
struct Crowds {
    senders: Vec<watch::Sender<u64>>,
    /// A task tells them.
    told: bool,
}

fn lock(crowds: &Mutex<Crowds>) -> MutexGuard<'_, Crowds> {
    crowds.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bell {
    pub(super) fn new(next: u64) -> Self {
        Self { next: watch::Sender::new(next), crowds: Arc::default() }
    }

    /// Tells all who wait, also where the number is the same.
    pub(super) fn ring(&self, next: u64) {
        self.next.send_replace(next);
    }

    /// As [`ring`](Self::ring), with the number as it is.
    pub(super) fn ring_again(&self) {
        self.next.send_modify(|_| {});
    }

    /// A place among those who are told, which may hear of a number a little later than others. Within a runtime.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        if self.next.receiver_count() < CROWD {
            return self.next.subscribe();
        }
        let mut crowds = lock(&self.crowds);
        if !std::mem::replace(&mut crowds.told, true) {
            tokio::spawn(tell(self.next.subscribe(), self.crowds.clone()));
        }
        match crowds.senders.last().filter(|last| last.receiver_count() < CROWD) {
            Some(last) => last.subscribe(),
            None => {
                let (sender, receiver) = watch::channel(*self.next.borrow());
                crowds.senders.push(sender);
                receiver
            }
        }
    }
}

/// Tells one crowd after the other, until the bell is gone. What rings meanwhile is told to those whose turn is still to
/// come, and to the others in the next round.
async fn tell(mut next: watch::Receiver<u64>, crowds: Arc<Mutex<Crowds>>) {
    while next.changed().await.is_ok() {
        let mut turn = 0;
        while tell_one(&next, &crowds, turn) {
            turn += 1;
            tokio::task::yield_now().await;
        }
    }
}

/// False: there is no such crowd.
fn tell_one(next: &watch::Receiver<u64>, crowds: &Mutex<Crowds>, turn: usize) -> bool {
    let mut crowds = lock(crowds);
    // Who were in it have left.
    while crowds.senders.get(turn).is_some_and(|crowd| crowd.receiver_count() == 0) {
        crowds.senders.swap_remove(turn);
    }
    let Some(crowd) = crowds.senders.get(turn) else { return false };
    crowd.send_replace(*next.borrow());
    true
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const MANY: usize = 20 * CROWD;

    /// Tasks that count the numbers they hear of.
    fn wait(bell: &Bell, heard: &Arc<AtomicUsize>) -> Vec<tokio::task::JoinHandle<()>> {
        let waiting = |_| {
            let (mut receiver, heard) = (bell.subscribe(), heard.clone());
            tokio::spawn(async move {
                while receiver.changed().await.is_ok() {
                    heard.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        (0..MANY).map(waiting).collect()
    }

    /// Whatever can be done without time passing is done.
    async fn settle() {
        for _ in 0..10 * MANY {
            tokio::task::yield_now().await;
        }
    }

    /// Turns of the runtime until `heard` is `count`; how many more had heard after each at most.
    async fn turns_until(heard: &AtomicUsize, count: usize) -> (usize, usize) {
        let (mut turns, mut most) = (0, 0);
        while heard.load(Ordering::Relaxed) < count {
            let before = heard.load(Ordering::Relaxed);
            tokio::task::yield_now().await;
            turns += 1;
            most = most.max(heard.load(Ordering::Relaxed) - before);
            assert!(turns < 10_000, "{before} of {count} heard");
        }
        (turns, most)
    }

    #[tokio::test]
    async fn who_else_waits_gets_a_turn_between_crowds() {
        let (bell, heard) = (Bell::new(0), Arc::new(AtomicUsize::new(0)));
        let _waiting = wait(&bell, &heard);
        settle().await;
        bell.ring(1);
        let (turns, most) = turns_until(&heard, MANY).await;
        assert!(most <= 4 * CROWD && turns >= 5, "{most} at once, {turns} turns");
        bell.ring(2);
        bell.ring_again();
        turns_until(&heard, 2 * MANY).await;
    }

    #[tokio::test]
    async fn a_ring_during_a_round_reaches_all_and_who_left_is_forgotten() {
        let (bell, heard) = (Bell::new(0), Arc::new(AtomicUsize::new(0)));
        let mut receivers: Vec<_> = (0..MANY).map(|_| bell.subscribe()).collect();
        bell.ring(1);
        tokio::task::yield_now().await;
        bell.ring(2);
        for receiver in &mut receivers {
            receiver.wait_for(|next| *next == 2).await.unwrap();
        }
        assert_eq!(lock(&bell.crowds).senders.len(), MANY / CROWD - 1);
        drop(receivers);
        bell.ring(3);
        let _waiting = wait(&bell, &heard);
        bell.ring(4);
        turns_until(&heard, MANY).await;
        settle().await;
        let crowds = lock(&bell.crowds).senders.len();
        assert!(crowds < MANY / CROWD + 2, "{crowds} crowds");
    }

    #[tokio::test]
    async fn the_task_ends_with_its_bell() {
        let bell = Bell::new(0);
        let mut receivers: Vec<_> = (0..=CROWD).map(|_| bell.subscribe()).collect();
        let mut last = receivers.pop().unwrap();
        drop(bell);
        assert!(last.changed().await.is_err());
    }
}
