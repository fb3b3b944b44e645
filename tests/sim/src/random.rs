//! Randomness of the simulation, separate from the components': draws of faults and workloads don't change those of the
//! cluster.

use std::time::Duration;

use jiff::Timestamp;
use machinery_env::Env;

/// A stream of random numbers for one purpose. Clones draw from the same stream.
#[derive(Clone)]
pub(crate) struct Random(Env);

impl Random {
    /// The stream of a purpose under a seed.
    pub(crate) fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a: distinguishes purposes under any seed.
        let mixed = purpose
            .bytes()
            .fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Self(Env::seeded(mixed, Timestamp::UNIX_EPOCH).0)
    }

    /// A number below `bound`.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.0.below(bound)
    }

    /// A number from `low` to `high` inclusive.
    pub(crate) fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True with a probability in permille.
    pub(crate) fn chance(&self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    /// Milliseconds from `low` to `high` inclusive.
    pub(crate) fn millis(&self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }

    /// An element; `None` of an empty slice.
    pub(crate) fn pick<'a, T>(&self, of: &'a [T]) -> Option<&'a T> {
        of.get(usize::try_from(self.below(of.len() as u64)).unwrap_or(0))
    }
}
