//! The priority of a guests' thread. Guests that compute for long make way for the control plane, and for everybody else on
//! the host: their thread goes at a lower priority, as long as they do. One whose guests answer at once has the usual one: at
//! a lower one each answer would have its own client, on the same host, interrupt the thread that writes it, at the price of
//! a tenth of a small request.
//!
//! To come back from a lower priority a process needs leave (`CAP_SYS_NICE`, or `RLIMIT_NICE`). Where it has none its
//! threads stay at the lower one.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::thread_clock::wall;

/// How far below the usual: the threads at the usual one win whenever both want to run.
const LOWERED_BY: i32 = 5;
/// A poll of a guest that takes so long is no small request's. Half of what a guest may take at once.
const LONG: Duration = Duration::from_millis(1);
/// How long a thread stays at the lower priority after it has seen the last long one.
const LOWERED_FOR: Duration = Duration::from_millis(50);

thread_local! {
    static PRIORITY: Cell<Option<Priority>> = const { Cell::new(None) };
}

/// Whether this process may come back from a lower priority, as far as is known.
static MAY_RAISE: AtomicBool = AtomicBool::new(true);

/// Where a thread stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Priority {
    /// The one that it was started with.
    usual: i32,
    /// Until when at least it goes at the lower one, where it does.
    lowered: Option<Duration>,
}

impl Priority {
    /// A guest was polled, and kept the thread `busy`. Answers where the thread stands then.
    fn after(self, busy: bool, now: impl FnOnce() -> Duration) -> Self {
        let lowered = match (self.lowered, busy) {
            (None, false) => None,
            (_, true) => Some(now() + LOWERED_FOR),
            (Some(until), false) => (now() < until).then_some(until),
        };
        Self { lowered, ..self }
    }

    fn nice(self) -> i32 {
        self.usual + if self.lowered.is_some() { LOWERED_BY } else { 0 }
    }
}

/// The calling thread is one of guests. It begins at the lower priority: some of them only do their file work.
pub(crate) fn begin() {
    let priority = Priority { usual: nice(), lowered: Some(Duration::ZERO) };
    set_nice(priority.nice());
    PRIORITY.set(Some(priority));
}

/// The calling thread has polled a guest that took so much of it; `crowded`: guests want more CPU than there is.
pub(crate) fn polled(took: Duration, crowded: bool) {
    let Some(before) = PRIORITY.get() else { return };
    if before.lowered.is_some() && !MAY_RAISE.load(Ordering::Relaxed) {
        return;
    }
    let after = before.after(crowded || took >= LONG, wall);
    if after == before {
        return;
    }
    let moved = after.nice() == before.nice() || set_nice(after.nice());
    if !moved && after.lowered.is_none() {
        MAY_RAISE.store(false, Ordering::Relaxed);
        return;
    }
    PRIORITY.set(Some(after));
}

/// The calling thread's nice value.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "std has no thread priorities")]
fn nice() -> i32 {
    // SAFETY: it touches no memory of ours. Linux takes 0 for the calling thread. An error reads like the value -1.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Sets the calling thread's nice value; whether the system lets it.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "std has no thread priorities")]
pub(crate) fn set_nice(nice: i32) -> bool {
    // SAFETY: as above.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) == 0 }
}

/// Elsewhere priorities belong to processes: guests share the node's.
#[cfg(not(target_os = "linux"))]
fn nice() -> i32 {
    0
}

/// See [`nice`].
#[cfg(not(target_os = "linux"))]
pub(crate) fn set_nice(_nice: i32) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Priority = Priority { usual: 3, lowered: None };

    #[test]
    fn small_requests_read_no_clock() {
        assert_eq!(USUAL.after(false, || panic!("the clock is not read")), USUAL);
        assert_eq!(USUAL.nice(), 3);
    }

    #[test]
    fn a_long_poll_lowers_the_thread_until_none_has_come_for_a_while() {
        let ms = Duration::from_millis;
        let lowered = USUAL.after(true, || ms(100));
        assert_eq!((lowered.nice(), lowered.lowered), (8, Some(ms(150))));
        assert_eq!(lowered.after(false, || ms(149)), lowered);
        let longer = lowered.after(true, || ms(140));
        assert_eq!(longer.after(false, || ms(189)), longer);
        assert_eq!(longer.after(false, || ms(190)), USUAL);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_is_lowered_and_comes_back_where_it_may() {
        let own = std::thread::spawn(|| {
            let usual = nice();
            polled(LONG, true);
            let elses = nice();
            begin();
            let begun = nice();
            polled(Duration::ZERO, false);
            let raised = nice();
            polled(LONG, false);
            (usual, elses, begun, raised, nice())
        });
        let (usual, elses, begun, raised, lowered) = own.join().unwrap();
        assert_eq!(
            (elses, begun, lowered),
            (usual, usual + LOWERED_BY, usual + LOWERED_BY),
            "no guests' thread is left alone"
        );
        assert_eq!(raised, if MAY_RAISE.load(Ordering::Relaxed) { usual } else { begun });
    }
}
