//! Upstream's test programs as one command of many names, for pods of upstream's conformance tests, by the names of its
//! images. `agnhost` has the subcommands without sockets, beside the shell and the small Unix tools, as in upstream's image.
//! The output of each subcommand is what those tests expect.
#![no_std]
extern crate alloc;

mod flags;
mod logs;
mod mounttest;

use guest::wasip2::{cli, clocks::monotonic_clock};
use guest::{String, format};
use unix::{Context, Ended, Tool};

const PROGRAMS: [(&str, Tool); 3] = [("/agnhost", agnhost), ("/agnhost-2", agnhost), ("/pause", pause)];

const SUBCOMMANDS: [(&str, Tool); 5] = [
    ("entrypoint-tester", arguments),
    ("etc-hosts", hosts),
    ("logs-generator", logs::generate),
    ("mounttest", mounttest::mounttest),
    ("pause", pause_aloud),
];

struct Programs;
guest::wasip2::cli::command::export!(Programs);

impl guest::wasip2::exports::cli::run::Guest for Programs {
    fn run() -> Result<(), ()> {
        unix::main(&PROGRAMS)
    }
}

fn agnhost(context: &mut Context, args: &[String]) -> Ended {
    let name = args.get(1).map_or("", String::as_str);
    match SUBCOMMANDS.iter().find(|(known, _)| *known == name) {
        Some((_, run)) => run(context, &args[1..]),
        None => context.fail("agnhost", &format!("unknown command {name:?} for \"app\"")),
    }
}

/// Prints the arguments, with the program's name first.
fn arguments(context: &mut Context, _: &[String]) -> Ended {
    context.out.line(&format!("[{}]", cli::environment::get_arguments().join(" ")))?;
    Ok(0)
}

/// Prints the pod's hosts file.
fn hosts(context: &mut Context, _: &[String]) -> Ended {
    match context.tool("cat") {
        Some(cat) => cat(context, &["cat".into(), "/etc/hosts".into()]),
        None => context.fail("agnhost", "no cat"),
    }
}

/// A module receives no signal: the node ends it.
fn pause(_: &mut Context, _: &[String]) -> Ended {
    loop {
        monotonic_clock::subscribe_duration(u64::MAX / 2).block();
    }
}

fn pause_aloud(context: &mut Context, args: &[String]) -> Ended {
    context.out.line("Paused")?;
    pause(context, args)
}
