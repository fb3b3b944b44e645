//! CPU scheduling of guests under contention: shares by weight, as cgroups' `cpu.shares` and `cpu.weight`.
//!
//! Each container has a virtual time: CPU time divided by weight. Containers of a namespace without a CPU request share one
//! weight, so that a thousand of them leave another namespace as much as one would. A guest that is ahead of another runnable
//! one waits, and the waiting guest with the least virtual time goes first. The scheduler is work-conserving: without a guest
//! that is behind, the waiting ones continue. Without contention a poll costs one read of a flag ([`CpuScheduler::contended`]).
//!
//! The guests' runtime runs tasks in the order in which they became ready and doesn't report those still queued. So a guest
//! that is ahead yields, and a separate task ([`dispatch`]), which requeues itself at the end of the run queue each time,
//! grants the next one: by then every ready task has had its chance to start. A guest that was interrupted in its work is known
//! to return, and is waited for.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use futures::task::AtomicWaker;
use machinery_env::Env;
use tokio::sync::Notify;

use super::cpu::CpuMeter;
use super::epoch::CONTENDED_TICKS_PER_TICK;

/// The weight at which virtual time equals CPU time: that of one core (upstream's `SharesPerCPU`).
const CORE_WEIGHT: u64 = 1024;
/// Virtual time that a container may be ahead: less than a slice of one with the weight of a core.
const SLACK: Duration = Duration::from_millis(1);
/// A container that has not requested CPU for this long is inactive. Longer than a slice.
const ACTIVE_FOR: Duration = Duration::from_millis(20);
/// A container that has not requested CPU for this long is removed, and restarts at the others' virtual time.
const REMOVED_AFTER: Duration = Duration::from_secs(10);
/// Minimum number of members for a sweep.
const SWEEP_MIN: usize = 64;
/// Ticks in a row with guests on all threads that start contention.
const CONTENTION_TICKS: u32 = 4;
/// Excess of short ticks without over those with all threads busy that ends contention: twice the time.
const CALM_TICKS: u32 = 2 * CONTENTION_TICKS * CONTENDED_TICKS_PER_TICK;

/// A container's input to the queue.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) id: u64,
    pub(crate) weight: u64,
    /// Its total CPU time.
    pub(crate) used: Duration,
    /// The namespace whose containers share one weight with it.
    pub(crate) weight_group: Option<Arc<str>>,
}

/// Scheduling state of one container.
struct Member<W> {
    weight: u64,
    weight_group: Option<Arc<str>>,
    virtual_time: Duration,
    /// CPU time that its virtual time includes.
    used: Duration,
    /// Time of its last request.
    requested_at: Duration,
    /// The last round in which it requested or ran: most likely it will return.
    round: u64,
    /// Interrupted guests, which return as soon as a thread polls them.
    ready: usize,
    waiting: VecDeque<W>,
}

/// The run queue of containers. Pure.
pub(crate) struct Queue<W> {
    members: HashMap<u64, Member<W>>,
    /// Active containers by virtual time.
    order: BTreeSet<(Duration, u64)>,
    /// Number of ordered containers that share a weight, by namespace.
    sharing: HashMap<Arc<str>, usize>,
    /// Time of the last removal of inactive containers from the order.
    inactive_removed_at: Duration,
    /// The lower bound of active virtual times: a returning container starts here, without credit.
    floor: Duration,
    /// Incremented each time that all ready guests have had their chance.
    round: u64,
    /// Number of members at which long inactive ones are removed.
    sweep_at: usize,
}

/// Result of [`Queue::next`].
pub(crate) enum NextWaiter<W> {
    /// Resume this waiter.
    Resume(W),
    /// A container that is behind requested since; the next round decides.
    Retry,
    /// A container that is behind is about to request.
    Wait,
    /// The queue is empty.
    Empty,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self {
            members: HashMap::new(),
            order: BTreeSet::new(),
            sharing: HashMap::new(),
            inactive_removed_at: Duration::ZERO,
            floor: Duration::ZERO,
            round: 0,
            sweep_at: SWEEP_MIN,
        }
    }
}

