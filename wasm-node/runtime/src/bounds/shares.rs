//! CPU where guests together want more than there is: shares by weight, as cgroups' `cpu.shares` and `cpu.weight`.
//!
//! Each container has a virtual time: its CPU time by its weight. Those of a namespace that ask for none of the CPU have one weight
//! together, so that a thousand of them leave another namespace's as much as one would. Who is ahead of another that wants to run waits for its
//! turn, and the one who is least ahead goes first. Nothing is kept free: as soon as nobody who is behind comes, whoever
//! waits goes on. While there is CPU for all of them nobody is asked, and a poll costs one look at a flag ([`Turns::crowded`]).
//!
//! The guests' runtime runs tasks in the order in which they became ready, and says nothing of those that it has not come to.
//! So a guest that is ahead stands aside, and a task of its own ([`dispatch`]), which goes to the end of that line each time,
//! lets the next one go on: by then all that were ready have had their chance to begin. Who was interrupted in the middle of
//! its work is known to come again, and is waited for.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use futures::task::AtomicWaker;
use machinery_env::Env;
use tokio::sync::Notify;

use super::cpu::CpuMeter;
use super::epoch::CROWDED_TICKS_OF_A_TICK;

/// The weight whose virtual time goes as fast as its CPU time: that of one core (upstream's `SharesPerCPU`).
const WEIGHT_OF_A_CORE: u64 = 1024;
/// How far ahead, of virtual time, a container may be: less than a turn of one with the weight of a core.
const SLACK: Duration = Duration::from_millis(1);
/// A container that has not come for so long wants nothing now. Longer than a turn.
const ACTIVE_FOR: Duration = Duration::from_millis(20);
/// A container that has not come for so long is forgotten, and begins where the others are.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
/// Fewer members than that are not worth a look.
const SWEEP_MIN: usize = 64;
/// So many ticks in a row with guests on all threads, and there is too little CPU.
const CROWDED_TICKS: u32 = 4;
/// So many of the shorter ticks more without than with, and there is enough again: twice the time.
const CALM_TICKS: u32 = 2 * CROWDED_TICKS * CROWDED_TICKS_OF_A_TICK;

/// A container, as the queue knows it.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) id: u64,
    pub(crate) weight: u64,
    /// Its CPU time until now.
    pub(crate) used: Duration,
    /// The namespace with whose others it shares its weight.
    pub(crate) shares_with: Option<Arc<str>>,
}

/// One container's place.
struct Member<W> {
    weight: u64,
    shares_with: Option<Arc<str>>,
    virtual_time: Duration,
    /// CPU time that its virtual time has seen.
    used: Duration,
    /// When it came last.
    came_at: Duration,
    /// The last round in which it came, or ran: most likely it comes again.
    round: u64,
    /// Guests that were interrupted, and come again as soon as a thread takes them up.
    ready: usize,
    waiting: VecDeque<W>,
}

/// Who goes next. Pure.
pub(crate) struct Queue<W> {
    members: HashMap<u64, Member<W>>,
    /// By virtual time: those that want to run, or did lately.
    order: BTreeSet<(Duration, u64)>,
    /// How many of them share a weight, by namespace.
    sharing: HashMap<Arc<str>, usize>,
    /// When those were looked for last that are in the order and want nothing any more.
    cleaned_at: Duration,
    /// What nobody who wants to run is behind: who comes back begins here, with nothing saved up.
    floor: Duration,
    /// Grows each time that all who were ready have had their chance.
    round: u64,
    /// At so many members those are forgotten that have not come for long.
    sweep_at: usize,
}

/// What [`Queue::next`] answers.
pub(crate) enum Next<W> {
    /// This one goes on.
    Go(W),
    /// One who is behind came since; in the next round more is known.
    Later,
    /// One who is behind is about to come.
    Wait,
    /// Nobody waits.
    Nobody,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self {
            members: HashMap::new(),
            order: BTreeSet::new(),
            sharing: HashMap::new(),
            cleaned_at: Duration::ZERO,
            floor: Duration::ZERO,
            round: 0,
            sweep_at: SWEEP_MIN,
        }
    }
}

