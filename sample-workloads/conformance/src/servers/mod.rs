//! The servers among the subcommands of `agnhost`.
pub mod guestbook;
pub mod liveness;
pub mod netexec;
pub mod nettest;
pub mod pages;
pub mod porter;
pub mod serve_hostname;

use crate::task;
use guest::wasip2::cli;
use guest::wasip2::sockets::network::ErrorCode;
use guest::{String, format};
use unix::{Context, Ended};

/// Serves until the process ends: for a server whose listeners are tasks. An error is one of the start.
fn serve(context: &mut Context, name: &str, start: impl AsyncFnOnce() -> Result<(), String>) -> Ended {
    let problem = task::run(async {
        match start().await {
            Ok(()) => core::future::pending().await,
            Err(problem) => problem,
        }
    });
    context.fail(name, &problem)
}

/// Ends the process.
fn exit(code: u8) -> ! {
    cli::exit::exit_with_code(code);
    core::arch::wasm32::unreachable()
}

fn not_listening(protocol: &str, port: u16, code: ErrorCode) -> String {
    format!("listen {protocol} :{port}: {code}")
}
