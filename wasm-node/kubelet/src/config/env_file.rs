//! `fileKeyRef`: variables from a file of a volume (KEP-3721). In upstream's syntax: `NAME='value'` with a
//! single-quoted value of one or more lines, comments and blank lines.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, FileKeySelector};

use super::environment::ConfigError;

/// The bounds of a file, and of one line (upstream's).
const FILE_BYTES_MAX: u64 = 1 << 20;
const LINE_BYTES_MAX: usize = 64 << 10;

/// The values of a container's variables in files; `None` if the key is absent.
pub type FileValues = BTreeMap<(String, String, String), Option<String>>;

/// The volume, path and key of a variable.
#[must_use]
pub fn key_of(of: &FileKeySelector) -> (String, String, String) {
    (of.volume_name.clone(), of.path.clone(), of.key.clone())
}

/// Reads the values of the container's variables; `folder` is the folder of one of the pod's `volumes`. Never leaves a volume.
pub fn read(
    folder: &dyn Fn(&str) -> PathBuf,
    volumes: &[&str],
    container: &Container,
) -> Result<FileValues, ConfigError> {
    let named =
        container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()?.file_key_ref.as_ref());
    let mut values = FileValues::new();
    for of in named {
        if !volumes.contains(&of.volume_name.as_str()) {
            let why = format!("cannot find the volume {:?} referenced by FileKeyRef", of.volume_name);
            return Err(ConfigError::Bad(why));
        }
        let volume = folder(&of.volume_name);
        let text = open(&volume, &of.path).map_err(|error| {
            tracing::debug!(path = of.path, %error, "a file of variables cannot be read");
            parse_failed()
        })?;
        let value = parse(&text, &of.key).map_err(|error| {
            tracing::debug!(path = of.path, error, "a file of variables cannot be parsed");
            parse_failed()
        })?;
        if value.is_empty() && of.optional != Some(true) {
            let (key, file) = (&of.key, volume.join(&of.path));
            let why = format!("environment variable key {key:?} not found in file {:?}", file.display().to_string());
            return Err(ConfigError::Bad(why));
        }
        values.insert(key_of(of), Some(value).filter(|value| !value.is_empty()));
    }
    Ok(values)
}

/// Upstream's message, which contains no detail.
fn parse_failed() -> ConfigError {
    ConfigError::Bad("couldn't parse env file".into())
}

fn open(volume: &Path, path: &str) -> io::Result<String> {
    use cap_primitives::fs::{FollowSymlinks, OpenOptions, open, stat};
    let (root, path) = (File::open(volume)?, Path::new(path));
    // Opening another kind of file, such as a pipe, could block.
    if !stat(&root, path, FollowSymlinks::Yes)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let file = open(&root, path, OpenOptions::new().read(true))?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(text)
}

/// The value of `key`; empty if it is absent. Errors are upstream's.
fn parse(text: &str, key: &str) -> Result<String, String> {
    let blank = [' ', '\t'];
    let bad = |number: usize, why: &str| Err(format!("invalid environment variable format at line {number}: {why}"));
    let mut lines = text.split_inclusive('\n').map(end_of_line).enumerate();
    while let Some((number, line)) = lines.next() {
        let number = number + 1;
        let line = line?.trim_start_matches(blank);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { return bad(number, "missing '='") };
        if name.trim_end_matches(blank).is_empty() {
            return bad(number, "empty variable name");
        }
        if name.ends_with(blank) {
            return bad(number, "whitespace before '=' is not allowed");
        }
        if value.starts_with(blank) {
            // As in a shell: the value is empty.
            if name == key {
                return Ok(String::new());
            }
            continue;
        }
        let Some(mut rest) = value.strip_prefix('\'') else {
            return bad(number, "value must be enclosed in single quotes");
        };
        let mut value = String::new();
        let (mut at, after) = loop {
            if let Some((end, after)) = rest.split_once('\'') {
                value.push_str(end);
                break (number, after);
            }
            value.push_str(rest);
            value.push('\n');
            let Some((_, next)) = lines.next() else {
                let why = "unclosed single quote";
                return Err(format!("invalid environment variable format starting at line {number}: {why}"));
            };
            rest = next?;
        };
        at += value.matches('\n').count();
        let after = after.trim_start_matches(blank);
        if !after.is_empty() && !after.starts_with('#') {
            return bad(at, "unexpected content after closing quote");
        }
        if name == key {
            return Ok(value);
        }
    }
    Ok(String::new())
}

