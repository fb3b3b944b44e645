//! Applies the three types of patches, as far as controllers send them.

use serde_json::{Map, Value};

use crate::request::PatchType;

/// Merge keys of the lists that controllers patch strategically; every other list is replaced.
const MERGE_KEYS: &[(&str, &str)] = &[("conditions", "type"), ("ownerReferences", "uid"), ("addresses", "type")];

/// Applies a patch.
pub(super) fn apply(object: &mut Value, patch_type: PatchType, patch: &Value) -> Result<(), String> {
    match patch_type {
        PatchType::Merge => merge(object, patch, false),
        PatchType::Strategic => merge(object, patch, true),
        PatchType::Json => {
            for operation in patch.as_array().into_iter().flatten() {
                operate(object, operation).map_err(|()| format!("cannot apply {operation}"))?;
            }
        }
    }
    Ok(())
}

/// A merge patch (RFC 7386); if strategic, lists of objects are merged by their keys.
fn merge(target: &mut Value, patch: &Value, strategic: bool) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return };
    for (name, value) in patch {
        let key = MERGE_KEYS.iter().find(|(list, _)| strategic && list == name).map(|(_, key)| *key);
        match (value, key) {
            (Value::Null, _) => {
                map.remove(name);
            }
            (Value::Array(elements), Some(key)) => {
                let list = map.entry(name.clone()).or_insert(Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    elements.iter().for_each(|element| merge_element(list, element, key));
                }
            }
            _ => merge(map.entry(name.clone()).or_insert(Value::Null), value, strategic),
        }
    }
}

fn merge_element(list: &mut Vec<Value>, element: &Value, key: &str) {
    let at = list.iter().position(|known| known[key] == element[key]);
    match at {
        Some(at) if element["$patch"] == "delete" => {
            list.remove(at);
        }
        Some(at) => merge(&mut list[at], element, true),
        None if element["$patch"] == "delete" => {}
        None => list.push(element.clone()),
    }
}

/// One operation of RFC 6902.
fn operate(object: &mut Value, operation: &Value) -> Result<(), ()> {
    let path = operation["path"].as_str().ok_or(())?;
    let value = &operation["value"];
    let (parent, name) = path.rsplit_once('/').ok_or(())?;
    let name = name.replace("~1", "/").replace("~0", "~");
    match operation["op"].as_str() {
        Some("test") => return if object.pointer(path).unwrap_or(&Value::Null) == value { Ok(()) } else { Err(()) },
        Some("replace") => *object.pointer_mut(path).ok_or(())? = value.clone(),
        Some("add") => match object.pointer_mut(parent).ok_or(())? {
            Value::Object(map) => drop(map.insert(name, value.clone())),
            Value::Array(list) if name == "-" => list.push(value.clone()),
            Value::Array(list) => {
                let at = name.parse().ok().filter(|at| *at <= list.len()).ok_or(())?;
                list.insert(at, value.clone());
            }
            _ => return Err(()),
        },
        Some("remove") => match object.pointer_mut(parent).ok_or(())? {
            Value::Object(map) => drop(map.remove(&name).ok_or(())?),
            Value::Array(list) => {
                let at = name.parse().ok().filter(|at| *at < list.len()).ok_or(())?;
                list.remove(at);
            }
            _ => return Err(()),
        },
        _ => return Err(()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_patch_type_changes_its_fields() {
        let pod = || json!({"metadata": {"labels": {"a": "1"}}, "status": {"conditions": [{"type": "A", "status": "True", "x": 1}, {"type": "B"}]}});
        let patched = |patch_type, patch: Value| {
            let mut object = pod();
            apply(&mut object, patch_type, &patch).map(|()| object)
        };
        let conditions = json!({"status": {"conditions": [{"type": "A", "status": "False"}, {"type": "C"}]}});
        let strategic = patched(PatchType::Strategic, conditions.clone()).unwrap();
        let merged = json!([{"type": "A", "status": "False", "x": 1}, {"type": "B"}, {"type": "C"}]);
        assert_eq!(strategic["status"]["conditions"], merged);
        let whole = patched(PatchType::Merge, conditions.clone()).unwrap();
        assert_eq!(whole["status"], conditions["status"]);
        let operations = json!([{"op": "test", "path": "/metadata/labels/a", "value": "1"},
            {"op": "add", "path": "/metadata/labels/b~1c", "value": "2"}, {"op": "remove", "path": "/status/conditions/0"}]);
        let json = patched(PatchType::Json, operations).unwrap();
        assert_eq!(
            json,
            json!({"metadata": {"labels": {"a": "1", "b/c": "2"}}, "status": {"conditions": [{"type": "B"}]}})
        );
        patched(PatchType::Json, json!([{"op": "test", "path": "/metadata/labels/a", "value": "2"}])).unwrap_err();
    }
}
