//! Table cells that several kinds share: ages, durations, label selectors, images.

use std::time::Duration;

use apiserver_schema::types::Text;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Column;
use crate::read;

/// A column of the default output.
#[must_use]
pub const fn column(name: &'static str, kind: &'static str) -> Column {
    with_priority(name, kind, 0)
}

/// A column of `-o wide`.
#[must_use]
pub const fn wide(name: &'static str, kind: &'static str) -> Column {
    with_priority(name, kind, 1)
}

const fn with_priority(name: &'static str, kind: &'static str, priority: i32) -> Column {
    Column {
        name: Text::Borrowed(name),
        kind: Text::Borrowed(kind),
        format: Text::Borrowed(""),
        description: Text::Borrowed(""),
        priority,
    }
}

/// The column of names.
pub const NAME: Column = names("Name", 0);
/// The column of names, only with `-o wide`.
pub const WIDE_NAME: Column = names("Name", 1);

/// A column of other objects' names, in the default output.
#[must_use]
pub const fn names_column(name: &'static str) -> Column {
    names(name, 0)
}

const fn names(name: &'static str, priority: i32) -> Column {
    Column {
        name: Text::Borrowed(name),
        kind: Text::Borrowed("string"),
        format: Text::Borrowed("name"),
        description: Text::Borrowed(""),
        priority,
    }
}

/// The column of ages.
pub const AGE: Column = column("Age", "string");

/// Name and Age.
pub const NAME_AND_AGE: &[Column] = &[NAME, AGE];

/// Name and Created At: kinds without a printer in upstream.
pub const NAME_AND_CREATED: &[Column] = &[NAME, column("Created At", "date")];

/// The cells of [`NAME_AND_AGE`].
#[must_use]
pub fn name_and_age(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

/// The cells of [`NAME_AND_CREATED`].
#[must_use]
pub fn name_and_created(object: &Value) -> Vec<Value> {
    vec![name(object), read::at(object, &["metadata", "creationTimestamp"]).clone()]
}

/// The object's name as a cell.
#[must_use]
pub fn name(object: &Value) -> Value {
    json!(read::name(object))
}

/// The object's age as a cell.
#[must_use]
pub fn age(object: &Value, now: Timestamp) -> Value {
    json!(since(read::time(read::get(object, "metadata"), "creationTimestamp"), now))
}

/// The time from `then` until now, or `<unknown>`.
#[must_use]
pub fn since(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map_or_else(|| "<unknown>".into(), |then| human_duration(now.duration_since(then)))
}

/// A duration in two or three units, in the format of kubectl's ages (k8s.io/apimachinery `util/duration`).
#[must_use]
pub fn human_duration(duration: jiff::SignedDuration) -> String {
    let seconds = duration.as_secs();
    if seconds < -1 {
        return "<invalid>".into();
    }
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |many: i64, unit: &str, rest: i64, rest_unit: &str| {
        if rest == 0 { format!("{many}{unit}") } else { format!("{many}{unit}{rest}{rest_unit}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => two(days, "d", hours % 24, "h"),
        () if years < 2 => format!("{days}d"),
        () if years < 8 => two(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

/// A measured duration, which is no difference of timestamps.
#[must_use]
pub fn human_std_duration(duration: Duration) -> String {
    human_duration(jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX))
}

/// A map of labels as `a=b,c=d`, or `none`.
#[must_use]
pub fn labels(map: &Value, none: &str) -> String {
    let list: Vec<String> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("")))
        .collect();
    if list.is_empty() { none.into() } else { list.join(",") }
}

/// A label selector in kubectl's format.
#[must_use]
pub fn selector(selector: &Value) -> String {
    if selector.is_null() {
        return "<none>".into();
    }
    let mut parts: Vec<(String, String)> = read::entries(selector, "matchLabels")
        .map(|(key, value)| (key.clone(), format!("{key}={}", value.as_str().unwrap_or(""))))
        .collect();
    for expression in read::items(selector, "matchExpressions") {
        let key = read::text(expression, "key");
        let mut values: Vec<&str> = read::texts(expression, "values").collect();
        values.sort_unstable();
        let values = values.join(",");
        let shown = match read::text(expression, "operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return "<error>".into(),
        };
        parts.push((key.to_owned(), shown));
    }
    if parts.is_empty() {
        return "<none>".into();
    }
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    parts.into_iter().map(|(_, shown)| shown).collect::<Vec<_>>().join(",")
}

/// A selector of either kind: a map of labels, as in ReplicationControllers, or a label selector.
#[must_use]
pub fn any_selector(value: &Value) -> String {
    match value.as_object() {
        Some(map) if !map.is_empty() && map.values().all(Value::is_string) => labels(value, "<none>"),
        _ => selector(value),
    }
}

/// The names and images of a pod template's containers, for the wide columns of workloads.
#[must_use]
pub fn containers_and_images(template: &Value) -> (Value, Value) {
    let containers = read::items(read::get(template, "spec"), "containers");
    let list = |key: &str| json!(containers.iter().map(|c| read::text(c, key)).collect::<Vec<_>>().join(","));
    (list("name"), list("image"))
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn durations_as_kubectl_shows_them() {
        for (seconds, shown) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (119, "119s"),
            (120, "2m"),
            (185, "3m5s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (9 * 3600 + 60, "9h"),
            (49 * 3600, "2d1h"),
            (9 * 86400, "9d"),
            (2 * 365 * 86400 + 86400, "2y1d"),
            (9 * 365 * 86400, "9y"),
        ] {
            assert_eq!(human_duration(SignedDuration::from_secs(seconds)), shown);
        }
    }

    #[test]
    fn selectors() {
        let given = json!({"matchLabels": {"app": "x"}, "matchExpressions": [
            {"key": "a", "operator": "In", "values": ["2", "1"]}, {"key": "b", "operator": "DoesNotExist"}]});
        assert_eq!(selector(&given), "a in (1,2),app=x,!b");
    }
}
