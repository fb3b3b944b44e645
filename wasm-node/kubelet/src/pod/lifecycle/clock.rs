//! Detects steps of the wall clock. Pure: takes readings of the wall clock and of the monotonic clock, and returns the
//! length of each step once. Slewing isn't a step.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// A larger change of the offset is a clock step; a smaller one is slewing, or the time between two readings.
const CLOCK_STEP_MIN: SignedDuration = SignedDuration::from_secs(1);

/// Compares the wall clock with the monotonic clock.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClockStepDetector {
    /// The offset between the two clocks at the last step, or at the start.
    offset: SignedDuration,
}

impl ClockStepDetector {
    pub(crate) fn new(wall: Timestamp, monotonic: Duration) -> Self {
        Self { offset: offset(wall, monotonic) }
    }

    /// Takes a reading of both clocks. Returns the length of a step since the previous one; it is negative if the wall
    /// clock was set back.
    pub(crate) fn step(&mut self, wall: Timestamp, monotonic: Duration) -> Option<SignedDuration> {
        let offset = offset(wall, monotonic);
        let by = offset - self.offset;
        (by.abs() > CLOCK_STEP_MIN).then(|| {
            self.offset = offset;
            by
        })
    }
}

fn offset(wall: Timestamp, monotonic: Duration) -> SignedDuration {
    let elapsed = SignedDuration::try_from(monotonic).unwrap_or(SignedDuration::MAX);
    wall.duration_since(Timestamp::UNIX_EPOCH).saturating_sub(elapsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wall(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(1_000_000_000 + millis).unwrap()
    }

    fn monotonic(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_step_is_returned_once_and_in_both_directions() {
        let mut clock = ClockStepDetector::new(wall(0), monotonic(0));
        assert_eq!(clock.step(wall(60_000), monotonic(60_000)), None, "both clocks run alike");
        let forward = clock.step(wall(3_660_000), monotonic(60_000));
        assert_eq!(forward, Some(SignedDuration::from_hours(1)));
        assert_eq!(clock.step(wall(3_661_000), monotonic(61_000)), None, "the step was returned before");
        let back = clock.step(wall(62_000), monotonic(62_000));
        assert_eq!(back, Some(SignedDuration::from_hours(-1)));
    }

    #[test]
    fn slewing_adds_up_to_a_step() {
        let mut clock = ClockStepDetector::new(wall(0), monotonic(0));
        assert_eq!(clock.step(wall(10_600), monotonic(10_000)), None);
        assert_eq!(clock.step(wall(21_000), monotonic(20_000)), None, "the limit itself is no step");
        assert_eq!(clock.step(wall(31_500), monotonic(30_000)), Some(SignedDuration::from_millis(1_500)));
        assert_eq!(clock.step(wall(41_500), monotonic(40_000)), None);
    }

    #[test]
    fn a_monotonic_clock_without_progress_is_a_step_of_the_other() {
        let mut clock = ClockStepDetector::new(wall(0), monotonic(5_000));
        assert_eq!(clock.step(wall(2_000), monotonic(5_000)), Some(SignedDuration::from_secs(2)));
        assert_eq!(clock.step(wall(2_000), monotonic(8_000)), Some(SignedDuration::from_secs(-3)));
    }
}
