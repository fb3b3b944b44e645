//! Merges an apply configuration into an object, by the list and map types of its schema. Atomic fields are rejected:
//! setting a part of one would remove the rest.

use apiserver_schema::apply;
use apiserver_schema::{Field, Kind, ListType, Type, TypeRef, Types};
use serde_json::{Map, Value};

/// Merges a configuration into an object.
pub(super) fn merge(object: &mut Value, configuration: &Value, of: TypeRef<'_>) -> Result<(), String> {
    apply::check(of, configuration, false)
        .map_err(|why| format!("error applying patch: failed to convert patch object to typed object: {why}"))?;
    let mut merger = Merger { types: of.types, atomics: Vec::new() };
    let mut merged = object.clone();
    merger.object(&mut merged, configuration, Some(of.of), "");
    if !merger.atomics.is_empty() {
        let paths = merger.atomics.join(", ");
        let why = format!("invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {paths}");
        return Err(format!("error applying patch: {why}"));
    }
    *object = merged;
    Ok(())
}

struct Merger<'t> {
    types: &'t Types,
    atomics: Vec<String>,
}

impl<'t> Merger<'t> {
    fn object(&mut self, into: &mut Value, from: &Value, ty: Option<&'t Type>, path: &str) {
        let Some(from) = from.as_object() else {
            *into = from.clone();
            return;
        };
        if !into.is_object() {
            *into = Value::Object(Map::new());
        }
        let Some(into) = into.as_object_mut() else { return };
        for (name, value) in from {
            let path = format!("{path}.{name}");
            let slot = into.entry(name.clone()).or_insert(Value::Null);
            match ty.and_then(|ty| ty.field(name)) {
                Some(field) => self.field(slot, value, field, &path),
                None => self.value(slot, value, &Kind::Any, &ListType::Unsaid, &path),
            }
        }
    }

    fn field(&mut self, into: &mut Value, from: &Value, field: &'t Field, path: &str) {
        if field.atomic && from.is_object() {
            self.atomics.push(path.to_owned());
        }
        self.value(into, from, &field.kind, &field.list, path);
    }

    fn value(&mut self, into: &mut Value, from: &Value, kind: &'t Kind, list: &'t ListType, path: &str) {
        match (kind, from) {
            (Kind::Object(id), Value::Object(_)) => self.object(into, from, Some(self.types.get(*id)), path),
            (Kind::Map(inner), Value::Object(entries)) => {
                if !into.is_object() {
                    *into = Value::Object(Map::new());
                }
                let Some(into) = into.as_object_mut() else { return };
                for (name, value) in entries {
                    let slot = into.entry(name.clone()).or_insert(Value::Null);
                    self.value(slot, value, inner, &ListType::Unsaid, &format!("{path}.{name}"));
                }
            }
            (Kind::Any, Value::Object(_)) => self.object(into, from, None, path),
            (Kind::List(inner), Value::Array(items)) => self.list(into, items, inner, list, path),
            (Kind::Any, Value::Array(_)) => {
                self.atomics.push(path.to_owned());
                *into = from.clone();
            }
            _ => *into = from.clone(),
        }
    }

    fn list(&mut self, into: &mut Value, from: &[Value], item: &'t Kind, list: &'t ListType, path: &str) {
        if !into.is_array() {
            *into = Value::Array(Vec::new());
        }
        let Some(into) = into.as_array_mut() else { return };
        match list {
            ListType::Set => {
                for value in from {
                    if !into.contains(value) {
                        into.push(value.clone());
                    }
                }
            }
            ListType::Map(keys) => {
                let ty = match item {
                    Kind::Object(id) => Some(self.types.get(*id)),
                    _ => None,
                };
                let is_whole = ty.is_some_and(|ty| ty.atomic);
                let default = |key: &str| ty.and_then(|ty| ty.field(key)?.default.clone()).unwrap_or(Value::Null);
                let key_of = |item: &Value| -> Vec<Value> {
                    let of = |key: &str| item.get(key).cloned().unwrap_or_else(|| default(key));
                    keys.iter().map(|key| of(key)).collect()
                };
                for (number, value) in from.iter().enumerate() {
                    let path = format!("{path}[{number}]");
                    if is_whole {
                        self.atomics.push(path.clone());
                    }
                    let key = key_of(value);
                    let at = into.iter().position(|item| key_of(item) == key).unwrap_or_else(|| {
                        into.push(Value::Object(Map::new()));
                        into.len() - 1
                    });
                    self.value(&mut into[at], value, item, &ListType::Unsaid, &path);
                }
            }
            ListType::Unsaid | ListType::Atomic => {
                self.atomics.push(path.to_owned());
                *into = from.to_vec();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use apiserver_schema::{SharedType, built_in};
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_merge_by_their_type() {
        let pod = SharedType::named(built_in(), "io.k8s.api.core.v1.Pod").expect("a type");
        let mut object = json!({
            "metadata": {"labels": {"a": "b"}, "finalizers": ["x"]},
            "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "name": "p"}]}]},
        });
        let configuration = json!({
            "metadata": {"labels": {"m": "1"}, "finalizers": ["y", "x"]},
            "spec": {"containers": [
                {"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP", "hostPort": 8}]},
                {"name": "d", "image": "j"},
            ]},
        });
        merge(&mut object, &configuration, pod.get()).expect("merges");
        let expected = json!({
            "metadata": {"labels": {"a": "b", "m": "1"}, "finalizers": ["x", "y"]},
            "spec": {"containers": [
                {"name": "c", "image": "i", "ports": [{"containerPort": 80, "name": "p", "protocol": "TCP", "hostPort": 8}]},
                {"name": "d", "image": "j"},
            ]},
        });
        assert_eq!(object, expected);
        let atomic = json!({"spec": {"containers": [{"name": "c", "command": ["x"]}]}});
        let refused = merge(&mut object, &atomic, pod.get()).expect_err("atomic");
        assert!(
            refused.contains("may not mutate atomic arrays, maps or structs: .spec.containers[0].command"),
            "{refused}"
        );
        assert_eq!(object, expected);
        for (configuration, why) in [
            (json!({"spec": {"nothing": 1}}), ".spec.nothing: field not declared in schema"),
            (
                json!({"spec": {"hostname": 1}}),
                ".spec.hostname: expected string, got &value.valueUnstructured{Value:1}",
            ),
            (
                json!({"spec": {"containers": [{"name": "c"}, {"name": "c"}]}}),
                ".spec.containers: duplicate entries for key [name=\"c\"]",
            ),
        ] {
            let refused = merge(&mut object, &configuration, pod.get()).expect_err("it doesn't fit");
            let prefix = "error applying patch: failed to convert patch object to typed object: ";
            assert_eq!(refused, format!("{prefix}{why}"));
        }
    }
}