impl<W> Member<W> {
    fn is_active(&self, now: Duration) -> bool {
        !self.waiting.is_empty() || now.saturating_sub(self.requested_at) <= ACTIVE_FOR
    }
}

impl<W> Queue<W> {
    /// Requests CPU for a guest of a container. Returns whether it may run; otherwise queues the value of `waiter`.
    /// `again`: the guest was interrupted before.
    pub(crate) fn request(&mut self, who: &Container, again: bool, now: Duration, waiter: impl FnOnce() -> W) -> bool {
        let Container { id, weight, used, ref weight_group } = *who;
        if self.members.len() >= self.sweep_at {
            self.sweep(now);
        }
        if now.saturating_sub(self.inactive_removed_at) > ACTIVE_FOR {
            self.remove_inactive(now);
        }
        self.remove_ordered(id);
        let (floor, round) = (self.floor, self.round);
        let member = self.members.entry(id).or_insert_with(|| Member {
            weight,
            weight_group: None,
            virtual_time: floor,
            used,
            requested_at: now,
            round,
            ready: 0,
            waiting: VecDeque::new(),
        });
        member.ready = member.ready.saturating_sub(usize::from(again));
        // Both may have changed.
        member.weight = weight.max(1);
        member.weight_group.clone_from(weight_group);
        if !member.is_active(now) {
            // Uncontended CPU time is not charged.
            member.used = used;
            member.virtual_time = member.virtual_time.max(floor);
        }
        (member.requested_at, member.round) = (now, round);
        member.pass(used, 1 + sharing(&self.sharing, weight_group.as_ref()));
        let own = member.virtual_time;
        let least = self.least(now);
        self.insert_ordered(id);
        self.floor = self.floor.max(least.map_or(own, |least| least.min(own)));
        let Some(member) = self.members.get_mut(&id) else { return true };
        let granted = member.waiting.is_empty() && least.is_none_or(|least| own <= least + SLACK);
        if !granted {
            member.waiting.push_back(waiter());
        }
        granted
    }

    /// The least virtual time of active containers. Inactive ones leave the order until their next request.
    fn least(&mut self, now: Duration) -> Option<Duration> {
        while let Some(&(virtual_time, id)) = self.order.first() {
            if self.members.get(&id).is_some_and(|member| member.is_active(now)) {
                return Some(virtual_time);
            }
            self.remove_ordered(id);
        }
        None
    }

    /// Adds a member to the order.
    fn insert_ordered(&mut self, id: u64) {
        let Some(member) = self.members.get(&id) else { return };
        if self.order.insert((member.virtual_time, id))
            && let Some(namespace) = &member.weight_group
        {
            *self.sharing.entry(namespace.clone()).or_default() += 1;
        }
    }

    /// Removes a member from the order, if present.
    fn remove_ordered(&mut self, id: u64) {
        let Some(member) = self.members.get(&id) else { return };
        if self.order.remove(&(member.virtual_time, id))
            && let Some(namespace) = &member.weight_group
            && let Some(count) = self.sharing.get_mut(namespace)
        {
            *count -= 1;
            if *count == 0 {
                self.sharing.remove(namespace);
            }
        }
    }

    /// Removes inactive containers from the order: their part goes to the others of their shared weight.
    fn remove_inactive(&mut self, now: Duration) {
        self.inactive_removed_at = now;
        let members = &self.members;
        let idle = |id: &u64| members.get(id).is_some_and(|member| !member.is_active(now));
        let idle: Vec<u64> = self.order.iter().map(|(_, id)| *id).filter(idle).collect();
        idle.into_iter().for_each(|id| self.remove_ordered(id));
    }

    fn sweep(&mut self, now: Duration) {
        self.remove_inactive(now);
        self.members
            .retain(|_, member| !member.waiting.is_empty() || now.saturating_sub(member.requested_at) < REMOVED_AFTER);
        self.sweep_at = SWEEP_MIN.max(2 * self.members.len());
    }

