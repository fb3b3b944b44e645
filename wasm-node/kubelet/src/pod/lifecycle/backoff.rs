//! The kubelet's back-off: none at first, then 10 s, doubled up to 5 min, reset after 10 min without a failure. Pure.

use std::time::Duration;

use jiff::Timestamp;

/// The first and the maximum delay (upstream's).
const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);
/// The reset period (upstream: twice the maximum delay).
const FORGET: Duration = Duration::from_secs(600);

/// The back-off of one operation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BackOff {
    /// The current delay, and the time of that decision.
    entry: Option<(Duration, Timestamp)>,
}

impl BackOff {
    /// The end and length of the delay after a failure at `failed`; `None` if it has passed, or there is none.
    #[must_use]
    pub fn until(&self, failed: Timestamp, now: Timestamp) -> Option<(Timestamp, Duration)> {
        let (wait, decided) = self.entry?;
        if forgotten(failed, decided) {
            return None;
        }
        let until = failed.saturating_add(wait).unwrap_or(Timestamp::MAX);
        (now < until).then_some((until, wait))
    }

    /// Counts one more try after a failure at `failed`.
    pub fn next(&mut self, failed: Timestamp, now: Timestamp) {
        let wait = match self.entry {
            Some((wait, decided)) if !forgotten(failed, decided) => wait.saturating_mul(2).min(LONGEST),
            _ => FIRST,
        };
        self.entry = Some((wait, now));
    }
}

fn forgotten(failed: Timestamp, decided: Timestamp) -> bool {
    Duration::try_from(failed.duration_since(decided)).is_ok_and(|passed| passed > FORGET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_minutes_and_are_forgotten() {
        let mut back_off = BackOff::default();
        let mut now = Timestamp::from_second(1_000_000).unwrap();
        let mut waits = Vec::new();
        for _ in 0..8 {
            match back_off.until(now, now) {
                Some((until, wait)) => {
                    waits.push(wait.as_secs());
                    now = until;
                    assert_eq!(back_off.until(now, now).map(|(_, w)| w), Some(wait), "a new failure waits as long");
                }
                None => waits.push(0),
            }
            back_off.next(now, now);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        let later = now.saturating_add(Duration::from_secs(601)).unwrap();
        assert_eq!(back_off.until(later, later), None);
        back_off.next(later, later);
        assert_eq!(back_off.until(later, later).map(|(_, w)| w.as_secs()), Some(10));
    }
}
