//! Scheduler of disk flushes: one at a time, for a part of each second, shared by namespaces by flush time. A namespace with a
//! hundred writers delays another's single one by the running flush and the pause after it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use machinery_env::Env;
use runtime_api::TokenBucket;
use runtime_api::disk::DiskBusy;
use tokio::sync::oneshot;

use super::disk_threads::LATE_AFTER;
use crate::bounds::fair_queue::FairQueue;

/// Provisional charge of a running flush: its duration on a fast disk.
const USUAL: Duration = Duration::from_millis(10);

/// The flush scheduler of all guests.
pub(crate) struct Flushes {
    env: Env,
    stalled_after: Duration,
    state: Mutex<FlushState>,
}

struct FlushState {
    /// Time budget of all flushes per second.
    time: TokenBucket,
    queue: FairQueue<oneshot::Sender<u64>>,
    next: u64,
    /// The running flush.
    running: Option<RunningFlush>,
    /// A task waits for the pause after a flush.
    paused: bool,
}

struct RunningFlush {
    number: u64,
    namespace: String,
    since: Duration,
}

/// Permission to flush, released on drop.
pub(crate) struct FlushPermit {
    all: Arc<Flushes>,
    number: u64,
}

/// A queued flush; dropping it leaves no entry.
struct QueuedFlush {
    all: Arc<Flushes>,
    receiver: oneshot::Receiver<u64>,
}

impl Drop for QueuedFlush {
    fn drop(&mut self) {
        self.receiver.close();
        // The grant may have arrived meanwhile.
        if let Ok(number) = self.receiver.try_recv() {
            self.all.end(number);
        }
    }
}

impl Drop for FlushPermit {
    fn drop(&mut self) {
        self.all.end(self.number);
    }
}

impl Flushes {
    /// `millis`: time budget of all flushes per second. A flush longer than `stalled_after` no longer blocks the others.
    pub(crate) fn new(millis: u64, stalled_after: Duration, env: &Env) -> Arc<Self> {
        let state = FlushState {
            time: TokenBucket::new(millis, env.elapsed()),
            queue: FairQueue::new(1, USUAL),
            next: 0,
            running: None,
            paused: false,
        };
        Arc::new(Self { env: env.clone(), stalled_after, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, FlushState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// Other flushes took too long.
    pub(crate) async fn acquire(self: &Arc<Self>, namespace: &str) -> Result<FlushPermit, DiskBusy> {
        let (sender, receiver) = oneshot::channel();
        self.state().queue.push(namespace, sender);
        let mut waiting = QueuedFlush { all: self.clone(), receiver };
        self.grant();
        let turn = async {
            loop {
                let stalls_in = self.pass_stalled();
                tokio::select! {
                    biased;
                    number = &mut waiting.receiver => return number,
                    () = self.env.sleep(stalls_in) => {}
                }
            }
        };
        match self.env.timeout(LATE_AFTER, turn).await {
            Ok(Ok(number)) => Ok(FlushPermit { all: self.clone(), number }),
            Ok(Err(_)) | Err(_) => Err(DiskBusy),
        }
    }

    /// Grants the next flush once the budget permits; the flush is chosen then.
    fn grant(self: &Arc<Self>) {
        let now = self.env.elapsed();
        let mut state = self.state();
        if state.paused || state.running.is_some() {
            return;
        }
        if let Some(rest) = state.time.delay(now)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            state.paused = true;
            let all = self.clone();
            runtime.spawn(async move {
                all.env.sleep(rest).await;
                all.state().paused = false;
                all.grant();
            });
            return;
        }
        while let Some((namespace, sender)) = state.queue.pop() {
            let number = state.next;
            state.next += 1;
            if sender.send(number).is_ok() {
                state.running = Some(RunningFlush { number, namespace, since: now });
                return;
            }
            state.queue.release(&namespace, Duration::ZERO);
        }
    }

    /// Ends a flush. No effect if it stalled: others have continued since.
    fn end(self: &Arc<Self>, number: u64) {
        self.finish(|running, _| running.number == number);
    }

    /// Passes on the turn of a stalled flush; returns the delay until the next check.
    fn pass_stalled(self: &Arc<Self>) -> Duration {
        self.finish(|running, now| running.since + self.stalled_after <= now);
        let state = self.state();
        let stalls_at = state.running.as_ref().map(|running| running.since + self.stalled_after);
        stalls_at.map_or(self.stalled_after, |at| at.saturating_sub(self.env.elapsed()).max(Duration::from_millis(1)))
    }

    fn finish(self: &Arc<Self>, which: impl FnOnce(&RunningFlush, Duration) -> bool) {
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
        let first = flushes.acquire("many").await.unwrap();
        let mut many: Vec<_> = (0..50).map(|_| Box::pin(flushes.acquire("many"))).collect();
        assert!(many.iter_mut().all(|turn| turn.now_or_never().is_none()));
        let mut one = Box::pin(flushes.acquire("one"));
        assert!(futures::poll!(one.as_mut()).is_pending());
        // Waiters are not polled and drop their grant: another one is next all the same.
        std::thread::sleep(Duration::from_millis(2));
        drop(first);
        let turn = flushes.env.timeout(Duration::from_secs(10), one).await.unwrap();
        assert!(turn.is_ok(), "it comes before all of the others");
    }

    #[tokio::test]
    async fn an_abandoned_wait_passes_its_turn_on() {
        let flushes = Flushes::new(1000, STALLED, &Env::real());
        let first = flushes.acquire("a").await.unwrap();
        let gone: Vec<_> = (0..10_000).map(|n| (n, Box::pin(flushes.acquire("a")))).collect();
        for (_, mut turn) in gone {
            assert!(futures::poll!(turn.as_mut()).is_pending());
        }
        let mut granted = Box::pin(flushes.acquire("b"));
        assert!(futures::poll!(granted.as_mut()).is_pending());
        drop(first);
        drop(granted);
        let last = flushes.env.timeout(Duration::from_secs(10), flushes.acquire("c")).await.unwrap();
        assert!(last.is_ok());
    }

    #[tokio::test]
    async fn a_flush_that_stalls_is_not_waited_for() {
        let flushes = Flushes::new(1000, Duration::from_millis(30), &Env::real());
        let stalled = flushes.acquire("a").await.unwrap();
        let next = flushes.env.timeout(Duration::from_secs(10), flushes.acquire("b")).await.unwrap().unwrap();
        // Its late end ends no other turn.
        drop(stalled);
        assert_eq!(flushes.state().running.as_ref().map(|running| running.number), Some(next.number));
    }
}
