//! `coracle completion` and `coracle man`: completion scripts and manual pages, made of the flags' definitions.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;
use tools_command::failure::Failure;
use tools_command::output::{print_stdout, result};

/// Flags of `coracle completion`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Completion {
    /// The shell
    shell: Shell,
}

/// Flags of `coracle man`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Man {
    /// Folder for the pages, created if it is missing; pages of the same names are replaced
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Prints a completion script.
///
/// # Errors
/// If stdout can't be written.
pub(crate) fn completion(flags: &Completion) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(flags.shell, &mut command(), "coracle", &mut script);
    Ok(result(format_args!("{}", String::from_utf8_lossy(&script)))?)
}

/// Writes a page for the program and one for each verb, and prints their paths.
///
/// # Errors
/// If a file can't be written.
pub(crate) fn man(flags: &Man) -> Result<(), Failure> {
    std::fs::create_dir_all(&flags.folder)
        .with_context(|| format!("cannot make the folder {}", flags.folder.display()))?;
    for (name, page) in pages(&command())? {
        write(&flags.folder.join(format!("{name}.1")), &page)?;
    }
    Ok(())
}

fn write(file: &Path, page: &[u8]) -> anyhow::Result<()> {
    std::fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))?;
    print_stdout!("{}", file.display())
}

/// The command with the global flags in each verb.
pub(super) fn command() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// The pages of a command and of those below it: `coracle`, `coracle-up`, `coracle-token-create`.
fn pages(command: &Command) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let mut page = Vec::new();
    let title = name.to_uppercase();
    clap_mangen::Man::new(command.clone()).title(title).manual("Coracle").render(&mut page)?;
    let mut all = vec![(name, page)];
    for below in command.get_subcommands() {
        all.extend(pages(below)?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page_and_is_completed() {
        let verbs: Vec<String> = command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
        let pages = pages(&command()).unwrap();
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut command(), "coracle", &mut script);
        let script = String::from_utf8(script).unwrap();
        for verb in &verbs {
            let (_, page) = pages.iter().find(|(name, _)| *name == format!("coracle-{verb}")).expect(verb);
            let page = String::from_utf8_lossy(page);
            assert!(page.contains(".TH") && page.contains("data\\-dir"), "{verb}: {page}");
            assert!(script.contains(&format!("coracle,{verb})")), "{verb}");
        }
        let names: std::collections::BTreeSet<_> = pages.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), pages.len(), "no two pages of one name");
        assert!(names.contains(&"coracle-token-create".to_owned()), "{names:?}");
    }
}
