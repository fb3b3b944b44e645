//! Parses schedules of CronJobs as upstream's cron parser (`github.com/robfig/cron` v3, `ParseStandard`), with its
//! messages, and computes their times.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use machinery_api::duration;
use machinery_api::selector::go_quoted as quoted;
use machinery_api::time::time_zone;

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const DESCRIPTORS: &[(&str, &str)] = &[
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];
/// A schedule without a time within this many years never fires.
const YEARS_MAX: i16 = 5;

/// Bounds of a field: minimum, maximum, and names of the numbers from `first` on.
struct Bounds {
    min: u64,
    max: u64,
    names: &'static [&'static str],
    first: u64,
}

const FIELDS: [Bounds; 5] = [
    Bounds { min: 0, max: 59, names: &[], first: 0 },
    Bounds { min: 0, max: 23, names: &[], first: 0 },
    Bounds { min: 1, max: 31, names: &[], first: 0 },
    Bounds { min: 1, max: 12, names: MONTHS, first: 1 },
    Bounds { min: 0, max: 6, names: DAYS, first: 0 },
];

/// A parsed schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// The time zone in the schedule itself, an early syntax.
    zone: Option<TimeZone>,
    due: Recurrence,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Recurrence {
    /// At the minutes whose parts are all set: one bit each.
    At(Fields),
    /// At an interval, from the last time.
    Every(SignedDuration),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether day of month and day of week must both match; else one suffices.
    both: bool,
}

impl Schedule {
    /// Parses a schedule.
    ///
    /// # Errors
    /// The parser's message.
    pub fn parse(schedule: &str) -> Result<Self, String> {
        if schedule.is_empty() {
            return Err("empty spec string".into());
        }
        let (mut rest, mut zone) = (schedule, None);
        if schedule.starts_with("TZ=") || schedule.starts_with("CRON_TZ=") {
            let zone_at = schedule.find('=').map_or(0, |at| at + 1);
            let Some(space) = schedule.find(' ') else {
                // Upstream's parser panics here; upstream catches the panic and reports it.
                return Err(format!(
                    "invalid schedule format: runtime error: slice bounds out of range [{zone_at}:-1]"
                ));
            };
            let name = schedule.get(zone_at..space).unwrap_or("");
            zone = Some(time_zone(name).map_err(|why| format!("provided bad location {name}: {why}"))?);
            rest = schedule[space..].trim();
        }
        let due = if rest.starts_with('@') { descriptor(rest)? } else { Recurrence::At(Fields::parse(rest)?) };
        Ok(Self { zone, due })
    }

    /// The first time after `after`; `zone` applies unless the schedule has one itself. `None`: never.
    #[must_use]
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let after = Timestamp::from_second(after.as_second()).ok()?;
        match &self.due {
            Recurrence::Every(wait) => after.checked_add(*wait).ok(),
            Recurrence::At(fields) => fields.next(after, self.zone.as_ref().unwrap_or(zone)),
        }
    }

    /// The last time until `now`, where `first` is one of the schedule's times.
    #[must_use]
    pub fn last(&self, first: Timestamp, now: Timestamp, zone: &TimeZone) -> Timestamp {
        if let Recurrence::Every(wait) = &self.due {
            let (passed, wait) = (now.duration_since(first).as_secs(), wait.as_secs().max(1));
            let whole = SignedDuration::from_secs(passed.max(0) / wait * wait);
            return first.saturating_add(whole).unwrap_or(first);
        }
        // `next` is monotonic: bisect for the last time.
        let (mut low, mut high, mut last) = (first.as_second(), now.as_second(), first);
        while low < high {
            let middle = low + (high - low) / 2;
            match Timestamp::from_second(middle).ok().and_then(|at| self.next(at, zone)).filter(|due| *due <= now) {
                Some(due) => (last, low) = (due, due.as_second().max(middle + 1)),
                None => high = middle,
            }
        }
        last
    }
}

impl Fields {
    fn parse(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let Ok([minute, hour, day, month, weekday]) = <[&str; 5]>::try_from(fields.as_slice()) else {
            let found = format!("found {}: [{}]", fields.len(), fields.join(" "));
            return Err(format!("expected exactly {} fields, {found}", FIELDS.len()));
        };
        let [minutes, hours, days, months, weekdays] = &FIELDS;
        let ((minutes, _), (hours, _)) = (field(minute, minutes)?, field(hour, hours)?);
        let ((days, any_day), (months, _)) = (field(day, days)?, field(month, months)?);
        let (weekdays, any_weekday) = field(weekday, weekdays)?;
        Ok(Self { minutes, hours, days, months, weekdays, both: any_day || any_weekday })
    }

