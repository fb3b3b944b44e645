//! The programs and subcommands by name.
use crate::{logs, mounttest, servers, tools};
use guest::wasip2::{cli, clocks::monotonic_clock};
use guest::{String, format};
use unix::{Context, Ended, Tool};

const PROGRAMS: [(&str, Tool); 10] = [
    ("/agnhost", agnhost),
    ("/agnhost-2", agnhost),
    ("/agnhost.wasm", agnhost),
    ("/nautilus", servers::pages::nautilus),
    ("/pause", pause),
    ("curl", tools::curl::curl),
    ("dig", tools::resolver::dig),
    ("getent", tools::resolver::getent),
    ("nc", tools::nc::nc),
    ("nslookup", tools::resolver::nslookup),
];

const SUBCOMMANDS: [(&str, Tool); 15] = [
    ("connect", tools::connect::connect),
    ("dns-server-list", tools::resolver::servers),
    ("dns-suffix", tools::resolver::suffixes),
    ("entrypoint-tester", arguments),
    ("etc-hosts", hosts),
    ("guestbook", servers::guestbook::guestbook),
    ("liveness", servers::liveness::liveness),
    ("logs-generator", logs::generate),
    ("mounttest", mounttest::mounttest),
    ("netexec", servers::netexec::netexec),
    ("nettest", servers::nettest::nettest),
    ("pause", pause_aloud),
    ("porter", servers::porter::porter),
    ("serve-hostname", servers::serve_hostname::serve_hostname),
    ("test-webserver", servers::pages::test_webserver),
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

/// Prints the arguments, with the program's name first: its file has an extension in this image.
fn arguments(context: &mut Context, _: &[String]) -> Ended {
    let mut all = cli::environment::get_arguments();
    if let Some(program) = all.first_mut() {
        program.truncate(program.trim_end_matches(".wasm").len());
    }
    context.out.line(&format!("[{}]", all.join(" ")))?;
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
