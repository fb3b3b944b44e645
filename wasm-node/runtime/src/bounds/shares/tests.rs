//! Shares of a machine that is played: threads, and guests that never have enough.

use super::*;

const TURN: Duration = Duration::from_millis(2);

/// A container on the played machine: so many guests that never have enough, with turns of that length.
struct Hog {
    weight: u64,
    guests: usize,
    turn: Duration,
    namespace: Option<&'static str>,
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
    let container = |id: usize, used: Duration| Container {
        id: id as u64,
        weight: hogs[id].weight,
        used,
        shares_with: hogs[id].namespace.map(Into::into),
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
    Hog { weight, guests, turn: TURN, namespace: None }
}

/// One that asks for none of the CPU.
fn poor(namespace: &'static str, guests: usize) -> Hog {
    Hog { namespace: Some(namespace), ..hog(2, guests) }
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
fn those_that_ask_for_nothing_share_by_namespace() {
    let time = Duration::from_secs(5);
    let many = || (0..100).map(|_| poor("many", 1));
    let used = play(2, &many().chain([poor("one", 2)]).collect::<Vec<_>>(), time);
    let (all, one): (Duration, Duration) = (used[..100].iter().sum(), used[100]);
    assert!(all + one > time * 2 * 99 / 100, "no core stands idle: {all:?} {one:?}");
    assert!((0.9..1.15).contains(&(all.as_secs_f64() / one.as_secs_f64())), "{all:?} {one:?}");
    let (least, most) = (used[..100].iter().min().unwrap(), used[..100].iter().max().unwrap());
    assert!(*most < *least * 3 / 2, "each of them has as much: {least:?} {most:?}");
    // Who asks goes before them as before one of them.
    let used = play(2, &many().chain([hog(1024, 2)]).collect::<Vec<_>>(), time);
    assert!(used[100] > time * 2 * 95 / 100, "{:?}", used[100]);
    // What one namespace cannot use is the other's.
    let used = play(2, &many().chain([poor("one", 1)]).collect::<Vec<_>>(), time);
    assert!(used.iter().sum::<Duration>() > time * 2 * 99 / 100, "no core stands idle");
    // A turn of the least weight takes long: one guest alone, as it stands aside each time that it is ahead, has less than its core.
    assert!(used[100] > time / 3, "{:?}", used[100]);
}

#[test]
fn who_wants_nothing_any_more_takes_no_part_of_its_namespaces() {
    let mut queue: Queue<u8> = Queue::default();
    let namespace: Arc<str> = "n".into();
    let of = |id: u64, used: Duration| Container { id, weight: 2, used, shares_with: Some(namespace.clone()) };
    for id in 0..100 {
        queue.come(&of(id, Duration::ZERO), false, Duration::ZERO, || 0);
        queue.ran(&of(id, TURN), false);
    }
    assert_eq!(queue.sharing.get(&namespace), Some(&100));
    queue.come(&of(0, TURN), false, 3 * ACTIVE_FOR, || 0);
    assert_eq!(queue.sharing.get(&namespace), Some(&1));
    queue.sweep(2 * FORGOTTEN_AFTER);
    assert!(queue.sharing.is_empty() && queue.order.is_empty() && queue.members.is_empty());
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
    let short = Hog { turn: Duration::from_micros(50), ..hog(1024, 64) };
    let used = play(2, &[short, hog(1024, 2)], Duration::from_secs(10));
    assert!((0.9..1.1).contains(&ratio(&used)), "{used:?}");
}

#[test]
fn who_was_away_saves_nothing_up_and_is_not_behind_others_for_long() {
    let mut queue: Queue<u8> = Queue::default();
    let of = |id: u64, used: Duration| Container { id, weight: 1024, used, shares_with: None };
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
        let of = |used: Duration| Container { id, weight: 1024, used, shares_with: None };
        queue.come(&of(Duration::ZERO), false, now, || 0);
        queue.ran(&of(TURN), false);
    }
    assert!(queue.members.len() < 20_000 && queue.order.len() < 20, "{}", queue.members.len());
}
