//! CPU shares on a simulated machine: threads, and guests with unlimited demand.

use super::*;

const TURN: Duration = Duration::from_millis(2);

/// A container on the simulated machine: guests with unlimited demand, and the length of their slices.
struct Hog {
    weight: u64,
    guests: usize,
    turn: Duration,
    namespace: Option<&'static str>,
}

/// A task in the runtime's run queue.
enum Task {
    Guest(usize),
    /// A guest that was granted.
    GrantCondition(usize),
    Dispatcher,
}

/// Simulates `threads` with one run queue for `time`; returns the CPU time of each container.
fn simulate(threads: usize, hogs: &[Hog], time: Duration) -> Vec<Duration> {
    let mut queue: Queue<usize> = Queue::default();
    let mut used = vec![Duration::ZERO; hogs.len()];
    let mut line: VecDeque<Task> = hogs
        .iter()
        .enumerate()
        .flat_map(|(id, hog)| (0..hog.guests).map(move |_| Task::Guest(id)))
        .chain([Task::Dispatcher])
        .collect();
    // By thread: its task and that task's end.
    let mut running: Vec<Option<(usize, Duration)>> = vec![None; threads];
    let container = |id: usize, used: Duration| Container {
        id: id as u64,
        weight: hogs[id].weight,
        used,
        weight_group: hogs[id].namespace.map(Into::into),
    };
    let mut now = Duration::ZERO;
    while now < time {
        let Some(free) = running.iter().position(Option::is_none) else {
            now = running.iter().flatten().map(|(_, ends)| *ends).min().unwrap();
            for slot in &mut running {
                if let Some((id, ends)) = *slot
                    && ends <= now
                {
                    used[id] += hogs[id].turn;
                    queue.charge_run(&container(id, used[id]), true);
                    line.push_back(Task::Guest(id));
                    *slot = None;
                }
            }
            continue;
        };
        let granted = match line.pop_front().expect("the dispatcher is always there") {
            Task::Guest(id) => queue.request(&container(id, used[id]), true, now, || id).then_some(id),
            Task::GrantCondition(id) => Some(id),
            Task::Dispatcher => {
                if let NextWaiter::Resume(id) = queue.next(now) {
                    line.push_front(Task::GrantCondition(id));
                }
                line.push_back(Task::Dispatcher);
                // A round costs a little, so that time also passes without a runnable guest.
                now += Duration::from_micros(1);
                None
            }
        };
        running[free] = granted.map(|id| (id, now + hogs[id].turn));
    }
    used
}

fn hog(weight: u64, guests: usize) -> Hog {
    Hog { weight, guests, turn: TURN, namespace: None }
}

/// A container without a CPU request.
fn poor(namespace: &'static str, guests: usize) -> Hog {
    Hog { namespace: Some(namespace), ..hog(2, guests) }
}

fn ratio(used: &[Duration]) -> f64 {
    used[0].as_secs_f64() / used[1].as_secs_f64()
}

#[test]
fn cpu_is_shared_by_weight_with_any_number_of_guests() {
    let time = Duration::from_secs(20);
    for (threads, weights, guests, wanted) in [
        (1, [1024, 1024], [64, 1], 1.0),
        (2, [1024, 1024], [64, 2], 1.0),
        (2, [3072, 1024], [4, 64], 3.0),
        (2, [512, 102], [3, 3], 5.0),
        (4, [1024, 2], [64, 64], 512.0),
    ] {
        let used = simulate(threads, &[hog(weights[0], guests[0]), hog(weights[1], guests[1])], time);
        let all: Duration = used.iter().sum();
        assert!(all > time * threads as u32 * 99 / 100, "{weights:?} {guests:?}: no core stands idle: {all:?}");
        let is = ratio(&used);
        assert!((wanted * 0.9..wanted * 1.1).contains(&is), "{weights:?} {guests:?}: {is}");
    }
}

#[test]
fn containers_without_a_request_share_by_namespace() {
    let time = Duration::from_secs(5);
    let many = || (0..100).map(|_| poor("many", 1));
    let used = simulate(2, &many().chain([poor("one", 2)]).collect::<Vec<_>>(), time);
    let (all, one): (Duration, Duration) = (used[..100].iter().sum(), used[100]);
    assert!(all + one > time * 2 * 99 / 100, "no core stands idle: {all:?} {one:?}");
    assert!((0.9..1.15).contains(&(all.as_secs_f64() / one.as_secs_f64())), "{all:?} {one:?}");
    let (least, most) = (used[..100].iter().min().unwrap(), used[..100].iter().max().unwrap());
    assert!(*most < *least * 3 / 2, "each of them has as much: {least:?} {most:?}");
    // A container with a request precedes them as if they were one.
    let used = simulate(2, &many().chain([hog(1024, 2)]).collect::<Vec<_>>(), time);
    assert!(used[100] > time * 2 * 95 / 100, "{:?}", used[100]);
    // The unused part of one namespace goes to the other.
    let used = simulate(2, &many().chain([poor("one", 1)]).collect::<Vec<_>>(), time);
    assert!(used.iter().sum::<Duration>() > time * 2 * 99 / 100, "no core stands idle");
    // A slice at the least weight takes long: one guest alone, which yields whenever it is ahead, gets less than its core.
    assert!(used[100] > time / 3, "{:?}", used[100]);
}

