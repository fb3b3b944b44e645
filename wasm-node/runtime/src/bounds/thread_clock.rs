//! CPU time of a guest's poll. Reading the thread's clock is a system call that costs more than many a poll. Short
//! polls are charged their wall time, which is cheap to read; long ones the thread's CPU time.

use std::cell::Cell;
use std::time::Duration;

/// A shorter poll is charged its wall time: another thread hardly interrupted it.
const SHORT: Duration = Duration::from_micros(100);
/// Maximum age of the last thread clock reading at the start of a poll: other work on the thread since then is charged to a
/// long, interrupted poll, and no more than that.
const READING_AGE_MAX: Duration = Duration::from_millis(1);

thread_local! {
    static LAST_READING: Cell<Option<ClockReading>> = const { Cell::new(None) };
}

/// A reading of the thread's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ClockReading {
    wall: Duration,
    cpu: Duration,
}

/// A poll in progress.
struct MeasuredPoll {
    wall: Duration,
    mark: ClockReading,
}

impl MeasuredPoll {
    fn at(wall: Duration, mark: Option<ClockReading>, cpu: impl FnOnce() -> Duration) -> Self {
        let fresh = mark.filter(|mark| wall.saturating_sub(mark.wall) < READING_AGE_MAX);
        Self { wall, mark: fresh.unwrap_or_else(|| ClockReading { wall, cpu: cpu() }) }
    }

    /// Its CPU time, and the latest reading.
    fn ended(self, wall: Duration, cpu: impl FnOnce() -> Duration) -> (Duration, ClockReading) {
        let took = wall.saturating_sub(self.wall);
        if took < SHORT {
            return (took, self.mark);
        }
        let mark = ClockReading { wall, cpu: cpu() };
        (took.min(mark.cpu.saturating_sub(self.mark.cpu)), mark)
    }
}

/// Calls `poll` and returns its CPU time.
pub(crate) fn measured<T>(poll: impl FnOnce() -> T) -> (T, Duration) {
    let began = MeasuredPoll::at(wall(), LAST_READING.get(), thread_cpu);
    LAST_READING.set(Some(began.mark));
    let polled = poll();
    let (took, mark) = began.ended(wall(), thread_cpu);
    LAST_READING.set(Some(mark));
    (polled, took)
}

#[expect(clippy::disallowed_methods, reason = "measures what ran, decides nothing that is replayed")]
pub(super) fn wall() -> Duration {
    use std::sync::LazyLock;
    static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

/// CPU time of the calling thread, user and system.
#[cfg(unix)]
fn thread_cpu() -> Duration {
    cpu(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time of this process, all threads together.
#[cfg(unix)]
pub(crate) fn process_cpu() -> Duration {
    cpu(libc::CLOCK_PROCESS_CPUTIME_ID)
}

#[cfg(unix)]
#[expect(unsafe_code, reason = "std has no CPU clocks")]
fn cpu(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime only writes to `time`, which outlives the call.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Without a thread CPU clock, wall time is used: an uninterrupted poll has the same.
#[cfg(not(unix))]
fn thread_cpu() -> Duration {
    wall()
}

/// The same for the process.
#[cfg(not(unix))]
pub(crate) fn process_cpu() -> Duration {
    wall()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    fn never() -> Duration {
        panic!("the thread's clock is not read")
    }

    #[test]
    fn a_short_poll_reads_no_clock_of_the_thread() {
        let mark = ClockReading { wall: micros(100), cpu: micros(70) };
        let began = MeasuredPoll::at(micros(1000), Some(mark), never);
        assert_eq!(began.ended(micros(1099), never), (micros(99), mark));
    }

    #[test]
    fn a_long_poll_is_charged_its_thread_time() {
        let began = MeasuredPoll::at(micros(5000), None, || micros(300));
        // Another thread had the core for most of it.
        let (took, mark) = began.ended(micros(9000), || micros(800));
        assert_eq!((took, mark), (micros(500), ClockReading { wall: micros(9000), cpu: micros(800) }));
        // The next poll starts from this reading.
        let began = MeasuredPoll::at(micros(9010), Some(mark), never);
        assert_eq!(began.ended(micros(11_010), || micros(2810)).0, micros(2000), "never more than passed");
    }

    #[test]
    fn an_old_reading_is_not_used() {
        let mark = ClockReading { wall: Duration::ZERO, cpu: Duration::ZERO };
        let began = MeasuredPoll::at(micros(1000), Some(mark), || micros(900));
        assert_eq!(began.ended(micros(3000), || micros(1500)).0, micros(600));
    }

    #[test]
    fn work_is_seen_and_sleep_is_not() {
        let ((), took) = measured(|| {
            let until = thread_cpu() + Duration::from_millis(20);
            while thread_cpu() < until {}
        });
        assert!((19..40).contains(&took.as_millis()), "{took:?}");
        let ((), took) = measured(|| std::thread::park_timeout(Duration::from_millis(20)));
        assert!(took < Duration::from_millis(10), "{took:?}");
    }
}
