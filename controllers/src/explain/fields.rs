//! The fields of an object as paths with short values, and the difference of two objects. Pure, and bounded: for people
//! to read.

use std::collections::{BTreeMap, BTreeSet};

use machinery_api::ObjectKey;
use serde::Serialize;
use serde_json::{Map, Value};

/// Maximum characters of a printed value. Longer ones are cut.
const VALUE_CHARS_MAX: usize = 160;
/// Fields that the server sets at each write, or that repeat the object's name.
const SKIPPED: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata.creationTimestamp",
    "metadata.generateName",
    "metadata.generation",
    "metadata.managedFields",
    "metadata.name",
    "metadata.namespace",
    "metadata.resourceVersion",
    "metadata.uid",
];
/// Time stamps of conditions: they change with another field of the condition.
const TIMES: &[&str] = &[".lastHeartbeatTime", ".lastProbeTime", ".lastTransitionTime", ".lastUpdateTime"];
/// Fields that identify an element of a list: taints and tolerations need two, an endpoint has its first address.
const IDENTIFIERS: &[&[&str]] =
    &[&["name"], &["type"], &["ip"], &["addresses"], &["port"], &["uid"], &["key", "effect"], &["key"]];

/// The fields of a reference to an object.
const REFERENCE: &[&str] = &["apiVersion", "fieldPath", "kind", "name", "namespace", "resourceVersion", "uid"];

/// A changed field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// The path: `spec.replicas`, `status.conditions[Ready].status`.
    pub field: String,
    /// The value before; `None` if the field is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The value afterwards; `None` if the field is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

impl FieldChange {
    /// `field=value` of a new object; `field: old -> new` of an existing one. In a status it is named without `status.`.
    pub(super) fn text(&self, is_new: bool, is_status: bool) -> String {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".into());
        let field = if is_status { self.field.strip_prefix("status.") } else { None };
        let field = field.unwrap_or(&self.field);
        if is_new {
            return format!("{field}={}", shown(&self.to));
        }
        format!("{field}: {} -> {}", shown(&self.from), shown(&self.to))
    }
}

/// The fields that differ between two states of an object, in order of their paths. Of a new object (`old` is null)
/// these are all fields.
pub(super) fn difference(old: &Value, new: &Value) -> Vec<FieldChange> {
    let (before, mut after) = (leaves(old), leaves(new));
    let mut changes = Vec::new();
    for (field, from) in before {
        let to = after.remove(&field);
        if to.as_ref() != Some(&from) {
            changes.push(FieldChange { field, from: Some(from), to });
        }
    }
    changes.extend(after.into_iter().map(|(field, to)| FieldChange { field, from: None, to: Some(to) }));
    let is_time = |change: &FieldChange| TIMES.iter().any(|time| change.field.ends_with(time));
    if changes.iter().any(|change| !is_time(change)) {
        changes.retain(|change| !is_time(change));
    }
    changes.sort_by_key(|change| (rank(&change.field), change.field.clone()));
    for change in &mut changes {
        change.from = change.from.take().map(shortened);
        change.to = change.to.take().map(shortened);
    }
    changes
}

/// The place of a field: what an object is for comes before its labels and annotations.
fn rank(field: &str) -> usize {
    let last = ["metadata.ownerReferences", "metadata.labels", "metadata.annotations"];
    last.iter().position(|prefix| field.starts_with(prefix)).map_or(0, |at| at + 1)
}

fn leaves(object: &Value) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    if !object.is_null() {
        add_leaves(object, String::new(), &mut all);
    }
    all
}

fn add_leaves(value: &Value, path: String, all: &mut BTreeMap<String, String>) {
    if SKIPPED.contains(&path.as_str()) {
        return;
    }
    match value {
        Value::Null => {}
        Value::Object(map) if map.is_empty() && path.contains('.') && !path.starts_with("metadata") => {
            all.insert(path, "{}".into());
        }
        Value::Object(map) if is_reference(map) && !path.is_empty() => {
            let text = |field: &str| map.get(field).and_then(Value::as_str).unwrap_or_default();
            let name = ObjectKey::new(text("namespace"), text("name"));
            all.insert(path, format!("{} {name}", text("kind")));
        }
        Value::Object(map) => {
            for (name, value) in map {
                let path = match (path.is_empty(), name.contains(['.', '/'])) {
                    (true, _) => name.clone(),
                    (false, true) => format!("{path}[{name}]"),
                    (false, false) => format!("{path}.{name}"),
                };
                add_leaves(value, path, all);
            }
        }
        Value::Array(elements) if path == "metadata.ownerReferences" => {
            for owner in elements {
                let text = |field: &str| owner[field].as_str().unwrap_or_default();
                let role = if owner["controller"] == true { "controller" } else { "owner" };
                let blocks = if owner["blockOwnerDeletion"] == true { ", blocks its deletion" } else { "" };
                all.insert(format!("{path}[{} {}]", text("kind"), text("name")), format!("{role}{blocks}"));
            }
        }
        Value::Array(elements) if path == "status.conditions" => {
            for condition in elements {
                let text = |field: &str| condition[field].as_str().unwrap_or_default();
                let path = format!("{path}[{}]", text("type"));
                for time in TIMES.iter().filter(|time| condition[time.trim_start_matches('.')].is_string()) {
                    all.insert(format!("{path}{time}"), text(time.trim_start_matches('.')).to_owned());
                }
                let message = if text("message").is_empty() { String::new() } else { quoted(text("message")) };
                let parts = [text("status").to_owned(), text("reason").to_owned(), message];
                let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
                all.insert(path, parts.join(" "));
            }
        }
        Value::Array(elements) => match identified(elements) {
            Some(named) => {
                for (name, element) in named {
                    add_leaves(&element, format!("{path}[{name}]"), all);
                }
            }
            None => drop(all.insert(path, value.to_string())),
        },
        Value::String(text) if is_plain(text) => drop(all.insert(path, text.clone())),
        scalar => drop(all.insert(path, scalar.to_string())),
    }
}

