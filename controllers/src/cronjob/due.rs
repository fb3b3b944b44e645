//! The last missed time of a schedule, and the next time.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use machinery_rules::cron::Schedule;

/// More missed times are reported as too many.
const MISSED_MAX: i64 = 100;
/// The delay of a pass after the scheduled time, for clock differences.
const AFTER: SignedDuration = SignedDuration::from_millis(100);

/// A schedule at an instant.
#[derive(Debug)]
pub(super) struct CronSchedule<'a> {
    pub(super) schedule: &'a Schedule,
    pub(super) zone: &'a TimeZone,
    pub(super) now: Timestamp,
}

/// The last time that is past and has no Job.
#[derive(Debug, PartialEq)]
pub(super) struct MissedRun {
    pub(super) at: Timestamp,
    /// Whether so many times were missed that something is wrong.
    pub(super) too_many: bool,
}

impl CronSchedule<'_> {
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        self.schedule.next(after, self.zone)
    }

    /// The last time since `since` that is past, and not older than the deadline.
    pub(super) fn missed(&self, since: Timestamp, deadline: Option<i64>) -> Result<Option<MissedRun>, &'static str> {
        const NEVER: &str = "time difference between two schedules is less than 1 second";
        // Older times are neither started nor reported.
        let oldest = deadline.map(|s| self.now.checked_sub(SignedDuration::from_secs(s)).unwrap_or(Timestamp::MIN));
        let since = oldest.map_or(since, |oldest| oldest.max(since));
        let first = self.next(since).ok_or(NEVER)?;
        if self.now < first {
            return Ok(None);
        }
        // Upstream's count: how often the first interval has passed.
        let Some(second) = self.next(first) else { return Err(NEVER) };
        if self.now < second {
            return Ok(Some(MissedRun { at: first, too_many: false }));
        }
        let interval = second.duration_since(first).as_secs().max(1);
        let missed = self.now.duration_since(first).as_secs() / interval + 1;
        let at = self.schedule.last(first, self.now, self.zone);
        Ok(Some(MissedRun { at, too_many: missed > MISSED_MAX }))
    }

    /// When the next time comes; `since` is the last time with a Job.
    pub(super) fn revisit(&self, since: Timestamp) -> Option<Timestamp> {
        let last = match self.next(since)? {
            first if first <= self.now => self.schedule.last(first, self.now, self.zone),
            _ => since,
        };
        self.next(last)?.checked_add(AFTER).ok()
    }
}
