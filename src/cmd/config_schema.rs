//! `coracle config-schema`: the JSON Schema of the file of `--config`, made of a verb's flags.

use anyhow::Context as _;
use clap::Args;
use machinery_options::page::page;
use machinery_options::schema::schema;

use super::generate;
use tools_command::failure::Failure;
use tools_command::output::result;

/// Flags of `coracle config-schema`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigSchema {
    /// The verb, such as `up` or `token create`
    #[arg(required_unless_present = "reference", num_args = 1..=2)]
    verb: Vec<String>,
    /// Prints all flags of all verbs as a page in Markdown instead (docs/reference/flags.md)
    #[arg(long, conflicts_with = "verb")]
    reference: bool,
}

/// Prints the schema (JSON Schema 2020-12) of a verb's configuration file.
///
/// # Errors
/// If there is no such verb, or stdout can't be written.
pub(crate) fn run(flags: &ConfigSchema) -> Result<(), Failure> {
    if flags.reference {
        return Ok(result(format_args!("{}", page(&generate::command())))?);
    }
    let mut command = &generate::command();
    for word in &flags.verb {
        let unknown = || Failure::Usage(format!("there is no verb {word:?} below {}", command.get_name()));
        command = command.find_subcommand(word).ok_or_else(unknown)?;
    }
    let text = serde_json::to_string_pretty(&schema(command)).context("the schema has no JSON form")?;
    Ok(result(format_args!("{text}\n"))?)
}

#[cfg(test)]
mod tests {
    use clap::Command;
    use machinery_options::schema::keys;
    use serde_json::json;

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
    fn the_reference_page_shows_the_flags_as_they_are() {
        let written = include_str!("../../docs/reference/flags.md");
        let fresh = page(&generate::command());
        let stale = fresh.lines().zip(written.lines()).find(|(fresh, written)| fresh != written);
        assert_eq!(stale, None, "write it with `coracle config-schema --reference > docs/reference/flags.md`");
        assert_eq!(fresh.len(), written.len());
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
