//! CPU rates, measured since one of the last two samples, which are taken every 15 seconds. Pure.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::responses::WINDOW_MIN;

/// The sampling period (metrics-server's default resolution).
pub(crate) const PERIOD: Duration = Duration::from_secs(15);
/// The name of the node's own counter.
pub(crate) const NODE_COUNTER: &str = "";

/// The CPU time used up to a point in time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    at: Duration,
    cpu: Duration,
}

/// A rate and its measuring window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rate {
    pub(crate) nano_cores: u64,
    pub(crate) window: Duration,
}

/// The last two samples of each counter, sorted by name. A node has one for each container, so the slice has no spare
/// capacity.
#[derive(Debug, Default)]
pub(crate) struct Rates(Mutex<Box<[Counter]>>);

#[derive(Debug)]
struct Counter {
    name: Box<str>,
    earlier: Sample,
    last: Sample,
}

fn of_name<'a>(counters: &'a [Counter], name: &str) -> Option<&'a Counter> {
    counters.binary_search_by(|counter| (*counter.name).cmp(name)).ok().map(|at| &counters[at])
}

impl Rates {
    /// Takes a sample of each counter, and forgets counters that are absent.
    pub(crate) fn sample(&self, at: Duration, counters: impl IntoIterator<Item = (String, Duration)>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counters: Vec<Counter> = counters
            .into_iter()
            .map(|(name, cpu)| {
                let last = Sample { at, cpu };
                let earlier = of_name(&kept, &name).map_or(last, |counter| counter.last);
                Counter { name: name.into(), earlier, last }
            })
            .collect();
        counters.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        *kept = counters.into();
    }

    /// The time of the earlier of a counter's last two samples; `None` before the second one.
    pub(crate) fn sampled_at(&self, name: &str) -> Option<Duration> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        of_name(&kept, name).filter(|counter| counter.earlier != counter.last).map(|counter| counter.earlier.at)
    }

    /// Returns the rate of a counter that is at `cpu` and started from zero `age` ago; `None` if it has just started.
    pub(crate) fn rate(&self, name: &str, at: Duration, cpu: Duration, age: Duration) -> Option<Rate> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sampled = of_name(&kept, name).map(|counter| counter.earlier);
        // A lower value means that the counter was reset.
        let from = sampled.filter(|from| from.cpu <= cpu);
        let from = from.filter(|from| (WINDOW_MIN..age).contains(&at.saturating_sub(from.at)));
        let (used, window) = match from {
            Some(from) => (cpu - from.cpu, at.saturating_sub(from.at)),
            None => (cpu, age),
        };
        if window < WINDOW_MIN {
            return None;
        }
        let nano_cores = used.as_nanos() * 1_000_000_000 / window.as_nanos();
        Some(Rate { nano_cores: u64::try_from(nano_cores).unwrap_or(u64::MAX), window })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn rate(nano_cores: u64, window: u64) -> Option<Rate> {
        Some(Rate { nano_cores, window: s(window) })
    }

    #[test]
    fn a_rate_is_that_of_the_last_samples() {
        let rates = Rates::default();
        assert_eq!(rates.rate("a", s(100), s(1), Duration::from_millis(900)), None, "it has just begun");
        assert_eq!(rates.rate("a", s(100), s(1), s(2)), rate(500_000_000, 2), "since its beginning");
        rates.sample(s(100), [("a".to_owned(), s(10))]);
        rates.sample(s(115), [("a".to_owned(), s(10))]);
        assert_eq!(rates.rate("a", s(120), s(20), s(1000)), rate(500_000_000, 20));
        rates.sample(s(130), [("a".to_owned(), s(20))]);
        assert_eq!(rates.rate("a", s(130), s(25), s(1000)), rate(1_000_000_000, 15));
        assert_eq!(rates.rate("a", s(131), s(1), s(10)), rate(100_000_000, 10), "it began anew");
        rates.sample(s(145), []);
        assert!(rates.0.lock().unwrap().is_empty());
    }
}
