//! Encodes OpenAPI v3 JSON as gnostic's protobuf messages, by field number. Covers only what our documents contain.

use serde_json::Value;

use super::message::{Message, VARINT, entries};

/// `Document`.
pub(super) fn document(of: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, &of["openapi"]);
    let mut info = Message::default();
    info.text(1, &of["info"]["title"]);
    info.text(6, &of["info"]["version"]);
    out.message(2, info);
    let mut paths = Message::default();
    for (path, item) in entries(&of["paths"]) {
        paths.named(1, path, &path_item(item).0);
    }
    out.message(4, paths);
    let mut components = Message::default();
    if of["components"]["schemas"].is_object() {
        components.message(1, named_schemas(&of["components"]["schemas"]));
    }
    let mut schemes = Message::default();
    for (name, scheme) in entries(&of["components"]["securitySchemes"]) {
        let mut key = Message::default();
        for (number, field) in [(1, "type"), (2, "description"), (3, "name"), (4, "in")] {
            key.text(number, &scheme[field]);
        }
        let mut either = Message::default();
        either.message(1, key);
        schemes.named(1, name, &either.0);
    }
    components.message(7, schemes);
    out.message(5, components);
    out.0
}

/// `SchemasOrReferences` and `Properties`.
fn named_schemas(of: &Value) -> Message {
    let mut all = Message::default();
    for (name, of) in entries(of) {
        all.named(1, name, &either(of).0);
    }
    all
}

/// `SchemaOrReference`.
fn either(of: &Value) -> Message {
    let mut out = Message::default();
    if of["$ref"].is_string() {
        let mut reference = Message::default();
        for (number, name) in [(1, "$ref"), (2, "summary"), (3, "description")] {
            reference.text(number, &of[name]);
        }
        out.message(2, reference);
    } else {
        out.message(1, schema(of));
    }
    out
}

fn schema(of: &Value) -> Message {
    let mut out = Message::default();
    out.bool(1, &of["nullable"]);
    out.text(9, &of["title"]);
    out.double(10, &of["multipleOf"]);
    out.double(11, &of["maximum"]);
    out.bool(12, &of["exclusiveMaximum"]);
    out.double(13, &of["minimum"]);
    out.bool(14, &of["exclusiveMinimum"]);
    out.int(15, &of["maxLength"]);
    out.int(16, &of["minLength"]);
    out.text(17, &of["pattern"]);
    out.int(18, &of["maxItems"]);
    out.int(19, &of["minItems"]);
    out.bool(20, &of["uniqueItems"]);
    out.int(21, &of["maxProperties"]);
    out.int(22, &of["minProperties"]);
    out.texts(23, &of["required"]);
    for value in of["enum"].as_array().into_iter().flatten() {
        out.any(24, value);
    }
    out.text(25, &of["type"]);
    for (number, name) in [(26, "allOf"), (27, "oneOf"), (28, "anyOf")] {
        for of in of[name].as_array().into_iter().flatten() {
            out.message(number, either(of));
        }
    }
    if of["not"].is_object() {
        out.message(29, schema(&of["not"]));
    }
    if of["items"].is_object() {
        let mut items = Message::default();
        items.message(1, either(&of["items"]));
        out.message(30, items);
    }
    if of["properties"].is_object() {
        out.message(31, named_schemas(&of["properties"]));
    }
    match &of["additionalProperties"] {
        Value::Bool(allowed) => {
            let mut item = Message::default();
            item.tag(2, VARINT);
            item.varint(u64::from(*allowed));
            out.message(32, item);
        }
        of @ Value::Object(_) => {
            let mut item = Message::default();
            item.message(1, either(of));
            out.message(32, item);
        }
        _ => {}
    }
    if let Some(default) = of.get("default") {
        out.message(33, self::default(default));
    }
    out.text(34, &of["description"]);
    out.text(35, &of["format"]);
    out.extensions(36, of);
    out
}

/// `DefaultType`, which has no field for lists and objects.
fn default(of: &Value) -> Message {
    let mut out = Message::default();
    match of {
        Value::Number(number) => {
            out.tag(1, super::message::FIXED64);
            out.0.extend_from_slice(&number.as_f64().unwrap_or_default().to_bits().to_le_bytes());
        }
        Value::Bool(value) => {
            out.tag(2, VARINT);
            out.varint(u64::from(*value));
        }
        Value::String(text) => out.bytes(3, text.as_bytes()),
        _ => {}
    }
    out
}

fn path_item(of: &Value) -> Message {
    let mut out = Message::default();
    let methods = [(4, "get"), (5, "put"), (6, "post"), (7, "delete"), (8, "options"), (9, "head"), (10, "patch")];
    for (number, method) in methods {
        if let Some(of) = of.get(method) {
            out.message(number, operation(of));
        }
    }
    parameters(&mut out, 13, &of["parameters"]);
    out.extensions(14, of);
    out
}

fn operation(of: &Value) -> Message {
    let mut out = Message::default();
    out.texts(1, &of["tags"]);
    out.text(2, &of["summary"]);
    out.text(3, &of["description"]);
    out.text(5, &of["operationId"]);
    parameters(&mut out, 6, &of["parameters"]);
    if of["requestBody"].is_object() {
        let mut body = Message::default();
        body.text(1, &of["requestBody"]["description"]);
        content(&mut body, 2, &of["requestBody"]["content"]);
        body.bool(3, &of["requestBody"]["required"]);
        let mut either = Message::default();
        either.message(1, body);
        out.message(7, either);
    }
    let mut responses = Message::default();
    for (code, of) in entries(&of["responses"]) {
        let mut response = Message::default();
        response.text(1, &of["description"]);
        content(&mut response, 3, &of["content"]);
        let mut either = Message::default();
        either.message(1, response);
        responses.named(2, code, &either.0);
    }
    out.message(8, responses);
    out.bool(10, &of["deprecated"]);
    out.extensions(13, of);
    out
}

/// Writes `MediaTypes` if there are any.
fn content(out: &mut Message, number: u32, of: &Value) {
    if !of.is_object() {
        return;
    }
    let mut all = Message::default();
    for (media, of) in entries(of) {
        let mut one = Message::default();
        if of["schema"].is_object() {
            one.message(1, either(&of["schema"]));
        }
        all.named(1, media, &one.0);
    }
    out.message(number, all);
}

fn parameters(out: &mut Message, number: u32, list: &Value) {
    for of in list.as_array().into_iter().flatten() {
        let mut parameter = Message::default();
        for (number, name) in [(1, "name"), (2, "in"), (3, "description")] {
            parameter.text(number, &of[name]);
        }
        parameter.bool(4, &of["required"]);
        if of["schema"].is_object() {
            parameter.message(10, either(&of["schema"]));
        }
        let mut either = Message::default();
        either.message(1, parameter);
        out.message(number, either);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_equals_gnostics() {
        let json: Value = serde_json::from_str(include_str!("testdata/openapi-v3.json")).expect("JSON");
        assert_eq!(document(&json), include_bytes!("testdata/openapi-v3.pb"));
    }
}
