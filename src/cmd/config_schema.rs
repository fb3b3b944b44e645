//! `coracle config-schema`: the JSON Schema of the file of `--config`, made of a verb's flags.

use std::any::TypeId;

use anyhow::Context as _;
use clap::{Arg, ArgAction, Args, Command};
use serde_json::{Map, Value, json};

use super::{Failure, config_file, generate};
use crate::output::result;

/// Flags of `coracle config-schema`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigSchema {
    /// The verb, such as `up` or `token create`
    #[arg(required = true, num_args = 1..=2)]
    verb: Vec<String>,
}

/// Prints the schema (JSON Schema 2020-12) of a verb's configuration file.
///
/// # Errors
/// If there is no such verb, or stdout can't be written.
pub(crate) fn run(flags: &ConfigSchema) -> Result<(), Failure> {
    let mut command = &generate::command();
    for word in &flags.verb {
        let unknown = || Failure::Usage(format!("there is no verb {word:?} below {}", command.get_name()));
        command = command.find_subcommand(word).ok_or_else(unknown)?;
    }
    let text = serde_json::to_string_pretty(&schema(command)).context("the schema has no JSON form")?;
    Ok(result(format_args!("{text}\n"))?)
}

/// The schema of the file of one verb.
fn schema(verb: &Command) -> Value {
    let properties: Map<String, Value> =
        keys(verb).filter_map(|arg| Some((config_file::key(arg)?.to_owned(), property(arg)))).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("The file of `{} --config`", verb.get_bin_name().unwrap_or(verb.get_name())),
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

/// The flags that a file sets. Hidden ones are upstream's that Coracle rejects with a reason.
fn keys(verb: &Command) -> impl Iterator<Item = &Arg> {
    verb.get_arguments().filter(|arg| config_file::key(arg).is_some() && !arg.is_hide_set())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// All verbs, and those below them.
    fn verbs<'a>(command: &'a Command, found: &mut Vec<&'a Command>) {
        for verb in command.get_subcommands() {
            found.push(verb);
            verbs(verb, found);
        }
    }

    #[test]
    fn every_flag_has_a_property_with_a_description() {
        let command = generate::command();
        let mut all = Vec::new();
        verbs(&command, &mut all);
        assert!(all.len() > 20);
        for verb in all {
            let schema = schema(verb);
            for arg in keys(verb) {
                let property = &schema["properties"][arg.get_long().unwrap()];
                assert!(property["description"].is_string(), "{} {arg}: {property}", verb.get_name());
            }
        }
    }

    #[test]
    fn a_schema_has_the_types_of_the_flags() {
        let command = generate::command();
        let schema = schema(command.find_subcommand("up").unwrap());
        let of = |key: &str| &schema["properties"][key];
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["title"], "The file of `coracle up --config`");
        assert_eq!(of("fast-failover")["type"], "boolean");
        assert_eq!((&of("nodes")["type"], &of("nodes")["default"]), (&json!("integer"), &json!(1)));
        assert_eq!(of("log-format")["enum"], json!(["text", "json"]));
        assert_eq!(of("allow-file-images")["anyOf"][1]["type"], "array");
        assert!(of("config").is_null() && of("help").is_null());
    }
}