    fn has_day(&self, date: Date) -> bool {
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        has(self.months, date.month()) && if self.both { day && weekday } else { day || weekday }
    }

    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if self.minutes == 0 || self.hours == 0 {
            return None;
        }
        let minute = after.as_second().div_euclid(60).checked_add(1)?.checked_mul(60)?;
        let mut at = Timestamp::from_second(minute).ok()?;
        let mut date = zone.to_datetime(at).date();
        let last_year = date.year().saturating_add(YEARS_MAX);
        while date.year() <= last_year {
            if self.has_day(date)
                && let Some(due) = self.within(date, at, zone)
            {
                return Some(due);
            }
            date = date.tomorrow().ok()?;
            at = zone.to_zoned(date.at(0, 0, 0, 0)).ok()?.timestamp();
        }
        None
    }

    /// The first time of a day at or after `at`. Hours skipped by a clock change don't occur, repeated ones occur
    /// twice.
    fn within(&self, date: Date, mut at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        loop {
            let local = zone.to_datetime(at);
            if local.date() != date {
                return None;
            }
            let minutes = if !has(self.hours, local.hour()) {
                60 - i64::from(local.minute())
            } else if !has(self.minutes, local.minute()) {
                1
            } else {
                return Some(at);
            };
            at = at.checked_add(SignedDuration::from_secs(60 * minutes)).ok()?;
        }
    }
}

fn has(bits: u64, number: i8) -> bool {
    bits >> number & 1 == 1
}

/// The numbers of a field as bits, and whether it matches any.
fn field(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let ranges = text.split(',').filter(|range| !range.is_empty());
    ranges.map(|range| read_range(range, bounds)).try_fold((0, false), |(bits, any), range| {
        let (more, star) = range?;
        Ok((bits | more, any || star))
    })
}

fn descriptor(text: &str) -> Result<Recurrence, String> {
    if let Some((_, fields)) = DESCRIPTORS.iter().find(|(name, _)| *name == text) {
        return Fields::parse(fields).map(Recurrence::At);
    }
    match text.strip_prefix("@every ") {
        Some(every) => {
            let nanoseconds =
                duration::parse_nanos(every).map_err(|why| format!("failed to parse duration {text}: {why}"))?;
            // Whole seconds, and at least one.
            Ok(Recurrence::Every(SignedDuration::from_secs((nanoseconds / 1_000_000_000).max(1))))
        }
        None => Err(format!("unrecognized descriptor: {text}")),
    }
}

/// The numbers of a range as bits, and whether it is the whole range.
fn read_range(expression: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let parts: Vec<&str> = expression.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let star = matches!(ends[0], "*" | "?");
    let (start, mut end) = if star {
        (bounds.min, bounds.max)
    } else {
        let start = number_or_name(ends[0], bounds)?;
        match ends.as_slice() {
            [_] => (start, start),
            [_, end] => (start, number_or_name(end, bounds)?),
            _ => return Err(format!("too many hyphens: {expression}")),
        }
    };
    let mut step = 1;
    match parts.as_slice() {
        [_] => {}
        [_, given] => {
            step = number(given)?;
            if ends.len() == 1 {
                end = bounds.max;
            }
        }
        _ => return Err(format!("too many slashes: {expression}")),
    }
    let (min, max) = (bounds.min, bounds.max);
    if start < min {
        return Err(format!("beginning of range ({start}) below minimum ({min}): {expression}"));
    }
    if end > max {
        return Err(format!("end of range ({end}) above maximum ({max}): {expression}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {expression}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {expression}"));
    }
    let width = usize::try_from(step).unwrap_or(usize::MAX);
    // `*/2` matches every other number, so it no longer counts as any.
    Ok(((start..=end).step_by(width).fold(0, |bits, number| bits | 1 << number), star && step == 1))
}

