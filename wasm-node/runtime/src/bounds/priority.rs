//! Nice value of guest threads. A thread whose guests compute for long runs at a lower priority, behind the control plane and
//! other processes of the host. A thread with short polls keeps the usual one: at a lower one, each client on the same host
//! would preempt the thread that writes its response, which costs a tenth of a small request.
//!
//! Raising a priority again needs a permission (`CAP_SYS_NICE`, or `RLIMIT_NICE`). Without it, threads stay at the lower one.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::thread_clock::wall;

/// Nice levels below the usual one: threads at the usual one win whenever both are runnable.
const LOWERED_BY: i32 = 5;
/// A poll that takes this long is no small request's. Half of a guest's time slice.
const LONG: Duration = Duration::from_millis(1);
/// How long a thread stays at the lower priority after its last long poll.
const LOWERED_FOR: Duration = Duration::from_millis(50);

thread_local! {
    static PRIORITY: Cell<Option<Priority>> = const { Cell::new(None) };
}

/// Whether this process may raise a lowered priority, as far as is known.
static MAY_RAISE: AtomicBool = AtomicBool::new(true);

/// Priority of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Priority {
    /// The nice value at its start.
    usual: i32,
    /// End of the minimum time at the lower priority, while it is lowered.
    lowered: Option<Duration>,
}

impl Priority {
    /// The priority after a poll of a guest that kept the thread `busy`.
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

/// Marks the calling thread as one of guests. It starts at the lower priority: some threads only do file work.
pub(crate) fn begin() {
    let priority = Priority { usual: nice(), lowered: Some(Duration::ZERO) };
    set_nice(priority.nice());
    PRIORITY.set(Some(priority));
}

/// Updates the calling thread's priority after a poll. `contended`: guests want more CPU than there is.
pub(crate) fn polled(took: Duration, contended: bool) {
    let Some(before) = PRIORITY.get() else { return };
    if before.lowered.is_some() && !MAY_RAISE.load(Ordering::Relaxed) {
        return;
    }
    let after = before.after(contended || took >= LONG, wall);
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
    // SAFETY: the call touches no memory of ours. Linux takes 0 for the calling thread. An error looks like -1.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Sets the calling thread's nice value; returns whether the system permits it.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "std has no thread priorities")]
pub(crate) fn set_nice(nice: i32) -> bool {
    // SAFETY: as above.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) == 0 }
}

/// Other systems have priorities of processes only: guests share the node's.
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