impl<W> Member<W> {
    fn is_active(&self, now: Duration) -> bool {
        !self.waiting.is_empty() || now.saturating_sub(self.came_at) <= ACTIVE_FOR
    }
}

impl<W> Queue<W> {
    /// A guest of that container wants to run. Answers whether it may; else it waits, as what `waiter` makes. `again`: it
    /// was interrupted before.
    pub(crate) fn come(&mut self, who: &Container, again: bool, now: Duration, waiter: impl FnOnce() -> W) -> bool {
        let Container { id, weight, used, ref shares_with } = *who;
        if self.members.len() >= self.sweep_at {
            self.sweep(now);
        }
        if now.saturating_sub(self.cleaned_at) > ACTIVE_FOR {
            self.clean(now);
        }
        self.take_out(id);
        let (floor, round) = (self.floor, self.round);
        let member = self.members.entry(id).or_insert_with(|| Member {
            weight,
            shares_with: None,
            virtual_time: floor,
            used,
            came_at: now,
            round,
            ready: 0,
            waiting: VecDeque::new(),
        });
        member.ready = member.ready.saturating_sub(usize::from(again));
        // Either may have changed.
        member.weight = weight.max(1);
        member.shares_with.clone_from(shares_with);
        if !member.is_active(now) {
            // What it used meanwhile was nobody else's loss.
            member.used = used;
            member.virtual_time = member.virtual_time.max(floor);
        }
        (member.came_at, member.round) = (now, round);
        member.pass(used, 1 + sharing(&self.sharing, shares_with.as_ref()));
        let own = member.virtual_time;
        let least = self.least(now);
        self.put_in(id);
        self.floor = self.floor.max(least.map_or(own, |least| least.min(own)));
        let Some(member) = self.members.get_mut(&id) else { return true };
        let goes = member.waiting.is_empty() && least.is_none_or(|least| own <= least + SLACK);
        if !goes {
            member.waiting.push_back(waiter());
        }
        goes
    }

    /// The least virtual time of those that want to run. Who doesn't leaves the order, until it comes again.
    fn least(&mut self, now: Duration) -> Option<Duration> {
        while let Some(&(virtual_time, id)) = self.order.first() {
            if self.members.get(&id).is_some_and(|member| member.is_active(now)) {
                return Some(virtual_time);
            }
            self.take_out(id);
        }
        None
    }

    /// Puts a member into the order.
    fn put_in(&mut self, id: u64) {
        let Some(member) = self.members.get(&id) else { return };
        if self.order.insert((member.virtual_time, id))
            && let Some(namespace) = &member.shares_with
        {
            *self.sharing.entry(namespace.clone()).or_default() += 1;
        }
    }

    /// Takes a member out of the order, where it is there.
    fn take_out(&mut self, id: u64) {
        let Some(member) = self.members.get(&id) else { return };
        if self.order.remove(&(member.virtual_time, id))
            && let Some(namespace) = &member.shares_with
            && let Some(count) = self.sharing.get_mut(namespace)
        {
            *count -= 1;
            if *count == 0 {
                self.sharing.remove(namespace);
            }
        }
    }

    /// Takes those out of the order that want nothing any more: their part is the others' that they share it with.
    fn clean(&mut self, now: Duration) {
        self.cleaned_at = now;
        let members = &self.members;
        let idle = |id: &u64| members.get(id).is_some_and(|member| !member.is_active(now));
        let idle: Vec<u64> = self.order.iter().map(|(_, id)| *id).filter(idle).collect();
        idle.into_iter().for_each(|id| self.take_out(id));
    }

    fn sweep(&mut self, now: Duration) {
        self.clean(now);
        self.members
            .retain(|_, member| !member.waiting.is_empty() || now.saturating_sub(member.came_at) < FORGOTTEN_AFTER);
        self.sweep_at = SWEEP_MIN.max(2 * self.members.len());
    }