fn number_or_name(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let lower = text.to_lowercase();
    match (bounds.first..).zip(bounds.names).find(|(_, name)| **name == lower) {
        Some((number, _)) => Ok(number),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let why = if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        "invalid syntax"
    } else {
        match text.parse::<i64>() {
            Ok(number) => {
                return u64::try_from(number).map_err(|_| format!("negative number ({number}) not allowed: {text}"));
            }
            Err(_) => "value out of range",
        }
    };
    Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {}: {why}", quoted(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the results of robfig/cron v3.0.1.
    #[test]
    fn schedules_are_accepted_or_rejected_as_upstream() {
        for good in [
            "* * * * *",
            "? ? * * ?",
            "*/5 0-3,22 * * *",
            "0 0 31 2 *",
            "0 0 * jan Sun",
            "0 0 1 MAR-jun mon-FRI",
            "5/10 * * * *",
            "@hourly",
            "@every 1h30m",
            "@every 1.5h",
            ", * * * *",
            "+1 * * * *",
            "TZ=Europe/Paris 0 0 * * *",
            "CRON_TZ=UTC  @daily",
        ] {
            assert_eq!(Schedule::parse(good).err(), None, "{good}");
        }
        for (bad, why) in [
            ("", "empty spec string"),
            ("* * *", "expected exactly 5 fields, found 3: [* * *]"),
            ("61 * * * *", "end of range (61) above maximum (59): 61"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("* * L * *", "failed to parse int from L: strconv.Atoi: parsing \"L\": invalid syntax"),
            ("-1 * * * *", "failed to parse int from : strconv.Atoi: parsing \"\": invalid syntax"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("*/-1 * * * *", "negative number (-1) not allowed: -1"),
            (
                "99999999999999999999 * * * *",
                "failed to parse int from 99999999999999999999: strconv.Atoi: parsing \"99999999999999999999\": value out of range",
            ),
            ("@fortnightly", "unrecognized descriptor: @fortnightly"),
            ("@every 1", "failed to parse duration @every 1: time: missing unit in duration \"1\""),
            ("@every 1x", "failed to parse duration @every 1x: time: unknown unit \"x\" in duration \"1x\""),
            ("@every ", "failed to parse duration @every : time: invalid duration \"\""),
            ("TZ=Nowhere/At 0 0 * * *", "provided bad location Nowhere/At: unknown time zone Nowhere/At"),
            ("TZ=UTC", "invalid schedule format: runtime error: slice bounds out of range [3:-1]"),
        ] {
            assert_eq!(Schedule::parse(bad).err().as_deref(), Some(why), "{bad}");
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// With the results of robfig/cron v3.0.1 and Go's time zones, clock changes included.
    #[test]
    fn times_are_upstreams() {
        for line in include_str!("testdata/schedules.jsonl").lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |field: &str| row[field].as_str().unwrap();
            let (schedule, zone) = (Schedule::parse(text("schedule")).unwrap(), time_zone(text("zone")).unwrap());
            let mut after = at(text("after"));
            for due in row["next"].as_array().unwrap() {
                let due = at(due.as_str().unwrap());
                assert_eq!(schedule.next(after, &zone), Some(due), "{row} after {after}");
                after = due;
            }
        }
    }

    #[test]
    fn impossible_schedules_have_no_time() {
        for never in ["0 0 31 2 *", ", * * * *", "* , * * *", "0 0 * , *"] {
            let schedule = Schedule::parse(never).unwrap();
            assert_eq!(schedule.next(at("2026-01-01T00:00:00Z"), &TimeZone::UTC), None, "{never}");
        }
    }

    #[test]
    fn intervals_count_from_the_last_time() {
        let every = |text: &str| {
            let next = Schedule::parse(text).unwrap().next(at("2026-01-01T00:00:00.9Z"), &TimeZone::UTC);
            next.unwrap().to_string()
        };
        assert_eq!(every("@every 1h30m"), "2026-01-01T01:30:00Z");
        assert_eq!(every("@every 1.5h"), "2026-01-01T01:30:00Z");
        assert_eq!(every("@every 90.7s"), "2026-01-01T00:01:30Z");
        assert_eq!(every("@every 3ms"), "2026-01-01T00:00:01Z");
        assert_eq!(every("@every -5m"), "2026-01-01T00:00:01Z");
    }

    #[test]
    fn the_last_time_is_found_among_many() {
        let first = at("2020-01-01T00:00:00Z");
        for (schedule, now, last) in [
            ("* * * 1 *", "2026-07-01T12:00:30Z", "2026-01-31T23:59:00Z"),
            ("0 0 1 1 *", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
            ("0 0 1 1 *", "2025-12-31T23:59:59Z", "2025-01-01T00:00:00Z"),
            ("@every 7s", "2020-01-01T00:00:20Z", "2020-01-01T00:00:14Z"),
            ("0 0 1 1 *", "2020-06-01T00:00:00Z", "2020-01-01T00:00:00Z"),
        ] {
            let found = Schedule::parse(schedule).unwrap().last(first, at(now), &TimeZone::UTC);
            assert_eq!(found, at(last), "{schedule}");
        }
    }

    #[test]
    fn any_text_parses_or_yields_an_error() {
        let (start, zone) = (at("2026-10-24T22:30:00Z"), time_zone("Europe/Berlin").unwrap());
        bolero::check!().with_type::<String>().for_each(|text| {
            for text in [text.clone(), format!("@every {text}"), format!("{text} * * * *")] {
                if let Ok(schedule) = Schedule::parse(&text) {
                    let next = schedule.next(start, &zone);
                    assert!(next.is_none_or(|next| next > start), "{text}");
                }
            }
        });
    }
}