/// A list's elements by name, without the fields that have it, if some of [`IDENTIFIERS`] are different in each of them.
/// An element that is only a name keeps it.
fn identified(elements: &[Value]) -> Option<Vec<(String, Value)>> {
    if elements.is_empty() {
        return None;
    }
    IDENTIFIERS.iter().find_map(|fields| {
        let named: Vec<(String, Value)> = elements.iter().filter_map(|element| named(element, fields)).collect();
        let distinct: BTreeSet<&String> = named.iter().map(|(name, _)| name).collect();
        (distinct.len() == elements.len()).then_some(named)
    })
}

/// An element with its name, which these fields have.
fn named(element: &Value, fields: &[&str]) -> Option<(String, Value)> {
    let text = |field: &&str| match &element[*field] {
        Value::Array(list) => list.first().and_then(Value::as_str).map(str::to_owned),
        Value::String(name) => Some(name.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let names: Vec<String> = fields.iter().filter_map(text).filter(|name| !name.is_empty()).collect();
    let mut element = element.clone();
    if let Some(map) = element.as_object_mut().filter(|map| map.len() > fields.len()) {
        fields.iter().for_each(|field| drop(map.remove(*field)));
    }
    (names.len() == fields.len()).then(|| (names.join(":"), element))
}

/// Whether an object is nothing but a reference to another one.
fn is_reference(map: &Map<String, Value>) -> bool {
    ["kind", "name"].iter().all(|field| map.contains_key(*field))
        && map.keys().all(|field| REFERENCE.contains(&field.as_str()))
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Whether a text is readable without quotes.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, '"' | ';' | '='))
}

fn shortened(value: String) -> String {
    match value.char_indices().nth(VALUE_CHARS_MAX) {
        Some((at, _)) => format!("{}...", &value[..at]),
        None => value,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(old: Value, new: Value) -> Vec<String> {
        difference(&old, &new).iter().map(|change| change.text(old.is_null(), false)).collect()
    }

    #[test]
    fn fields_are_named_by_path_and_by_the_names_of_elements() {
        let old = json!({"metadata": {"resourceVersion": "1", "labels": {"a.b/c": "x"}}, "spec": {"args": ["a b"]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "1"}], "old": 1}});
        let mut new = old.clone();
        new["metadata"]["resourceVersion"] = json!("2");
        new["metadata"]["labels"]["a.b/c"] = json!("y");
        new["spec"]["args"] = json!([]);
        new["status"] = json!({"conditions": [{"type": "Ready", "status": "False", "reason": "because", "message": "a b", "lastTransitionTime": "2"}], "new": "a b"});
        let wanted = [
            "spec.args: [\"a b\"] -> []",
            "status.conditions[Ready]: True -> False because \"a b\"",
            "status.new: none -> \"a b\"",
            "status.old: 1 -> none",
            "metadata.labels[a.b/c]: x -> y",
        ];
        assert_eq!(texts(old, new), wanted);
    }

    #[test]
    fn the_fields_of_a_new_object_are_listed() {
        let owner = json!({"kind": "Job", "name": "j", "controller": true, "blockOwnerDeletion": true});
        let long = "é".repeat(VALUE_CHARS_MAX + 1);
        let new = json!({"kind": "Pod", "metadata": {"name": "p", "ownerReferences": [owner]}, "spec": {"long": long}});
        let cut = format!("spec.long={}...", "é".repeat(VALUE_CHARS_MAX));
        let owner = "metadata.ownerReferences[Job j]=controller, blocks its deletion";
        assert_eq!(texts(Value::Null, new), [&cut, owner]);
    }

    #[test]
    fn a_time_stamp_is_listed_only_if_nothing_else_changes() {
        let at = |time: &str| json!({"status": {"conditions": [{"type": "Ready", "lastProbeTime": time}]}});
        assert_eq!(texts(at("1"), at("2")), ["status.conditions[Ready].lastProbeTime: 1 -> 2"]);
    }
}
