//! Clock, timers and source of randomness and ids: real, or seeded for simulation and tests.
//!
//! Code that reads time, waits or draws a number takes an [`Env`] (or an instant read from one); `clippy.toml` bans the
//! other sources. [`Env::now`] and [`Env::elapsed`] read the environment's [`Clock`]. Timers ([`Env::sleep`],
//! [`Env::timeout`], [`Env::interval`]) and the instants they are compared with ([`Env::instant`], [`Env::deadline`])
//! are tokio's in every environment: a test that pauses tokio's clock advances them.
//!
//! [`child_process`] has the variables of this process that no program of others gets.

pub mod child_process;
mod task_deadline;
mod timers;

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::{Rng, SeedableRng, rngs::ChaCha12Rng};

pub use task_deadline::task_deadline;
pub use timers::Deadline;

/// Digits of a UID.
const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";
/// The letters of Kubernetes' generated names: no vowels and no look-alikes
/// (k8s.io/apimachinery `util/rand`).
const NAME_LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Reads time.
pub trait Clock: Send + Sync {
    /// The wall clock.
    fn now(&self) -> Timestamp;
    /// Monotonic time since an arbitrary fixed point, for measuring and deadlines.
    fn elapsed(&self) -> Duration;
}

/// Clock and randomness; a clone increments one counter, so that a request may have its own.
#[derive(Clone)]
pub struct Env(Arc<EnvSources>);

/// The sources of an environment.
struct EnvSources {
    clock: Arc<dyn Clock>,
    random: Mutex<ChaCha12Rng>,
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env").finish_non_exhaustive()
    }
}

impl Env {
    /// The machine's clock and a generator seeded by the operating system.
    #[must_use]
    pub fn real() -> Self {
        Self::of(Arc::new(RealClock::start()), rand::make_rng())
    }

    fn of(clock: Arc<dyn Clock>, random: ChaCha12Rng) -> Self {
        Self(Arc::new(EnvSources { clock, random: Mutex::new(random) }))
    }

    /// A reproducible environment: `seed` determines all randomness; [`Env::now`] and [`Env::elapsed`] stand until
    /// [`ManualClock::advance`], which fires no timer.
    #[must_use]
    pub fn seeded(seed: u64, start: Timestamp) -> (Self, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock { start, elapsed: Mutex::new(Duration::ZERO) });
        (Self::of(clock.clone(), ChaCha12Rng::seed_from_u64(seed)), clock)
    }

    /// The wall clock's time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Monotonic time since this environment's start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.clock.elapsed()
    }

    /// Fills `bytes` with random bytes.
    pub fn fill(&self, bytes: &mut [u8]) {
        self.0.random.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
    }

    /// A random number.
    #[must_use]
    pub fn random_u64(&self) -> u64 {
        self.0.random.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }

    /// A random number below `bound` (0 if `bound` is 0).
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        // The bias of a 64-bit remainder is negligible.
        self.random_u64().checked_rem(bound).unwrap_or(0)
    }

    /// A new uid: a version 4 UUID (RFC 9562) in its usual form.
    #[must_use]
    pub fn uid(&self) -> String {
        let mut b = [0u8; 16];
        self.fill(&mut b);
        b[6] = (b[6] & 0x0f) | 0x40;
        b[8] = (b[8] & 0x3f) | 0x80;
        let mut uid = String::with_capacity(36);
        for (n, byte) in b.into_iter().enumerate() {
            if matches!(n, 4 | 6 | 8 | 10) {
                uid.push('-');
            }
            uid.extend([byte >> 4, byte & 0x0f].map(|digit| char::from(HEX_DIGITS[usize::from(digit)])));
        }
        uid
    }

    /// `letters` random letters as `generateName` appends them (5 upstream).
    #[must_use]
    pub fn name_suffix(&self, letters: usize) -> String {
        (0..letters).map(|_| NAME_LETTERS[self.below(NAME_LETTERS.len() as u64) as usize] as char).collect()
    }
}

/// The machine's clock: the only code that reads it.
struct RealClock {
    start: std::time::Instant,
}

impl RealClock {
    #[expect(clippy::disallowed_methods, reason = "the one home of the machine's clock")]
    fn start() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Clock for RealClock {
    #[expect(clippy::disallowed_methods, reason = "the one home of the machine's clock")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that moves only by [`ManualClock::advance`]. Timers don't follow it: they fire by tokio's clock, so that a
/// test may hold the wall clock while its tasks wait. [`TokioClock`] moves both together.
#[derive(Debug)]
pub struct ManualClock {
    start: Timestamp,
    elapsed: Mutex<Duration>,
}

impl ManualClock {
    /// Moves time forward.
    pub fn advance(&self, by: Duration) {
        *self.elapsed.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.start.saturating_add(self.elapsed()).unwrap_or(Timestamp::MAX)
    }

    fn elapsed(&self) -> Duration {
        *self.elapsed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tokio's clock, which a test may pause: time then advances as soon as every task waits. Wall clock, monotonic clock
/// and timers are one.
#[derive(Debug)]
pub struct TokioClock {
    start: tokio::time::Instant,
    /// Offset of the wall clock, in seconds.
    set_by: AtomicI64,
}

impl TokioClock {
    /// An environment on this clock with randomness from `seed`, and the clock. Must be called within a tokio runtime.
    #[must_use]
    pub fn env(seed: u64) -> (Env, Arc<Self>) {
        let clock = Arc::new(Self { start: timers::instant(), set_by: AtomicI64::new(0) });
        (Env::of(clock.clone(), ChaCha12Rng::seed_from_u64(seed)), clock)
    }

    /// Steps the wall clock by this many seconds; monotonic time is unaffected.
    pub fn jump(&self, seconds: i64) {
        self.set_by.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        let set_by = SignedDuration::from_secs(self.set_by.load(Ordering::Relaxed));
        let reported = Timestamp::UNIX_EPOCH.saturating_add(self.elapsed()).and_then(|now| now.saturating_add(set_by));
        reported.unwrap_or(Timestamp::MAX)
    }

    fn elapsed(&self) -> Duration {
        timers::instant() - self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_everything() {
        let (a, _) = Env::seeded(7, Timestamp::UNIX_EPOCH);
        let (b, clock) = Env::seeded(7, Timestamp::UNIX_EPOCH);
        assert_eq!(a.uid(), b.uid());
        assert_eq!(a.name_suffix(5), b.name_suffix(5));
        clock.advance(Duration::from_secs(3));
        assert_eq!(b.now().as_second(), 3);
    }

    #[test]
    fn uids_are_version_4() {
        let uid = Env::real().uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(&uid[14..15], "4");
    }
}
