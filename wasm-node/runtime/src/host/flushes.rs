//! Whose turn it is to flush to the disk: one at a time, for a part of each second, and namespaces share that part by the time that
//! they have had of it. So one with a hundred writers delays another's single one by the flush that is under way and the
//! rest after it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use machinery_env::Env;
use runtime_api::TokenBucket;
use tokio::sync::oneshot;

use super::disk_threads::{LATE_AFTER, Late};
use crate::bounds::fair_queue::FairQueue;

/// What a flush is charged with while it lasts: what one takes where a disk is quick.
const USUAL: Duration = Duration::from_millis(10);

/// See the module.
pub(crate) struct Flushes {
    env: Env,
    stalled_after: Duration,
    state: Mutex<State>,
}

struct State {
    /// Of each second, what all flushes may take.
    time: TokenBucket,
    queue: FairQueue<oneshot::Sender<u64>>,
    next: u64,
    /// Who flushes now.
    running: Option<Running>,
    /// Somebody waits for the rest after a flush.
    resting: bool,
}

struct Running {
    number: u64,
    namespace: String,
    since: Duration,
}

/// Leave to flush, until it is dropped.
pub(crate) struct Flush {
    all: Arc<Flushes>,
    number: u64,
}

/// Waiting for leave. Whoever gives up leaves nothing behind.
struct Waiting {
    all: Arc<Flushes>,
    receiver: oneshot::Receiver<u64>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.receiver.close();
        // It came between.
        if let Ok(number) = self.receiver.try_recv() {
            self.all.end(number);
        }
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        self.all.end(self.number);
    }
}

impl Flushes {
    /// `millis`: of each second, what all flushes may take. One that takes longer than `stalled_after` is no longer waited for.
    pub(crate) fn new(millis: u64, stalled_after: Duration, env: &Env) -> Arc<Self> {
        let state = State {
            time: TokenBucket::new(millis, env.elapsed()),
            queue: FairQueue::new(1, USUAL),
            next: 0,
            running: None,
            resting: false,
        };
        Arc::new(Self { env: env.clone(), stalled_after, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// Others held the disk for too long.
    pub(crate) async fn turn(self: &Arc<Self>, namespace: &str) -> Result<Flush, Late> {
        let (sender, receiver) = oneshot::channel();
        self.state().queue.push(namespace, sender);
        let mut waiting = Waiting { all: self.clone(), receiver };
        self.grant();
        let turn = async {
            loop {
                let stalls_in = self.pass_stalled();
                tokio::select! {
                    biased;
                    number = &mut waiting.receiver => return number,
                    () = tokio::time::sleep(stalls_in) => {}
                }
            }
        };
        match tokio::time::timeout(LATE_AFTER, turn).await {
            Ok(Ok(number)) => Ok(Flush { all: self.clone(), number }),
            Ok(Err(_)) | Err(_) => Err(Late),
        }
    }

    /// Lets the next one flush, once there is time for it: who that is, is decided then.
    fn grant(self: &Arc<Self>) {
        let now = self.env.elapsed();
        let mut state = self.state();
        if state.resting || state.running.is_some() {
            return;
        }
        if let Some(rest) = state.time.delay(now)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            state.resting = true;
            let all = self.clone();
            runtime.spawn(async move {
                tokio::time::sleep(rest).await;
                all.state().resting = false;
                all.grant();
            });
            return;
        }
        while let Some((namespace, sender)) = state.queue.pop() {
            let number = state.next;
            state.next += 1;
            if sender.send(number).is_ok() {
                state.running = Some(Running { number, namespace, since: now });
                return;
            }
            state.queue.release(&namespace, Duration::ZERO);
        }
    }

    /// A turn is over. Nothing where it stalled: others have gone on since.
    fn end(self: &Arc<Self>, number: u64) {
        self.finish(|running, _| running.number == number);
    }

    /// Gives the turn of one that stalled to others; answers when to look again.
    fn pass_stalled(self: &Arc<Self>) -> Duration {
        self.finish(|running, now| running.since + self.stalled_after <= now);
        let state = self.state();
        let stalls_at = state.running.as_ref().map(|running| running.since + self.stalled_after);
        stalls_at.map_or(self.stalled_after, |at| at.saturating_sub(self.env.elapsed()).max(Duration::from_millis(1)))
    }

    fn finish(self: &Arc<Self>, which: impl FnOnce(&Running, Duration) -> bool) {
        let now = self.env.elapsed();
        let mut state = self.state();
        let Some(running) = state.running.take_if(|running| which(running, now)) else { return };
        let took = now.saturating_sub(running.since);
        state.time.charge(took, now);
        state.queue.release(&running.namespace, took);
        drop(state);
        self.grant();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const STALLED: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn many_of_one_namespace_delay_another_by_one_flush() {
        let flushes = Flushes::new(1000, STALLED, &Env::real());
        let first = flushes.turn("many").await.unwrap();
        let mut many: Vec<_> = (0..50).map(|_| Box::pin(flushes.turn("many"))).collect();
        assert!(many.iter_mut().all(|turn| turn.now_or_never().is_none()));
        let mut one = Box::pin(flushes.turn("one"));
        assert!(futures::poll!(one.as_mut()).is_pending());
        // Only what is polled takes its turn: those who wait are dropped, one is next all the same.
        std::thread::sleep(Duration::from_millis(2));
        drop(first);
        let turn = tokio::time::timeout(Duration::from_secs(10), one).await.unwrap();
        assert!(turn.is_ok(), "it comes before all of the others");
    }

    #[tokio::test]
    async fn who_gives_up_leaves_the_turn_to_the_next() {
        let flushes = Flushes::new(1000, STALLED, &Env::real());
        let first = flushes.turn("a").await.unwrap();
        let gone: Vec<_> = (0..10_000).map(|n| (n, Box::pin(flushes.turn("a")))).collect();
        for (_, mut turn) in gone {
            assert!(futures::poll!(turn.as_mut()).is_pending());
        }
        let mut granted = Box::pin(flushes.turn("b"));
        assert!(futures::poll!(granted.as_mut()).is_pending());
        drop(first);
        drop(granted);
        let last = tokio::time::timeout(Duration::from_secs(10), flushes.turn("c")).await.unwrap();
        assert!(last.is_ok());
    }

    #[tokio::test]
    async fn a_flush_that_stalls_is_not_waited_for() {
        let flushes = Flushes::new(1000, Duration::from_millis(30), &Env::real());
        let stalled = flushes.turn("a").await.unwrap();
        let next = tokio::time::timeout(Duration::from_secs(10), flushes.turn("b")).await.unwrap().unwrap();
        // Its late end ends nobody else's turn.
        drop(stalled);
        assert_eq!(flushes.state().running.as_ref().map(|running| running.number), Some(next.number));
    }
}
