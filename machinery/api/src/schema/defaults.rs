//! The defaults that types declare themselves; what a kind defaults by its own rules is in `resources`.

use serde_json::{Map, Value};

use super::table::{Kind, Type, table};

/// Fills in declared defaults, in the whole object. Idempotent.
pub fn default(type_name: &str, object: &mut Value) {
    if let (Some(found), Some(map)) = (table().by_name(type_name), object.as_object_mut()) {
        fill(found, map);
    }
}

fn fill(found: &Type, map: &mut Map<String, Value>) {
    for field in &found.fields {
        if let Some(default) = &field.default {
            let unset = match map.get(field.name) {
                None | Some(Value::Null) => true,
                Some(Value::String(text)) => text.is_empty() && !field.pointer,
                Some(_) => false,
            };
            if unset {
                map.insert(field.name.into(), default.clone());
                continue;
            }
        }
        if let Some(value) = map.get_mut(field.name) {
            descend(&field.kind, value);
        }
    }
}

fn descend(kind: &Kind, value: &mut Value) {
    match (kind, value) {
        (Kind::Object(id), Value::Object(map)) => fill(table().get(*id), map),
        (Kind::List(inner), Value::Array(items)) => items.iter_mut().for_each(|item| descend(inner, item)),
        (Kind::Map(inner), Value::Object(map)) => map.values_mut().for_each(|item| descend(inner, item)),
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
        default("io.k8s.api.apps.v1.Deployment", &mut object);
        let ports = &object["spec"]["template"]["spec"]["containers"][0]["ports"];
        assert_eq!(*ports, json!([{"containerPort": 1, "protocol": "TCP"}, {"protocol": "UDP"}]));
    }
}
