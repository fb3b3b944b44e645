//! The JSON Schema (2020-12) of the file of `--config`, made of a verb's definition.

use std::any::TypeId;

use clap::{Arg, ArgAction, Command};
use serde_json::{Map, Value, json};

use crate::file;

/// The schema of the file of one verb.
#[must_use]
pub fn schema(verb: &Command) -> Value {
    let properties: Map<String, Value> =
        keys(verb).filter_map(|arg| Some((file::key(arg)?.to_owned(), property(arg)))).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("The file of `{} --config`", verb.get_bin_name().unwrap_or(verb.get_name())),
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

/// The flags that a file sets. Hidden ones are upstream's that Coracle rejects with a reason.
pub fn keys(verb: &Command) -> impl Iterator<Item = &Arg> {
    verb.get_arguments().filter(|arg| file::key(arg).is_some() && !arg.is_hide_set())
}

fn property(arg: &Arg) -> Value {
    let one = value(arg);
    let mut property = match arg.get_action() {
        ArgAction::Append => json!({"anyOf": [one, {"type": "array", "items": one}]}),
        _ => one,
    };
    if let Some(help) = arg.get_help() {
        property["description"] = help.to_string().into();
    }
    if let [default] = arg.get_default_values() {
        let text = default.to_string_lossy();
        property["default"] = serde_json::from_str(&text).unwrap_or_else(|_| text.into());
    }
    property
}

/// The schema of one value of a flag.
fn value(arg: &Arg) -> Value {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return json!({"type": "boolean"});
    }
    let choices = arg.get_possible_values();
    let parsed = arg.get_value_parser().type_id();
    if parsed == TypeId::of::<bool>() {
        json!({"type": "boolean"})
    } else if !choices.is_empty() {
        json!({"enum": choices.iter().map(clap::builder::PossibleValue::get_name).collect::<Vec<_>>()})
    } else if integers().iter().any(|integer| parsed == *integer)
        && arg.get_num_args().is_none_or(|range| range.max_values() == 1)
    {
        json!({"type": "integer"})
    } else {
        // A port, a ratio or a quantity may be written as a number.
        json!({"type": ["string", "number"]})
    }
}

fn integers() -> [TypeId; 6] {
    [
        TypeId::of::<u8>(),
        TypeId::of::<u16>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<i64>(),
        TypeId::of::<usize>(),
    ]
}