    /// Charges a run of a guest. `interrupted`: it will return. Returns whether the queue waits for its return.
    pub(crate) fn charge_run(&mut self, who: &Container, interrupted: bool) -> bool {
        self.remove_ordered(who.id);
        let Some(member) = self.members.get_mut(&who.id) else { return false };
        member.pass(who.used, 1 + sharing(&self.sharing, member.weight_group.as_ref()));
        member.round = self.round;
        member.ready += usize::from(interrupted);
        self.insert_ordered(who.id);
        interrupted
    }

    /// Cancels the expected return of an interrupted guest.
    pub(crate) fn cancel_return(&mut self, id: u64) {
        if let Some(member) = self.members.get_mut(&id) {
            member.ready = member.ready.saturating_sub(1);
        }
    }

    /// The next waiter to resume. Every ready guest has requested since the last call.
    pub(crate) fn next(&mut self, now: Duration) -> NextWaiter<W> {
        let round = self.round;
        self.round += 1;
        let (mut came, mut comes) = (None, None);
        for (virtual_time, id) in &self.order {
            let Some(member) = self.members.get_mut(id) else { continue };
            if member.waiting.is_empty() {
                // The least of this round's requests and runs, and of those about to request: no waiter passes them.
                comes = comes.or((member.ready > 0 && member.is_active(now)).then_some(*virtual_time));
                came = came.or((member.round == round).then_some(*virtual_time));
                continue;
            }
            let is_behind = |other: Option<Duration>| other.is_some_and(|other| other + SLACK < *virtual_time);
            if is_behind(comes) {
                return NextWaiter::Wait;
            }
            if is_behind(came) {
                return NextWaiter::Retry;
            }
            return member.waiting.pop_front().map_or(NextWaiter::Empty, NextWaiter::Resume);
        }
        NextWaiter::Empty
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Number of ordered containers that share the weight of a namespace.
fn sharing(all: &HashMap<Arc<str>, usize>, namespace: Option<&Arc<str>>) -> usize {
    namespace.and_then(|namespace| all.get(namespace)).copied().unwrap_or(0)
}

impl<W> Member<W> {
    /// Advances its virtual time to a CPU time; `together`: the number of containers on its weight.
    fn pass(&mut self, used: Duration, together: usize) {
        let by_weight = u128::from(CORE_WEIGHT) * together as u128;
        let more = used.saturating_sub(self.used).as_nanos() * by_weight / u128::from(self.weight);
        self.virtual_time += Duration::from_nanos(u64::try_from(more).unwrap_or(u64::MAX));
        self.used = self.used.max(used);
    }
}

/// A guest that waits for CPU.
#[derive(Default)]
pub(crate) struct Waiter {
    granted: AtomicBool,
    cancelled: AtomicBool,
    waker: AtomicWaker,
}

/// The CPU scheduler of all guests of a process.
pub(crate) struct CpuScheduler {
    threads: usize,
    contended: AtomicBool,
    /// Waiting guests, and granted ones that have not started.
    waiting: AtomicUsize,
    granted_count: AtomicUsize,
    queue: Mutex<Queue<Arc<Waiter>>>,
    changed: Notify,
}

/// A queued CPU request, cancelled on drop.
pub(crate) struct CpuTicket {
    scheduler: Arc<CpuScheduler>,
    waiter: Arc<Waiter>,
}

impl CpuTicket {
    /// Whether it was granted.
    pub(crate) fn is_granted(&self, waker: &Waker) -> bool {
        self.waiter.waker.register(waker);
        self.waiter.granted.load(Ordering::Acquire)
    }
}

impl Drop for CpuTicket {
    fn drop(&mut self) {
        self.waiter.cancelled.store(true, Ordering::SeqCst);
        if self.waiter.granted.swap(false, Ordering::SeqCst) {
            self.scheduler.granted_count.fetch_sub(1, Ordering::SeqCst);
            // It may be dropped without having run.
            self.scheduler.changed.notify_one();
        }
    }
}

impl CpuScheduler {
    pub(crate) fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self {
            threads,
            contended: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            granted_count: AtomicUsize::new(0),
            queue: Mutex::default(),
            changed: Notify::new(),
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue<Arc<Waiter>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether guests want more CPU than there is.
    pub(crate) fn contended(&self) -> bool {
        self.contended.load(Ordering::Relaxed)
    }

    /// Requests CPU; `None`: granted at once. `again`: interrupted before, as returned by [`CpuScheduler::charge_run`].
    pub(crate) fn request(self: &Arc<Self>, meter: &CpuMeter, again: bool, waker: &Waker) -> Option<CpuTicket> {
        let mut waiter = None;
        let granted = self.queue().request(&meter.container(), again, meter.now(), || {
            let new = Arc::new(Waiter::default());
            new.waker.register(waker);
            waiter = Some(new.clone());
            self.waiting.fetch_add(1, Ordering::SeqCst);
            new
        });
        if !granted || self.has_waiters() {
            self.changed.notify_one();
        }
        waiter.map(|waiter| CpuTicket { scheduler: self.clone(), waiter })
    }

    fn has_waiters(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Charges a guest's run. Returns whether the scheduler waits for its next [`CpuScheduler::request`].
    pub(crate) fn charge_run(&self, meter: &CpuMeter, interrupted: bool) -> bool {
        if !self.contended() && !self.has_waiters() {
            return false;
        }
        let expected_back = self.queue().charge_run(&meter.container(), interrupted);
        self.changed.notify_one();
        expected_back
    }

    /// Cancels the return of an interrupted guest that [`CpuScheduler::charge_run`] expects.
    pub(crate) fn cancel_return(&self, meter: &CpuMeter) {
        self.queue().cancel_return(meter.container().id);
        self.changed.notify_one();
    }

    /// A guest yields its thread to another one.
    pub(crate) fn yielded(&self) {
        if self.has_waiters() {
            self.changed.notify_one();
        }
    }

    /// Updates contention at each tick from the number of running guests.
    pub(crate) fn tick(&self, running: usize, ticks: &mut u32) {
        let full = running >= self.threads;
        let contended = self.contended();
        *ticks = if full { (*ticks + 1).min(CALM_TICKS) } else { ticks.saturating_sub(1) };
        let waiting = self.has_waiters();
        if !contended && *ticks >= CONTENTION_TICKS {
            *ticks = CALM_TICKS;
            self.contended.store(true, Ordering::Relaxed);
        } else if contended && *ticks == 0 && !waiting {
            self.contended.store(false, Ordering::Relaxed);
            let mut queue = self.queue();
            if !self.has_waiters() {
                queue.clear();
            }
        }
        if waiting {
            self.changed.notify_one();
        }
    }

    /// Grants the next waiter if a thread is free. Returns whether to try again in the next round.
    fn advance(&self, running: usize, now: Duration) -> bool {
        if running + self.granted_count.load(Ordering::SeqCst) >= self.threads {
            return false;
        }
        let mut queue = self.queue();
        match queue.next(now) {
            NextWaiter::Empty | NextWaiter::Wait => false,
            NextWaiter::Retry => true,
            NextWaiter::Resume(waiter) => {
                drop(queue);
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                if !waiter.cancelled.load(Ordering::Acquire) {
                    self.granted_count.fetch_add(1, Ordering::SeqCst);
                    waiter.granted.store(true, Ordering::SeqCst);
                    // It may have left between the two operations without seeing the grant.
                    if waiter.cancelled.load(Ordering::SeqCst) && waiter.granted.swap(false, Ordering::SeqCst) {
                        self.granted_count.fetch_sub(1, Ordering::SeqCst);
                    }
                    waiter.waker.wake();
                }
                true
            }
        }
    }
}

/// Requeues the task at the end of the runtime's run queue. Unlike `yield_now`, it doesn't wait for an IO poll.
async fn requeue_task() {
    let mut been = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut been, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Grants waiting guests for as long as the runtime lives. `running`: the number of running guests.
pub(crate) async fn dispatch(scheduler: Arc<CpuScheduler>, env: Env, running: impl Fn() -> usize) {
    loop {
        scheduler.changed.notified().await;
        loop {
            requeue_task().await;
            if !scheduler.advance(running(), env.elapsed()) {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests;
