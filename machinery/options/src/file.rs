//! `--config FILE`: the flags of a verb as a YAML mapping, with the flags' names as keys. The command line and the
//! environment take precedence. Unknown keys are errors.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command, Error};
use serde_json::{Map, Value};

/// The flag's name, which is no key of the file.
const FLAG: &str = "config";
/// Far above the size of all flags of a verb.
const BYTES_MAX: u64 = 1 << 20;

/// Adds the flags in the file of `--config`, if there is one, to a command line.
///
/// `variable` is the environment: the value of a variable that is set and not empty.
///
/// # Errors
/// If the file can't be read or isn't a mapping of flags of the verb.
pub fn expand(
    command: &Command,
    line: Vec<OsString>,
    variable: &dyn Fn(&str) -> Option<PathBuf>,
) -> Result<Vec<OsString>, Error> {
    let Some(path) = named_file(&line, variable) else { return Ok(line) };
    let Some((at, verb)) = verb(command, &line) else { return Ok(line) };
    let fail = |why: String| Error::raw(ErrorKind::ValueValidation, format!("--config {}: {why}", path.display()));
    let entries = read(&path).map_err(fail)?;
    let mut flags = Vec::new();
    for (key, value) in &entries {
        let known = verb.get_arguments().find(|arg| self::key(arg) == Some(key));
        let arg = known.ok_or_else(|| fail(format!("{} has no flag --{key}", verb.get_name())))?;
        if !is_given(arg, key, &line, variable) {
            flags.extend(flag(arg, key, value).map_err(fail)?);
        }
    }
    let mut line = line;
    line.splice(at + 1..=at, flags);
    Ok(line)
}

/// The key of a flag in the file; `None` if the file can't set it.
#[must_use]
pub fn key(arg: &Arg) -> Option<&str> {
    let prints =
        matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version);
    arg.get_long().filter(|long| *long != FLAG && !prints)
}

/// The file of the last `--config` on the line, else of `CORACLE_CONFIG`.
fn named_file(line: &[OsString], variable: &dyn Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let mut file = variable("CORACLE_CONFIG");
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
fn is_given(arg: &Arg, key: &str, line: &[OsString], variable: &dyn Fn(&str) -> Option<PathBuf>) -> bool {
    let on_line = line.iter().filter_map(|word| word.to_str()?.strip_prefix("--")?.strip_prefix(key));
    on_line.into_iter().any(|rest| rest.is_empty() || rest.starts_with('='))
        || arg.get_env().and_then(OsStr::to_str).is_some_and(|name| variable(name).is_some())
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
