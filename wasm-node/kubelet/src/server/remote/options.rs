//! The options of a session, from the query parameters that the API server passes on (upstream's
//! `remotecommand.Options`).

use percent_encoding::percent_decode_str;

/// Maximum arguments of a command, and their maximum bytes together: the size of one client message.
const ARGUMENTS_MAX: usize = 4096;
const ARGUMENT_BYTES_MAX: usize = 128 << 10;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
    pub(super) command: Vec<String>,
}

impl Options {
    /// Parses the query.
    pub(super) fn read(query: &str) -> Result<Self, String> {
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let mut options = Self::default();
        let mut bytes = 0;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let is_set = value == "1" || value == "true";
            match name {
                "input" => options.stdin |= is_set,
                "output" => options.stdout |= is_set,
                "error" => options.stderr |= is_set,
                "tty" => options.tty |= is_set,
                "command" => {
                    let argument = decode(value);
                    if argument.contains('\0') {
                        return Err("a command's arguments hold no NUL".into());
                    }
                    bytes += argument.len();
                    options.command.push(argument);
                }
                _ => {}
            }
        }
        if options.command.len() > ARGUMENTS_MAX || bytes > ARGUMENT_BYTES_MAX {
            return Err(format!(
                "a command has at most {ARGUMENTS_MAX} arguments of {ARGUMENT_BYTES_MAX} bytes together"
            ));
        }
        if options.tty {
            // A terminal has one output.
            options.stderr = false;
        }
        if !options.stdin && !options.stdout && !options.stderr {
            return Err("you must specify at least 1 of stdin, stdout, stderr".into());
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_upstream_reads_them() {
        let all = Options::read("input=1&output=1&error=1&command=sh&command=-c&command=echo+%22a%26b%22%20c").unwrap();
        assert!(all.stdin && all.stdout && all.stderr && !all.tty);
        assert_eq!(all.command, ["sh", "-c", "echo \"a&b\" c"]);
        assert!(!Options::read("output=1&error=1&tty=1").unwrap().stderr);
        for nothing in ["", "command=ls", "input=0", "error=1&tty=1"] {
            assert_eq!(Options::read(nothing).unwrap_err(), "you must specify at least 1 of stdin, stdout, stderr");
        }
        assert!(Options::read("output=1&command=a%00b").unwrap_err().contains("NUL"));
        assert!(Options::read(&format!("output=1{}", "&command=".repeat(5000))).is_err());
        assert!(Options::read(&format!("output=1&command={}", "x".repeat(200_000))).is_err());
    }
}