#[test]
fn idle_containers_take_no_part_of_their_namespaces_share() {
    let mut queue: Queue<u8> = Queue::default();
    let namespace: Arc<str> = "n".into();
    let of = |id: u64, used: Duration| Container { id, weight: 2, used, weight_group: Some(namespace.clone()) };
    for id in 0..100 {
        queue.request(&of(id, Duration::ZERO), false, Duration::ZERO, || 0);
        queue.charge_run(&of(id, TURN), false);
    }
    assert_eq!(queue.sharing.get(&namespace), Some(&100));
    queue.request(&of(0, TURN), false, 3 * ACTIVE_FOR, || 0);
    assert_eq!(queue.sharing.get(&namespace), Some(&1));
    queue.sweep(2 * REMOVED_AFTER);
    assert!(queue.sharing.is_empty() && queue.order.is_empty() && queue.members.is_empty());
}

#[test]
fn unused_shares_go_to_others() {
    // One guest runs on one core at most, whatever its weight.
    let time = Duration::from_secs(10);
    let used = simulate(2, &[hog(8192, 1), hog(2, 8)], time);
    assert!(used.iter().all(|used| *used > time * 95 / 100), "{used:?}");
    // Alone: everything.
    let used = simulate(2, &[hog(2, 8)], time);
    assert!(used[0] > time * 2 * 99 / 100, "{used:?}");
}

#[test]
fn short_turns_are_charged_their_time() {
    let short = Hog { turn: Duration::from_micros(50), ..hog(1024, 64) };
    let used = simulate(2, &[short, hog(1024, 2)], Duration::from_secs(10));
    assert!((0.9..1.1).contains(&ratio(&used)), "{used:?}");
}

#[test]
fn absence_accumulates_no_credit_and_no_lasting_debt() {
    let mut queue: Queue<u8> = Queue::default();
    let of = |id: u64, used: Duration| Container { id, weight: 1024, used, weight_group: None };
    let (mut a, mut now) = (Duration::ZERO, Duration::ZERO);
    assert!(queue.request(&of(1, a), false, now, || 1));
    now += 2 * ACTIVE_FOR;
    for _ in 0..1000 {
        now += TURN;
        a += TURN;
        assert!(queue.request(&of(0, a), false, now, || 0), "nobody else is there");
    }
    // The other returns: it starts at the first one's virtual time.
    assert!(queue.request(&of(1, Duration::ZERO), false, now, || 1));
    queue.charge_run(&of(1, TURN), false);
    assert!(!queue.request(&of(1, TURN), false, now, || 1), "ahead by a turn");
    assert!(queue.request(&of(0, a), false, now, || 0));
    assert!(matches!(queue.next(now), NextWaiter::Retry), "one who is behind came");
    assert!(queue.charge_run(&of(0, a), true));
    assert!(matches!(queue.next(now), NextWaiter::Wait), "it comes again");
    queue.cancel_return(0);
    assert!(matches!(queue.next(now), NextWaiter::Resume(1)), "it did not");
    assert!(matches!(queue.next(now), NextWaiter::Empty));
    // A guest that never returns as expected delays no one for long.
    queue.charge_run(&of(0, a), true);
    assert!(!queue.request(&of(1, 2 * TURN), false, now, || 1));
    assert!(matches!(queue.next(now), NextWaiter::Wait));
    assert!(matches!(queue.next(now + 2 * ACTIVE_FOR), NextWaiter::Resume(1)));
}

#[test]
fn containers_that_are_gone_are_forgotten() {
    let mut queue: Queue<u8> = Queue::default();
    let mut now = Duration::ZERO;
    for id in 0..30_000 {
        now += TURN;
        let of = |used: Duration| Container { id, weight: 1024, used, weight_group: None };
        queue.request(&of(Duration::ZERO), false, now, || 0);
        queue.charge_run(&of(TURN), false);
    }
    assert!(queue.members.len() < 20_000 && queue.order.len() < 20, "{}", queue.members.len());
}
