//! Which time of a schedule has come and wasn't acted on, and when the next one comes.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use machinery_api::schedule::Schedule;

/// More missed times than these are told.
const MISSED_MAX: i64 = 100;
/// So much after the time itself is looked again: clocks differ.
const AFTER: SignedDuration = SignedDuration::from_millis(100);

/// A schedule at an instant.
#[derive(Debug)]
pub(super) struct Due<'a> {
    pub(super) schedule: &'a Schedule,
    pub(super) zone: &'a TimeZone,
    pub(super) now: Timestamp,
}

/// A time that came and wasn't acted on: the last one of all.
#[derive(Debug, PartialEq)]
pub(super) struct Missed {
    pub(super) at: Timestamp,
    /// There were so many of them that something is wrong.
    pub(super) too_many: bool,
}

impl Due<'_> {
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        self.schedule.next(after, self.zone)
    }

    /// The last time since `since` that has come, not longer ago than the deadline.
    pub(super) fn missed(&self, since: Timestamp, deadline: Option<i64>) -> Result<Option<Missed>, &'static str> {
        const NEVER: &str = "time difference between two schedules is less than 1 second";
        // What is older isn't looked at, nor told.
        let oldest = deadline.map(|s| self.now.checked_sub(SignedDuration::from_secs(s)).unwrap_or(Timestamp::MIN));
        let since = oldest.map_or(since, |oldest| oldest.max(since));
        let first = self.next(since).ok_or(NEVER)?;
        if self.now < first {
            return Ok(None);
        }
        // As upstream counts: how often the first interval has passed.
        let Some(second) = self.next(first) else { return Err(NEVER) };
        if self.now < second {
            return Ok(Some(Missed { at: first, too_many: false }));
        }
        let interval = second.duration_since(first).as_secs().max(1);
        let missed = self.now.duration_since(first).as_secs() / interval + 1;
        let at = self.schedule.last(first, self.now, self.zone);
        Ok(Some(Missed { at, too_many: missed > MISSED_MAX }))
    }

    /// When the next time comes, `since` the last that was acted on.
    pub(super) fn revisit(&self, since: Timestamp) -> Option<Timestamp> {
        let last = match self.next(since)? {
            first if first <= self.now => self.schedule.last(first, self.now, self.zone),
            _ => since,
        };
        self.next(last)?.checked_add(AFTER).ok()
    }
}
