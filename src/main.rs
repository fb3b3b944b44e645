//! The command-line program: parse, start logging, dispatch. Exit codes: 0 success, 1 failure, 2 wrong usage.

mod cmd;
mod compose;
mod config;
mod data_dir;
mod features;
mod inventory;
mod local;
mod logging;
mod module_file;
mod network;
mod output;
mod panics;
mod progress;
mod rollout;
mod scheduler_plugins;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

// What many threads make and free goes through one allocator that is made for it: docs/decisions/0072-allocator.md.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // This program is its own compiler process: hostile modules are compiled where they can be stopped.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == wasm_runtime::engine::COMPILE_WORKER_ARGUMENT) {
        return match wasm_runtime::engine::compile_worker(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                output::tell!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let cli = match cmd::Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    if let Err(error) = logging::start(&cli.common) {
        output::tell!("coracle: {error:#}");
        return ExitCode::from(2);
    }
    // Before anything is opened: the usual soft limit of 1,024 is for programs that use select(2).
    machinery_serve::descriptors::raise_limit();
    panics::count();
    match cmd::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cmd::Failure::Usage(message)) => {
            output::tell!("coracle: {message}");
            ExitCode::from(2)
        }
        Err(cmd::Failure::Failed(error)) => {
            // One line: what failed, why, and what to do next.
            let line = format!("{error:#}").replace('\n', " ");
            output::tell!("coracle: {line}");
            ExitCode::from(1)
        }
    }
}

/// Help and version as clap prints them; wrong usage in one line that says what to do next.
fn refuse(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            error.exit()
        }
        ErrorKind::MissingSubcommand => {
            output::tell!("{}", what_to_do(error));
            ExitCode::from(2)
        }
        _ => {
            output::tell!("coracle: {}", one_line(&error.to_string()));
            ExitCode::from(2)
        }
    }
}

/// Of a command line without a verb, or without the verb that one needs.
fn what_to_do(error: &clap::Error) -> String {
    match (error.get(ContextKind::InvalidSubcommand), error.get(ContextKind::ValidSubcommand)) {
        (Some(ContextValue::String(verb)), Some(ContextValue::Strings(verbs))) if verb.contains(' ') => {
            format!("coracle: what to do? `{verb}` wants one of {}; see `{verb} --help`", verbs.join(", "))
        }
        _ => "coracle: what to do? `coracle demo` shows a cluster at work, `coracle up` runs one, `coracle --help` \
              lists all"
            .into(),
    }
}

/// clap's report (what is wrong, tips, usage, a pointer to the help) as one line: what is wrong, tips, the pointer.
fn one_line(report: &str) -> String {
    let told: Vec<&str> = report
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("For more information"))
        .filter(|line| !line.is_empty() && !line.starts_with("Usage:"))
        .map(|line| line.strip_prefix("error: ").unwrap_or(line))
        .collect();
    // What a line announces stands in the next ones.
    format!("{} (see --help)", told.join("; ").replace(":; ", ": "))
}

#[cfg(test)]
mod tests {
    use super::{cmd::Cli, one_line, what_to_do};

    #[test]
    fn a_missing_verb_is_told_where_it_is_missing() {
        let told = |line: &[&str]| what_to_do(&Cli::read(line.iter().map(Into::into)).unwrap_err());
        assert!(told(&["coracle"]).contains("`coracle up` runs one"));
        let wanted =
            "coracle: what to do? `coracle image` wants one of ls, rm, import, export; see `coracle image --help`";
        assert_eq!(told(&["coracle", "image"]), wanted);
    }

    #[test]
    fn a_number_below_zero_is_a_value_and_no_flag() {
        let told = |line: &[&str]| one_line(&Cli::read(line.iter().map(Into::into)).unwrap_err().to_string());
        for line in [&["coracle", "up", "--max-pods", "-4"][..], &["coracle", "image", "ls", "--log-format", "-1"]] {
            assert!(told(line).contains("invalid value '-"), "{}", told(line));
        }
    }

    #[test]
    fn wrong_usage_is_told_in_one_line() {
        let report = "error: unexpected argument '--nods' found\n\n  tip: a similar argument exists: '--nodes'\n\n\
                      Usage: coracle up [OPTIONS]\n\nFor more information, try '--help'.\n";
        assert_eq!(
            one_line(report),
            "unexpected argument '--nods' found; tip: a similar argument exists: '--nodes' (see --help)"
        );
        let report =
            "error: the following required arguments were not provided:\n  <REF>\n\nUsage: coracle pull <REF>\n";
        assert_eq!(one_line(report), "the following required arguments were not provided: <REF> (see --help)");
    }
}
