//! The command-line program: parse, start logging, dispatch. Exit codes: 0 success, 1 failure, 2 wrong usage.

mod cmd;
mod compose;
mod config;
mod inventory;
mod network;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use tools_telemetry::export::Telemetry;
use tools_telemetry::logging;

// One allocator made for many threads: docs/decisions/0072-allocator.md.
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
                tools_command::output::print_stderr!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    tools_joining::arguments::hide();
    let cli = match cmd::Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return report_parse_error(&error),
    };
    let telemetry = match start_telemetry(&cli) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            tools_command::output::print_stderr!("coracle: {error:#}");
            return ExitCode::from(2);
        }
    };
    // Before any file is opened: the usual soft limit of 1,024 is for programs that use select(2).
    machinery_serve::descriptors::raise_limit();
    tools_command::panics::count();
    let done = cmd::run(cli);
    telemetry.stop();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(tools_command::failure::Failure::Usage(message)) => {
            tools_command::output::print_stderr!("coracle: {message}");
            ExitCode::from(2)
        }
        Err(tools_command::failure::Failure::Failed(error)) => {
            // One line: what failed, why, and what to do next.
            let line = format!("{error:#}").replace('\n', " ");
            tools_command::output::print_stderr!("coracle: {line}");
            ExitCode::from(1)
        }
    }
}

/// Starts the export of traces and logs for a component, and log lines for each verb.
fn start_telemetry(cli: &cmd::Cli) -> anyhow::Result<Telemetry> {
    let telemetry = match cli.verb.component() {
        Some(component) => Telemetry::start(component)?,
        None => Telemetry::default(),
    };
    logging::start(&cli.common, &telemetry)?;
    Ok(telemetry)
}

/// Prints help and version as clap does, and wrong usage in one line with a hint.
fn report_parse_error(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            error.exit()
        }
        ErrorKind::MissingSubcommand => {
            tools_command::output::print_stderr!("{}", usage_hint(error));
            ExitCode::from(2)
        }
        _ => {
            tools_command::output::print_stderr!("coracle: {}", one_line(&error.to_string()));
            ExitCode::from(2)
        }
    }
}

/// The hint for a command line without a verb or subverb.
fn usage_hint(error: &clap::Error) -> String {
    match (error.get(ContextKind::InvalidSubcommand), error.get(ContextKind::ValidSubcommand)) {
        (Some(ContextValue::String(verb)), Some(ContextValue::Strings(verbs))) if verb.contains(' ') => {
            format!("coracle: what to do? `{verb}` wants one of {}; see `{verb} --help`", verbs.join(", "))
        }
        _ => "coracle: what to do? `coracle demo` shows a cluster at work, `coracle up` runs one, `coracle --help` \
              lists all"
            .into(),
    }
}

/// Shortens clap's report to one line: the error, its tips, the pointer to the help.
fn one_line(report: &str) -> String {
    let reported: Vec<&str> = report
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("For more information"))
        .filter(|line| !line.is_empty() && !line.starts_with("Usage:"))
        .map(|line| line.strip_prefix("error: ").unwrap_or(line))
        .collect();
    // A heading ends in a colon and belongs to the next line.
    format!("{} (see --help)", reported.join("; ").replace(":; ", ": "))
}

#[cfg(test)]
mod tests {
    use super::{cmd::Cli, one_line, usage_hint};

    #[test]
    fn a_missing_verb_is_reported_at_its_position() {
        let reported = |line: &[&str]| usage_hint(&Cli::read(line.iter().map(Into::into)).unwrap_err());
        assert!(reported(&["coracle"]).contains("`coracle up` runs one"));
        let wanted =
            "coracle: what to do? `coracle image` wants one of ls, rm, import, export; see `coracle image --help`";
        assert_eq!(reported(&["coracle", "image"]), wanted);
    }

    #[test]
    fn a_number_below_zero_is_a_value_and_no_flag() {
        let reported = |line: &[&str]| one_line(&Cli::read(line.iter().map(Into::into)).unwrap_err().to_string());
        for line in [&["coracle", "up", "--max-pods", "-4"][..], &["coracle", "image", "ls", "--log-format", "-1"]] {
            assert!(reported(line).contains("invalid value '-"), "{}", reported(line));
        }
    }

    #[test]
    fn wrong_usage_is_reported_in_one_line() {
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
