//! CPU where guests together want more than there is: shares by weight, as cgroups' `cpu.shares` and `cpu.weight`.
//!
//! Each container has a virtual time: its CPU time by its weight. Who is ahead of another that wants to run waits for its
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
/// So many ticks in a row with guests on all threads, and there is too little CPU; as many without, and there is enough.
const CROWDED_TICKS: u32 = 4;

/// A container, as the queue knows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Container {
    pub(crate) id: u64,
    pub(crate) weight: u64,
    /// Its CPU time until now.
    pub(crate) used: Duration,
}

/// One container's place.
struct Member<W> {
    weight: u64,
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
        Self { members: HashMap::new(), order: BTreeSet::new(), floor: Duration::ZERO, round: 0, sweep_at: SWEEP_MIN }
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
        let Container { id, weight, used } = *who;
        if self.members.len() >= self.sweep_at {
            self.sweep(now);
        }
        let (floor, round) = (self.floor, self.round);
        let member = self.members.entry(id).or_insert_with(|| Member {
            weight: weight.max(1),
            virtual_time: floor,
            used,
            came_at: now,
            round,
            ready: 0,
            waiting: VecDeque::new(),
        });
        member.ready = member.ready.saturating_sub(usize::from(again));
        self.order.remove(&(member.virtual_time, id));
        if !member.is_active(now) {
            // What it used meanwhile was nobody else's loss.
            member.used = used;
            member.virtual_time = member.virtual_time.max(floor);
        }
        (member.came_at, member.round) = (now, round);
        member.pass(used);
        let own = member.virtual_time;
        let least = self.least(now);
        self.order.insert((own, id));
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
            self.order.pop_first();
        }
        None
    }

    fn sweep(&mut self, now: Duration) {
        let order = &mut self.order;
        self.members.retain(|id, member| {
            let stays = !member.waiting.is_empty() || now.saturating_sub(member.came_at) < FORGOTTEN_AFTER;
            if !stays {
                order.remove(&(member.virtual_time, *id));
            }
            stays
        });
        self.sweep_at = SWEEP_MIN.max(2 * self.members.len());
    }

    /// A guest of that container has run. `interrupted`: it comes again. Answers whether that is minded.
    pub(crate) fn ran(&mut self, who: &Container, interrupted: bool) -> bool {
        let Some(member) = self.members.get_mut(&who.id) else { return false };
        self.order.remove(&(member.virtual_time, who.id));
        member.pass(who.used);
        member.round = self.round;
        member.ready += usize::from(interrupted);
        self.order.insert((member.virtual_time, who.id));
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

impl<W> Member<W> {
    fn pass(&mut self, used: Duration) {
        let more = used.saturating_sub(self.used).as_nanos() * u128::from(WEIGHT_OF_A_CORE) / u128::from(self.weight);
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
        *ticks = if full { (*ticks + 1).min(2 * CROWDED_TICKS) } else { ticks.saturating_sub(1) };
        let crowded = self.crowded();
        let waiting = self.anybody_waits();
        if !crowded && *ticks >= CROWDED_TICKS {
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
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_millis(2);

    /// A container on the played machine: so many guests that never have enough, with turns of that length.
    struct Hog {
        weight: u64,
        guests: usize,
        turn: Duration,
    }

    /// What stands in the runtime's line.
    enum Task {
        Guest(usize),
        /// One that was let go on.
        Granted(usize),
        Dispatcher,
    }

    /// Plays `threads` whose tasks run in the order of one line, for `time`: CPU time that each container got.
    fn play(threads: usize, hogs: &[Hog], time: Duration) -> Vec<Duration> {
        let mut queue: Queue<usize> = Queue::default();
        let mut used = vec![Duration::ZERO; hogs.len()];
        let mut line: VecDeque<Task> = hogs
            .iter()
            .enumerate()
            .flat_map(|(id, hog)| (0..hog.guests).map(move |_| Task::Guest(id)))
            .chain([Task::Dispatcher])
            .collect();
        // By thread: what runs on it, and when that ends.
        let mut running: Vec<Option<(usize, Duration)>> = vec![None; threads];
        let container = |id: usize, used: Duration| Container { id: id as u64, weight: hogs[id].weight, used };
        let mut now = Duration::ZERO;
        while now < time {
            let Some(free) = running.iter().position(Option::is_none) else {
                now = running.iter().flatten().map(|(_, ends)| *ends).min().unwrap();
                for slot in &mut running {
                    if let Some((id, ends)) = *slot
                        && ends <= now
                    {
                        used[id] += hogs[id].turn;
                        queue.ran(&container(id, used[id]), true);
                        line.push_back(Task::Guest(id));
                        *slot = None;
                    }
                }
                continue;
            };
            let goes = match line.pop_front().expect("the dispatcher is always there") {
                Task::Guest(id) => queue.come(&container(id, used[id]), true, now, || id).then_some(id),
                Task::Granted(id) => Some(id),
                Task::Dispatcher => {
                    if let Next::Go(id) = queue.next(now) {
                        line.push_front(Task::Granted(id));
                    }
                    line.push_back(Task::Dispatcher);
                    // Looking costs a little, so that time passes also where nobody can run.
                    now += Duration::from_micros(1);
                    None
                }
            };
            running[free] = goes.map(|id| (id, now + hogs[id].turn));
        }
        used
    }

    fn hog(weight: u64, guests: usize) -> Hog {
        Hog { weight, guests, turn: TURN }
    }

    fn ratio(used: &[Duration]) -> f64 {
        used[0].as_secs_f64() / used[1].as_secs_f64()
    }

    #[test]
    fn cpu_goes_by_weight_whatever_the_number_of_guests() {
        let time = Duration::from_secs(20);
        for (threads, weights, guests, wanted) in [
            (1, [1024, 1024], [64, 1], 1.0),
            (2, [1024, 1024], [64, 2], 1.0),
            (2, [3072, 1024], [4, 64], 3.0),
            (2, [512, 102], [3, 3], 5.0),
            (4, [1024, 2], [64, 64], 512.0),
        ] {
            let used = play(threads, &[hog(weights[0], guests[0]), hog(weights[1], guests[1])], time);
            let all: Duration = used.iter().sum();
            assert!(all > time * threads as u32 * 99 / 100, "{weights:?} {guests:?}: no core stands idle: {all:?}");
            let is = ratio(&used);
            assert!((wanted * 0.9..wanted * 1.1).contains(&is), "{weights:?} {guests:?}: {is}");
        }
    }

    #[test]
    fn what_one_cannot_use_is_the_others() {
        // One guest runs on one core at most, however heavy it is.
        let time = Duration::from_secs(10);
        let used = play(2, &[hog(8192, 1), hog(2, 8)], time);
        assert!(used.iter().all(|used| *used > time * 95 / 100), "{used:?}");
        // Nobody else: everything.
        let used = play(2, &[hog(2, 8)], time);
        assert!(used[0] > time * 2 * 99 / 100, "{used:?}");
    }

    #[test]
    fn short_turns_count_as_what_they_take() {
        let short = Hog { weight: 1024, guests: 64, turn: Duration::from_micros(50) };
        let used = play(2, &[short, hog(1024, 2)], Duration::from_secs(10));
        assert!((0.9..1.1).contains(&ratio(&used)), "{used:?}");
    }

    #[test]
    fn who_was_away_saves_nothing_up_and_is_not_behind_others_for_long() {
        let mut queue: Queue<u8> = Queue::default();
        let of = |id: u64, used: Duration| Container { id, weight: 1024, used };
        let (mut a, mut now) = (Duration::ZERO, Duration::ZERO);
        assert!(queue.come(&of(1, a), false, now, || 1));
        now += 2 * ACTIVE_FOR;
        for _ in 0..1000 {
            now += TURN;
            a += TURN;
            assert!(queue.come(&of(0, a), false, now, || 0), "nobody else is there");
        }
        // The other is back: it begins where the first one is.
        assert!(queue.come(&of(1, Duration::ZERO), false, now, || 1));
        queue.ran(&of(1, TURN), false);
        assert!(!queue.come(&of(1, TURN), false, now, || 1), "ahead by a turn");
        assert!(queue.come(&of(0, a), false, now, || 0));
        assert!(matches!(queue.next(now), Next::Later), "one who is behind came");
        assert!(queue.ran(&of(0, a), true));
        assert!(matches!(queue.next(now), Next::Wait), "it comes again");
        queue.leave(0);
        assert!(matches!(queue.next(now), Next::Go(1)), "it did not");
        assert!(matches!(queue.next(now), Next::Nobody));
        // One that never keeps its word holds nobody up for long.
        queue.ran(&of(0, a), true);
        assert!(!queue.come(&of(1, 2 * TURN), false, now, || 1));
        assert!(matches!(queue.next(now), Next::Wait));
        assert!(matches!(queue.next(now + 2 * ACTIVE_FOR), Next::Go(1)));
    }

    #[test]
    fn containers_that_are_gone_are_forgotten() {
        let mut queue: Queue<u8> = Queue::default();
        let mut now = Duration::ZERO;
        for id in 0..30_000 {
            now += TURN;
            queue.come(&Container { id, weight: 1024, used: Duration::ZERO }, false, now, || 0);
            queue.ran(&Container { id, weight: 1024, used: TURN }, false);
        }
        assert!(queue.members.len() < 20_000 && queue.order.len() < 20, "{}", queue.members.len());
    }
}
