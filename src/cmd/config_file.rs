//! `--config FILE`, with this process's environment (`machinery_options::file`).

use std::ffi::OsString;

use clap::{Command, Error};
use machinery_options::file;

use tools_command::environment;

/// Adds the flags in the file of `--config`, if there is one, to a command line.
///
/// # Errors
/// If the file can't be read or isn't a mapping of flags of the verb.
pub(super) fn expand(command: &Command, line: Vec<OsString>) -> Result<Vec<OsString>, Error> {
    file::expand(command, line, &environment::variable_path)
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
