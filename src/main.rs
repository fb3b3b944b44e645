//! The command-line program: parse, start logging, dispatch. Exit codes: 0 success, 1 failure, 2 wrong usage.

mod cmd;
mod compose;
mod config;
mod data_dir;
mod load;
mod logging;
mod network;
mod progress;
mod usage;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // This program is its own compiler process: hostile modules are compiled where they can be stopped.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == wasm_node::engine::COMPILE_WORKER_ARGUMENT) {
        return match wasm_node::engine::compile_worker(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let cli = config::Cli::parse();
    if let Err(error) = logging::start(&cli.common) {
        eprintln!("coracle: {error:#}");
        return ExitCode::from(2);
    }
    match cmd::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cmd::Failure::Usage(message)) => {
            eprintln!("coracle: {message}");
            ExitCode::from(2)
        }
        Err(cmd::Failure::Failed(error)) => {
            // One line: what failed, why, and what to do next.
            let line = format!("{error:#}").replace('\n', " ");
            eprintln!("coracle: {line}");
            ExitCode::from(1)
        }
    }
}
