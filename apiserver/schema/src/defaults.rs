//! Defaults declared in types; defaults by a kind's own rules are in `resources`.

use serde_json::{Map, Value};

use super::types::{Kind, Type, TypeRef, Types};

/// Sets declared defaults in the whole object. Idempotent.
pub fn default(found: TypeRef<'_>, object: &mut Value) {
    if let Some(unstructured) = &found.of.unstructured {
        return unstructured.default(object);
    }
    if let Some(map) = object.as_object_mut() {
        fill(found.types, found.of, map);
    }
}

fn fill(types: &Types, found: &Type, map: &mut Map<String, Value>) {
    for field in &found.fields {
        // A zero value is stored as absent: as a default it only completes the keys of list items.
        let is_zero = |default: &Value| !field.pointer && default.as_str() == Some("");
        if let Some(default) = field.default.as_ref().filter(|default| !is_zero(default)) {
            let unset = match map.get(&*field.name) {
                None | Some(Value::Null) => true,
                Some(Value::String(text)) => text.is_empty() && !field.pointer,
                Some(_) => false,
            };
            if unset {
                map.insert(field.name.as_ref().into(), default.clone());
            }
        }
        if let Some(value) = map.get_mut(&*field.name) {
            descend(types, &field.kind, value);
        }
    }
}

fn descend(types: &Types, kind: &Kind, value: &mut Value) {
    match (kind, value) {
        (Kind::Object(id), Value::Object(map)) => fill(types, types.get(*id), map),
        (Kind::List(inner), Value::Array(items)) => items.iter_mut().for_each(|item| descend(types, inner, item)),
        (Kind::Map(inner), Value::Object(map)) => map.values_mut().for_each(|item| descend(types, inner, item)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn declared_defaults_reach_templates() {
        let mut object = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1}, {"protocol": "UDP"}]}]}}}});
        default(super::super::built_in().by_name("io.k8s.api.apps.v1.Deployment").unwrap(), &mut object);
        let ports = &object["spec"]["template"]["spec"]["containers"][0]["ports"];
        assert_eq!(*ports, json!([{"containerPort": 1, "protocol": "TCP"}, {"protocol": "UDP"}]));
    }
}