/// A line without its terminator.
fn end_of_line(line: &str) -> Result<&str, String> {
    let line = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.len() > LINE_BYTES_MAX { Err("token too long".into()) } else { Ok(line) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn files_are_parsed_as_upstream_does() {
        let text = "# a comment\n\n  A='one'\nB='two' # and why\nC='many\nlines\n'\nD= 'none'\nE=''\nF='\"$A\\n\"'\r\n";
        for (key, value) in
            [("A", "one"), ("B", "two"), ("C", "many\nlines\n"), ("D", ""), ("E", ""), ("F", "\"$A\\n\""), ("G", "")]
        {
            assert_eq!(parse(text, key).as_deref(), Ok(value), "{key}");
        }
        for (text, error) in [
            ("A", "invalid environment variable format at line 1: missing '='"),
            ("\n='x'", "invalid environment variable format at line 2: empty variable name"),
            ("A ='x'", "invalid environment variable format at line 1: whitespace before '=' is not allowed"),
            ("A=x", "invalid environment variable format at line 1: value must be enclosed in single quotes"),
            ("B='\n\n'x", "invalid environment variable format at line 3: unexpected content after closing quote"),
            ("\nA='x\n", "invalid environment variable format starting at line 2: unclosed single quote"),
        ] {
            assert_eq!(parse(text, "A"), Err(error.to_owned()), "{text:?}");
        }
        assert_eq!(parse("A='x'\nnonsense", "A").as_deref(), Ok("x"), "nothing is read behind it");
        assert!(parse(&"x".repeat(LINE_BYTES_MAX + 1), "A").is_err());
    }

    #[test]
    fn missing_and_escaping_files_are_reported() {
        let root = tempfile::tempdir().unwrap();
        let folder = |name: &str| root.path().join("volumes").join(name);
        let volume = folder("v");
        std::fs::create_dir_all(volume.join("dir")).unwrap();
        std::fs::write(volume.join("env"), "A='one'\n").unwrap();
        std::fs::write(root.path().join("secret"), "A='leaked'\n").unwrap();
        std::fs::write(volume.join("large"), vec![b'#'; 2 << 20]).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("../../secret", volume.join("out")).unwrap();
        let ask = |of: &str, path: &str, key: &str, optional: bool| {
            let from = json!({"fileKeyRef": {"volumeName": of, "path": path, "key": key, "optional": optional}});
            let container: Container =
                serde_json::from_value(json!({"name": "c", "env": [{"name": "X", "valueFrom": from}]})).unwrap();
            let read = read(&folder, &["v"], &container).map_err(|error| error.to_string());
            read.map(|values| values.into_values().next().unwrap())
        };
        assert_eq!(ask("v", "env", "A", false), Ok(Some("one".into())));
        assert_eq!(ask("v", "env", "B", true), Ok(None));
        assert!(
            ask("v", "env", "B", false).unwrap_err().starts_with("environment variable key \"B\" not found in file \"")
        );
        assert_eq!(ask("w", "env", "A", true), Err("cannot find the volume \"w\" referenced by FileKeyRef".into()));
        for path in ["none", "dir", "large", "out", "../../secret", "/etc/passwd"] {
            assert_eq!(ask("v", path, "A", true), Err("couldn't parse env file".into()), "{path}");
        }
    }
}
