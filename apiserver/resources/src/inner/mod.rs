//! Go's inner structs as its encoder shows them in upstream's messages: by their own names, with everything that is absent.
//!
//! `structs.txt` has them by reflection: a struct's name, and below it each field's name (`?`: left out where it is empty), the key
//! of the served version (`-`: its fields are the struct's own) and its type. A name of `-`: the fields below the key are the struct's
//! own in Go.

mod diff;

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

use crate::field::{ErrorList, FieldError, Path, go_json};
use crate::read::{get, is_zero};

struct Field {
    name: &'static str,
    key: &'static str,
    omit_empty: bool,
    kind: &'static str,
}

static STRUCTS: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| {
    let mut structs: HashMap<&str, Vec<Field>> = HashMap::new();
    let mut of = "";
    for line in include_str!("structs.txt").lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        match (words.next(), words.next()) {
            (Some(key), Some(kind)) => {
                let name = first.trim_start_matches('?');
                structs.entry(of).or_default().push(Field { name, key, omit_empty: name != first, kind });
            }
            _ => of = first,
        }
    }
    structs
});

/// What differs between two of a struct, as upstream's `diff.Diff` tells it.
pub(crate) fn difference(old: &Value, new: &Value, of: &str) -> String {
    diff::unified(&pretty(old, of), &pretty(new, of))
}

/// A value that is refused, shown as the struct `of` has it.
pub(crate) fn invalid(errors: &mut ErrorList, field: &Path<'_>, value: &Value, of: &str, detail: &str) {
    errors.add(|| FieldError::invalid_shown(field, &compact(value, of), detail));
}

/// On one line, as `json.Marshal` has it.
fn compact(value: &Value, of: &str) -> String {
    let mut writer = Writer { out: String::new(), depth: 0, pretty: false };
    writer.value(value, of);
    writer.out
}

/// One field a line, as `json.MarshalIndent` has it.
fn pretty(value: &Value, of: &str) -> String {
    let mut writer = Writer { out: String::new(), depth: 0, pretty: true };
    writer.value(value, of);
    writer.out
}

struct Writer {
    out: String,
    depth: usize,
    pretty: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, kind: &str) {
        let absent = value.is_null();
        if let Some(inner) = kind.strip_prefix('*') {
            return if absent { self.out.push_str("null") } else { self.value(value, inner) };
        }
        match (kind, absent) {
            ("string", true) => self.out.push_str("\"\""),
            ("int", true) => self.out.push('0'),
            ("bool", true) => self.out.push_str("false"),
            ("quantity", true) => self.out.push_str("\"0\""),
            ("any" | "time", true) => self.out.push_str("null"),
            ("string" | "int" | "bool" | "quantity" | "any" | "time", false) => self.out.push_str(&go_json(value)),
            _ => self.composed(value, kind),
        }
    }

    fn composed(&mut self, value: &Value, kind: &str) {
        let inner = kind.strip_prefix("[]").or_else(|| kind.strip_prefix("{}"));
        match (inner, value) {
            (Some(_), Value::Null) => self.out.push_str("null"),
            (Some(inner), Value::Array(items)) => {
                self.within('[', ']', items, |writer, item| writer.value(item, inner))
            }
            (Some(inner), Value::Object(map)) => self.within('{', '}', map, |writer, (key, item)| {
                writer.key(key);
                writer.value(item, inner);
            }),
            _ => {
                let mut fields = Vec::new();
                flattened(value, kind, &mut fields);
                self.within('{', '}', fields, |writer, (field, item)| {
                    writer.key(field.name);
                    writer.value(item, field.kind);
                });
            }
        }
    }

    fn key(&mut self, key: &str) {
        self.out.push_str(&go_json(&Value::from(key)));
        self.out.push_str(if self.pretty { ": " } else { ":" });
    }

    fn line(&mut self) {
        if self.pretty {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', self.depth));
        }
    }

    fn within<T>(&mut self, open: char, close: char, of: impl IntoIterator<Item = T>, each: impl Fn(&mut Self, T)) {
        self.out.push(open);
        self.depth += 1;
        let mut any = false;
        for one in of {
            if any {
                self.out.push(',');
            }
            any = true;
            self.line();
            each(self, one);
        }
        self.depth -= 1;
        if any {
            self.line();
        }
        self.out.push(close);
    }
}

fn flattened<'a>(value: &'a Value, of: &str, into: &mut Vec<(&'static Field, &'a Value)>) {
    for field in STRUCTS.get(of).into_iter().flatten() {
        let item = get(value, field.key);
        if field.key == "-" {
            flattened(value, field.kind, into);
        } else if field.name == "-" {
            flattened(item, field.kind, into);
        } else if !(field.omit_empty && if field.kind.starts_with('*') { item.is_null() } else { is_zero(item) }) {
            into.push((field, item));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_type_of_a_field_is_known() {
        for field in STRUCTS.values().flatten() {
            let of = field.kind.trim_start_matches(['*', '[', ']', '{', '}']);
            let plain = ["string", "int", "bool", "quantity", "any", "time"].contains(&of);
            assert!(plain || STRUCTS.contains_key(of), "{}: {of}", field.name);
        }
    }

    /// As upstream shows it.
    #[test]
    fn the_metadata_of_a_template_is_its_own() {
        let template = json!({
            "metadata": {"annotations": {"c": "d"}, "labels": {"a": "b"}, "creationTimestamp": null, "finalizers": ["a.b/c"],
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": false}]},
            "spec": {"devices": {"requests": [{"name": "one"}]}},
        });
        assert_eq!(
            compact(&template, "ResourceClaimTemplateSpec"),
            r#"{"labels":{"a":"b"},"annotations":{"c":"d"},"ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"p","uid":"u","controller":false}],"finalizers":["a.b/c"],"Spec":{"Devices":{"Requests":[{"Name":"one","Exactly":null,"FirstAvailable":null}],"Constraints":null,"Config":null}}}"#
        );
        assert!(compact(&json!({"spec": {}}), "PodTemplateSpec").starts_with(r#"{"Spec":{"Volumes":null,"#));
    }

    /// As Go prints them.
    #[test]
    fn what_is_absent_is_shown_as_it_is_in_go() {
        let attribute = json!({"int": 1, "string": "<"});
        assert_eq!(
            compact(&attribute, "DeviceAttribute"),
            r#"{"IntValue":1,"BoolValue":null,"StringValue":"\u003c","VersionValue":null,"IntValues":null,"BoolValues":null,"StringValues":null,"VersionValues":null}"#
        );
        let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": []}]}});
        assert_eq!(
            pretty(&affinity, "VolumeNodeAffinity"),
            "{\n \"Required\": {\n  \"NodeSelectorTerms\": [\n   {\n    \"MatchExpressions\": [],\n    \"MatchFields\": null\n   }\n  ]\n }\n}"
        );
        let selector = json!({"matchLabels": {}, "matchExpressions": [{"key": "a", "operator": "Exists"}]});
        assert_eq!(compact(&selector, "LabelSelector"), r#"{"matchExpressions":[{"key":"a","operator":"Exists"}]}"#);
    }
}