    /// A guest of that container has run. `interrupted`: it comes again. Answers whether that is minded.
    pub(crate) fn ran(&mut self, who: &Container, interrupted: bool) -> bool {
        self.take_out(who.id);
        let Some(member) = self.members.get_mut(&who.id) else { return false };
        member.pass(who.used, 1 + sharing(&self.sharing, member.shares_with.as_ref()));
        member.round = self.round;
        member.ready += usize::from(interrupted);
        self.put_in(who.id);
        interrupted
    }

    /// A guest that was interrupted doesn't come now.
    pub(crate) fn leave(&mut self, id: u64) {
        if let Some(member) = self.members.get_mut(&id) {
            member.ready = member.ready.saturating_sub(1);
        }
    }

    /// Who goes next of those that wait. All who were ready have come since the last call.
    pub(crate) fn next(&mut self, now: Duration) -> Next<W> {
        let round = self.round;
        self.round += 1;
        let (mut came, mut comes) = (None, None);
        for (virtual_time, id) in &self.order {
            let Some(member) = self.members.get_mut(id) else { continue };
            if member.waiting.is_empty() {
                // Those who came or ran in this round, and those who are about to come: nobody who waits passes them.
                comes = comes.or((member.ready > 0 && member.is_active(now)).then_some(*virtual_time));
                came = came.or((member.round == round).then_some(*virtual_time));
                continue;
            }
            let is_behind = |other: Option<Duration>| other.is_some_and(|other| other + SLACK < *virtual_time);
            if is_behind(comes) {
                return Next::Wait;
            }
            if is_behind(came) {
                return Next::Later;
            }
            return member.waiting.pop_front().map_or(Next::Nobody, Next::Go);
        }
        Next::Nobody
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// How many of the order share the weight of that namespace.
fn sharing(all: &HashMap<Arc<str>, usize>, namespace: Option<&Arc<str>>) -> usize {
    namespace.and_then(|namespace| all.get(namespace)).copied().unwrap_or(0)
}

impl<W> Member<W> {
    /// Its CPU time is that much by now; so many have its weight together with it.
    fn pass(&mut self, used: Duration, together: usize) {
        let by_weight = u128::from(WEIGHT_OF_A_CORE) * together as u128;
        let more = used.saturating_sub(self.used).as_nanos() * by_weight / u128::from(self.weight);
        self.virtual_time += Duration::from_nanos(u64::try_from(more).unwrap_or(u64::MAX));
        self.used = self.used.max(used);
    }
}

/// A guest that waits for its turn.
#[derive(Default)]
pub(crate) struct Waiter {
    goes: AtomicBool,
    gone: AtomicBool,
    waker: AtomicWaker,
}

/// The turns of all guests of a process.
pub(crate) struct Turns {
    threads: usize,
    crowded: AtomicBool,
    /// Guests that wait, and those that may go on and have not begun.
    waiting: AtomicUsize,
    going: AtomicUsize,
    queue: Mutex<Queue<Arc<Waiter>>>,
    changed: Notify,
}

/// A place in the line, until it is dropped.
pub(crate) struct Turn {
    turns: Arc<Turns>,
    waiter: Arc<Waiter>,
}

impl Turn {
    /// Whether it has come.
    pub(crate) fn has_come(&self, waker: &Waker) -> bool {
        self.waiter.waker.register(waker);
        self.waiter.goes.load(Ordering::Acquire)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.waiter.gone.store(true, Ordering::SeqCst);
        if self.waiter.goes.swap(false, Ordering::SeqCst) {
            self.turns.going.fetch_sub(1, Ordering::SeqCst);
            // It may be gone without having run.
            self.turns.changed.notify_one();
        }
    }
}

impl Turns {
    pub(crate) fn new(threads: usize) -> Arc<Self> {
        Arc::new(Self {
            threads,
            crowded: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            going: AtomicUsize::new(0),
            queue: Mutex::default(),
            changed: Notify::new(),
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue<Arc<Waiter>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether guests want more CPU than there is.
    pub(crate) fn crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    /// Asks for leave to run: none where it is given at once. `again`: it was interrupted, as [`Turns::ran`] answered.
    pub(crate) fn ask(self: &Arc<Self>, meter: &CpuMeter, again: bool, waker: &Waker) -> Option<Turn> {
        let mut waiter = None;
        let goes = self.queue().come(&meter.container(), again, meter.now(), || {
            let new = Arc::new(Waiter::default());
            new.waker.register(waker);
            waiter = Some(new.clone());
            self.waiting.fetch_add(1, Ordering::SeqCst);
            new
        });
        if !goes || self.anybody_waits() {
            self.changed.notify_one();
        }
        waiter.map(|waiter| Turn { turns: self.clone(), waiter })
    }

    fn anybody_waits(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// A guest has run, and its use is counted. Answers whether its next [`Turns::ask`] is waited for.
    pub(crate) fn ran(&self, meter: &CpuMeter, interrupted: bool) -> bool {
        if !self.crowded() && !self.anybody_waits() {
            return false;
        }
        let minded = self.queue().ran(&meter.container(), interrupted);
        self.changed.notify_one();
        minded
    }

    /// What was interrupted doesn't come now, contrary to what [`Turns::ran`] was told.
    pub(crate) fn leave(&self, meter: &CpuMeter) {
        self.queue().leave(meter.container().id);
        self.changed.notify_one();
    }

    /// A guest stands aside: its thread is somebody else's meanwhile.
    pub(crate) fn stood_aside(&self) {
        if self.anybody_waits() {
            self.changed.notify_one();
        }
    }

    /// At each tick: how many guests run.
    pub(crate) fn tick(&self, running: usize, ticks: &mut u32) {
        let full = running >= self.threads;
        let crowded = self.crowded();
        *ticks = if full { (*ticks + 1).min(CALM_TICKS) } else { ticks.saturating_sub(1) };
        let waiting = self.anybody_waits();
        if !crowded && *ticks >= CROWDED_TICKS {
            *ticks = CALM_TICKS;
            self.crowded.store(true, Ordering::Relaxed);
        } else if crowded && *ticks == 0 && !waiting {
            self.crowded.store(false, Ordering::Relaxed);
            let mut queue = self.queue();
            if !self.anybody_waits() {
                queue.clear();
            }
        }
        if waiting {
            self.changed.notify_one();
        }
    }

    /// Lets the next one go on, where a thread is free for it. Answers whether to look again in the next round.
    fn advance(&self, running: usize, now: Duration) -> bool {
        if running + self.going.load(Ordering::SeqCst) >= self.threads {
            return false;
        }
        let mut queue = self.queue();
        match queue.next(now) {
            Next::Nobody | Next::Wait => false,
            Next::Later => true,
            Next::Go(waiter) => {
                drop(queue);
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                if !waiter.gone.load(Ordering::Acquire) {
                    self.going.fetch_add(1, Ordering::SeqCst);
                    waiter.goes.store(true, Ordering::SeqCst);
                    // It may have left between the two, and not have seen that it could go.
                    if waiter.gone.load(Ordering::SeqCst) && waiter.goes.swap(false, Ordering::SeqCst) {
                        self.going.fetch_sub(1, Ordering::SeqCst);
                    }
                    waiter.waker.wake();
                }
                true
            }
        }
    }
}

/// Goes to the end of the runtime's line. Not `yield_now`, which waits until the thread looks for IO.
async fn to_the_end_of_the_line() {
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

/// Lets guests go on in their turns, for as long as the runtime lives. `running`: how many guests run now.
pub(crate) async fn dispatch(turns: Arc<Turns>, env: Env, running: impl Fn() -> usize) {
    loop {
        turns.changed.notified().await;
        loop {
            to_the_end_of_the_line().await;
            if !turns.advance(running(), env.elapsed()) {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests;
