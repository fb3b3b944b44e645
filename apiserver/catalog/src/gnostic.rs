//! Encodes OpenAPI v2 JSON as gnostic's protobuf messages, by field number. Covers only what our documents contain:
//! paths with query, path and body parameters, definitions, one kind of security.

use std::collections::BTreeMap;

use serde_json::Value;

use super::message::{Message, VARINT, entries};

/// `Document`, from the frame and the encoded parts.
pub(super) fn document(
    frame: &Value,
    paths: &BTreeMap<String, Vec<u8>>,
    definitions: &BTreeMap<String, Vec<u8>>,
) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, &frame["swagger"]);
    let mut info = Message::default();
    info.text(1, &frame["info"]["title"]);
    info.text(2, &frame["info"]["version"]);
    out.message(2, info);
    let mut all = Message::default();
    for (path, item) in paths {
        all.named(2, path, item);
    }
    out.message(8, all);
    let mut all = Message::default();
    for (name, schema) in definitions {
        all.named(1, name, schema);
    }
    out.message(9, all);
    for required in frame["security"].as_array().into_iter().flatten() {
        let mut requirement = Message::default();
        for (name, scopes) in entries(required) {
            let mut texts = Message::default();
            texts.texts(1, scopes);
            requirement.named(1, name, &texts.0);
        }
        out.message(12, requirement);
    }
    let mut security = Message::default();
    for (name, of) in entries(&frame["securityDefinitions"]) {
        let mut key = Message::default();
        for (number, field) in [(1, "type"), (2, "name"), (3, "in"), (4, "description")] {
            key.text(number, &of[field]);
        }
        let mut item = Message::default();
        item.message(2, key);
        security.named(1, name, &item.0);
    }
    out.message(13, security);
    out.0
}

/// `Schema`.
pub(super) fn schema(of: &Value) -> Vec<u8> {
    let mut out = Message::default();
    for (number, name) in [(1, "$ref"), (2, "format"), (3, "title"), (4, "description")] {
        out.text(number, &of[name]);
    }
    if let Some(default) = of.get("default") {
        out.any(5, default);
    }
    out.double(6, &of["multipleOf"]);
    out.double(7, &of["maximum"]);
    out.bool(8, &of["exclusiveMaximum"]);
    out.double(9, &of["minimum"]);
    out.bool(10, &of["exclusiveMinimum"]);
    out.int(11, &of["maxLength"]);
    out.int(12, &of["minLength"]);
    out.text(13, &of["pattern"]);
    out.int(14, &of["maxItems"]);
    out.int(15, &of["minItems"]);
    out.bool(16, &of["uniqueItems"]);
    out.int(17, &of["maxProperties"]);
    out.int(18, &of["minProperties"]);
    out.texts(19, &of["required"]);
    for value in of["enum"].as_array().into_iter().flatten() {
        out.any(20, value);
    }
    match &of["additionalProperties"] {
        Value::Bool(allowed) => {
            let mut item = Message::default();
            item.tag(2, VARINT);
            item.varint(u64::from(*allowed));
            out.message(21, item);
        }
        of @ Value::Object(_) => {
            let mut item = Message::default();
            item.bytes(1, &schema(of));
            out.message(21, item);
        }
        _ => {}
    }
    if of["type"].is_string() {
        let mut item = Message::default();
        item.text(1, &of["type"]);
        out.message(22, item);
    }
    if of["items"].is_object() {
        let mut item = Message::default();
        item.bytes(1, &schema(&of["items"]));
        out.message(23, item);
    }
    if of["properties"].is_object() {
        let mut all = Message::default();
        for (name, of) in entries(&of["properties"]) {
            all.named(1, name, &schema(of));
        }
        out.message(25, all);
    }
    out.extensions(31, of);
    out.0
}

/// `PathItem`.
pub(super) fn path_item(of: &Value) -> Vec<u8> {
    let mut out = Message::default();
    let methods = [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")];
    for (number, method) in methods {
        if let Some(of) = of.get(method) {
            out.message(number, operation(of));
        }
    }
    parameters(&mut out, 9, &of["parameters"]);
    out.extensions(10, of);
    out.0
}

fn operation(of: &Value) -> Message {
    let mut out = Message::default();
    out.texts(1, &of["tags"]);
    out.text(3, &of["description"]);
    out.text(5, &of["operationId"]);
    out.texts(6, &of["produces"]);
    out.texts(7, &of["consumes"]);
    parameters(&mut out, 8, &of["parameters"]);
    let mut responses = Message::default();
    for (code, of) in entries(&of["responses"]) {
        let mut response = Message::default();
        response.text(1, &of["description"]);
        if of["schema"].is_object() {
            let mut item = Message::default();
            item.bytes(1, &schema(&of["schema"]));
            response.message(2, item);
        }
        let mut value = Message::default();
        value.message(1, response);
        responses.named(1, code, &value.0);
    }
    out.message(9, responses);
    out.texts(10, &of["schemes"]);
    out.bool(11, &of["deprecated"]);
    out.extensions(13, of);
    out
}

fn parameters(out: &mut Message, number: u32, list: &Value) {
    for of in list.as_array().into_iter().flatten() {
        let mut parameter = Message::default();
        if of["in"] == "body" {
            let mut body = Message::default();
            for (number, name) in [(1, "description"), (2, "name"), (3, "in")] {
                body.text(number, &of[name]);
            }
            body.bool(4, &of["required"]);
            body.bytes(5, &schema(&of["schema"]));
            parameter.message(1, body);
        } else {
            // In the two messages `type` has different field numbers.
            let (which, first, unique) = if of["in"] == "path" { (4, 5, 19) } else { (3, 6, 20) };
            let mut plain = Message::default();
            plain.bool(1, &of["required"]);
            for (number, name) in [(2, "in"), (3, "description"), (4, "name"), (first, "type"), (first + 1, "format")] {
                plain.text(number, &of[name]);
            }
            plain.bool(unique, &of["uniqueItems"]);
            let mut non_body = Message::default();
            non_body.message(which, plain);
            parameter.message(2, non_body);
        }
        let mut item = Message::default();
        item.message(1, parameter);
        out.message(number, item);
    }
}
