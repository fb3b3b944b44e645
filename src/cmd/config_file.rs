//! `--config FILE`: the flags of a verb as a YAML mapping, with the flags' names as keys. The command line and the
//! environment take precedence. Unknown keys are errors.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command, Error};
use serde_json::{Map, Value};

use crate::config;

/// The flag's name, which is no key of the file.
const FLAG: &str = "config";
/// Far above the size of all flags of a verb.
const BYTES_MAX: u64 = 1 << 20;

/// Adds the flags in the file of `--config`, if there is one, to a command line.
///
/// # Errors
/// If the file can't be read or isn't a mapping of flags of the verb.
pub(super) fn expand(command: &Command, line: Vec<OsString>) -> Result<Vec<OsString>, Error> {
    let Some(path) = named_file(&line) else { return Ok(line) };
    let Some((at, verb)) = verb(command, &line) else { return Ok(line) };
    let fail = |why: String| Error::raw(ErrorKind::ValueValidation, format!("--config {}: {why}", path.display()));
    let entries = read(&path).map_err(fail)?;
    let mut flags = Vec::new();
    for (key, value) in &entries {
        let known = verb.get_arguments().find(|arg| self::key(arg) == Some(key));
        let arg = known.ok_or_else(|| fail(format!("{} has no flag --{key}", verb.get_name())))?;
        if !is_given(arg, key, &line) {
            flags.extend(flag(arg, key, value).map_err(fail)?);
        }
    }
    let mut line = line;
    line.splice(at + 1..=at, flags);
    Ok(line)
}

/// The key of a flag in the file; `None` if the file can't set it.
pub(super) fn key(arg: &Arg) -> Option<&str> {
    let prints =
        matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version);
    arg.get_long().filter(|long| *long != FLAG && !prints)
}

/// The file of the last `--config` on the line, else of `CORACLE_CONFIG`.
fn named_file(line: &[OsString]) -> Option<PathBuf> {
    let mut file = config::variable_path("CORACLE_CONFIG");
    let mut words = line.iter().take_while(|word| *word != "--");
    while let Some(word) = words.next() {
        let Some(word) = word.to_str() else { continue };
        if word == "--config" {
            file = words.next().map(PathBuf::from).or(file);
        } else if let Some(path) = word.strip_prefix("--config=") {
            file = Some(path.into());
        }
    }
    file
}

/// The last verb on the line, as `create` of `token create`, with its index. A global flag before it has a value that is
/// no verb.
fn verb<'a>(command: &'a Command, line: &[OsString]) -> Option<(usize, &'a Command)> {
    let mut found = None;
    for (at, word) in line.iter().enumerate().skip(1).take_while(|(_, word)| *word != "--") {
        let above = found.map_or(command, |(_, verb)| verb);
        found = above.find_subcommand(word).map(|verb| (at, verb)).or(found);
    }
    found
}

fn read(path: &Path) -> Result<Map<String, Value>, String> {
    let bytes = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if bytes > BYTES_MAX {
        return Err(format!("larger than {BYTES_MAX} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    machinery_api::yaml::read::<Map<String, Value>>(&text)
}

/// Whether the command line or the environment sets a flag.
fn is_given(arg: &Arg, key: &str, line: &[OsString]) -> bool {
    let on_line = line.iter().filter_map(|word| word.to_str()?.strip_prefix("--")?.strip_prefix(key));
    on_line.into_iter().any(|rest| rest.is_empty() || rest.starts_with('='))
        || arg.get_env().is_some_and(in_environment)
}

fn in_environment(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| config::variable_path(name).is_some())
}

/// The words of a flag with a value.
fn flag(arg: &Arg, key: &str, value: &Value) -> Result<Vec<OsString>, String> {
    let one = |value: &Value| match value {
        Value::String(text) => Ok(format!("--{key}={text}").into()),
        Value::Number(_) | Value::Bool(_) => Ok(format!("--{key}={value}").into()),
        _ => Err(format!("{key}: neither text, a number nor true or false")),
    };
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, Value::Bool(true)) => Ok(vec![format!("--{key}").into()]),
        (ArgAction::SetTrue, Value::Bool(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => Err(format!("{key}: true or false")),
        (ArgAction::Append, Value::Array(all)) => all.iter().map(one).collect(),
        (_, Value::Array(_)) => Err(format!("{key}: has one value")),
        (_, value) => Ok(vec![one(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cmd::Cli;

    fn expanded(text: &str, words: &[&str]) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        std::fs::write(&file, text).unwrap();
        let mut command = Cli::command();
        command.build();
        let line = ["coracle"].iter().chain(words).map(OsString::from);
        let line = line.chain(["--config".into(), file.into()]).collect();
        let words = |line: Vec<OsString>| line.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>();
        expand(&command, line).map(|line| words(line)[1..].to_vec()).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_are_flags_of_the_verb() {
        let text = "nodes: 3\nbind: 10.0.0.1\nfast-failover: true\nhost-pod-listeners: false\n\
                    allow-file-images: [/a, /b]\nlog-level: info\n";
        let line = expanded(text, &["up"]).unwrap();
        let flags = ["--nodes=3", "--bind=10.0.0.1", "--fast-failover", "--log-level=info"];
        assert!(flags.iter().all(|flag| line.contains(&(*flag).to_owned())), "{line:?}");
        assert!(
            line.contains(&"--allow-file-images=/a".to_owned()) && line.contains(&"--allow-file-images=/b".to_owned())
        );
        assert!(!line.iter().any(|word| word.contains("host-pod-listeners")), "{line:?}");
        assert_eq!(line[0], "up");
        let given = expanded("nodes: 3\nport: 1\n", &["up", "--nodes", "2"]).unwrap();
        assert!(given.contains(&"--port=1".to_owned()) && !given.contains(&"--nodes=3".to_owned()), "{given:?}");
        assert_eq!(expanded("", &["up"]).unwrap().len(), 3);
        let nested = expanded("ttl: 1h", &["token", "create"]).unwrap();
        assert_eq!(nested[..3], ["token", "create", "--ttl=1h"]);
    }

    #[test]
    fn other_keys_and_forms_are_errors() {
        for (text, why) in [
            ("nods: 3", "up has no flag --nods"),
            ("config: x", "up has no flag --config"),
            ("help: true", "up has no flag --help"),
            ("kubeconfig: x", "up has no flag --kubeconfig"),
            ("fast-failover: 1", "fast-failover: true or false"),
            ("nodes: [1]", "nodes: has one value"),
            ("bind: {a: 1}", "bind: neither text"),
            ("- nodes", "--config "),
            ("nodes: [", "--config "),
        ] {
            let error = expanded(text, &["up"]).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let line = ["coracle", "up", "--config=none.yaml"].map(OsString::from).to_vec();
        assert!(expand(&Cli::command(), line).unwrap_err().to_string().contains("--config none.yaml: "));
    }
}
