//! Replays the answers of upstream's environment to expressions: the conformance tests of cel-spec, cel-go and
//! Kubernetes, and random ones. Each row has an expression with its variables, and the compiler's message, or type,
//! estimated cost, value or error, and actual cost.

use std::fmt::Write as _;
use std::io::Read as _;

use flate2::read::GzDecoder;
use serde_json::Value as Json;

use crate::types::{DeclType, Declared, Type, from_schema};
use crate::{Activation, Budget, Env, Value};

const ROWS: &[u8] = include_bytes!("testdata/facts.jsonl.gz");
const DATA: &str = include_str!("testdata/facts-data.json");

fn type_of(text: &str) -> Type {
    let inner = |name: &str| text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
    if let Some(item) = inner("list") {
        return Type::list(type_of(item));
    }
    if let Some((key, value)) = inner("map").and_then(|entry| entry.split_once(',')) {
        return Type::map(type_of(key), type_of(value.trim()));
    }
    if let Some(value) = inner("optional") {
        return Type::optional(type_of(value));
    }
    match text {
        "int" => Type::Int,
        "string" => Type::String,
        "double" => Type::Double,
        "bool" => Type::Bool,
        "dyn" => Type::Dyn,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        other => panic!("no type {other}"),
    }
}

/// A value's unambiguous text.
fn canonical(value: &Value<'_>) -> String {
    match value {
        Value::Uint(number) => format!("{number}u"),
        Value::Double(number) if number.is_nan() => "f:nan".into(),
        Value::Double(number) => format!("f:{:016x}", number.to_bits()),
        Value::String(text) => format!("\"{}\"", &**text),
        Value::Bytes(bytes) => bytes.iter().fold("b:".into(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }),
        Value::Duration(nanos) => format!("duration:{nanos}"),
        Value::Timestamp(time) => {
            let total = time.nanoseconds();
            format!("timestamp:{}.{:09}", total.div_euclid(1_000_000_000), total.rem_euclid(1_000_000_000))
        }
        Value::Optional(None) => "optional()".into(),
        Value::Optional(Some(value)) => format!("optional({})", canonical(value)),
        Value::Type(name) => format!("type:{name}"),
        Value::List(list) => {
            let items: Vec<String> = list.iter().map(|item| canonical(&item.expect("an item"))).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Map(map) => {
            let mut entries: Vec<String> = Vec::new();
            for key in map.keys() {
                let value = map.get(&key).expect("a key").expect("an entry");
                entries.push(format!("{}: {}", canonical(&key), canonical(&value)));
            }
            entries.sort();
            format!("{{{}}}", entries.join(", "))
        }
        Value::Null | Value::Bool(_) | Value::Int(_) => value.to_string(),
        other => format!("<{}>", other.type_name()),
    }
}

struct Data {
    declared: Declared,
    object: Json,
    free: Json,
}

/// This implementation's answer, in the form of a recorded row.
fn evaluate_row(row: &Json, data: &Data) -> Json {
    let mut env = Env::new().schema("self", &data.declared).variable("d", Type::Dyn);
    for (name, text) in row["vars"].as_object().into_iter().flatten() {
        let size = row["hints"][name].as_i64().unwrap_or(-1);
        let ty = type_of(text.as_str().expect("a type"));
        env = env.declare(name, DeclType { max_elements: size, ..DeclType::scalar(ty, 0) });
    }
    let mut answer = serde_json::Map::new();
    let program = match env.compile(row["expr"].as_str().expect("an expression")) {
        Ok(program) => program,
        Err(error) => {
            answer.insert("compile".into(), error.detail().into());
            return answer.into();
        }
    };
    answer.insert("type".into(), program.output_type().to_string().into());
    let estimate = program.estimate();
    answer.insert("est".into(), vec![estimate.min, estimate.max].into());
    let mut activation = Activation::new().typed("self", &data.object, &data.declared).json("d", &data.free);
    for (name, value) in row["data"].as_object().into_iter().flatten() {
        activation = activation.json(name, value);
    }
    let mut budget = Budget::default();
    match program.eval(&activation, &mut budget) {
        Ok(value) => answer.insert("value".into(), canonical(&value).into()),
        Err(error) => answer.insert("error".into(), error.to_string().into()),
    };
    answer.insert("cost".into(), budget.spent().into());
    answer.into()
}

fn data() -> Data {
    let mut data: Json = serde_json::from_str(DATA).expect("JSON");
    let declared = from_schema(&data["Schema"], true).expect("a type");
    Data { declared, object: data["Object"].take(), free: data["Free"].take() }
}

#[test]
fn expressions_are_answered_as_upstream_answers_them() {
    let data = data();
    let mut rows = String::new();
    GzDecoder::new(ROWS).read_to_string(&mut rows).expect("packed");
    let mut wrong = Vec::new();
    for line in rows.lines() {
        let row: Json = serde_json::from_str(line).expect("JSON");
        let found = evaluate_row(&row, &data);
        for part in ["compile", "type", "est", "value", "error", "cost"] {
            // An expression that fails to plan has a type nevertheless.
            if part == "type" && row["compile"].is_string() {
                break;
            }
            // Messages after a syntax error are not recorded where upstream's parser recovers differently.
            let shortened = row[part].as_str().is_some_and(|text| text.ends_with("<input>:"));
            if shortened && found[part].as_str().is_some_and(|text| text.starts_with(row[part].as_str().unwrap_or("?")))
            {
                break;
            }
            if row[part] != found[part] {
                wrong.push(format!(
                    "{} {}\n  {part}: upstream {}, here {}",
                    row["name"], row["expr"], row[part], found[part]
                ));
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
