//! The small Unix tools and the shell, for a command of many names.
//!
//! One instance is one session: the tools of a pipeline run in sequence, and the data between two tools is bounded by
//! `io::PIPE_BYTES_MAX`.
#![no_std]
extern crate alloc;

mod awk;
pub mod dial;
pub mod disk;
mod ends;
pub mod files;
mod hexdump;
pub mod io;
mod net;
pub mod process;
mod sh;
mod tar;
mod test;
mod text;

wit_bindgen::generate!({
    path: "wit",
    world: "tools",
    with: {
        "wasi:clocks/wall-clock@0.2.12": guest::wasip2::clocks::wall_clock,
        "wasi:filesystem/types@0.2.12": guest::wasip2::filesystem::types,
        "wasi:io/error@0.2.12": guest::wasip2::io::error,
        "wasi:io/poll@0.2.12": guest::wasip2::io::poll,
        "wasi:io/streams@0.2.12": guest::wasip2::io::streams,
        "coracle:host/stat@0.1.0": generate,
        "coracle:host/net@0.1.0": generate,
    },
});

use guest::wasip2::cli;
use guest::{String, ToOwned, ToString, Vec, format};
use io::{Input, Output, Sink, Source, Stdin, Stop};

/// The context of a tool.
pub struct Context {
    pub stdin: Stdin,
    pub input: Input,
    pub out: Output,
    pub err: Output,
    /// Exported variables, in order.
    pub env: Vec<(String, String)>,
    /// The working directory, an absolute path.
    pub cwd: String,
    /// Tools of this program in addition to [`TOOLS`].
    pub more: &'static [(&'static str, Tool)],
}

/// The end of a tool: its exit code, or an abort.
pub type Ended = Result<i32, Stop>;

/// A tool: its context, and its arguments with its name first.
pub type Tool = fn(&mut Context, &[String]) -> Ended;

/// Every tool, by name.
pub const TOOLS: [(&str, Tool); 47] = [
    ("[", test::test),
    ("[[", test::test),
    ("awk", awk::awk),
    ("basename", text::basename),
    ("cat", text::cat),
    ("cp", disk::cp),
    ("cut", text::cut),
    ("date", process::date),
    ("dirname", text::dirname),
    ("du", disk::du),
    ("echo", text::echo),
    ("env", process::env),
    ("expr", process::expr),
    ("false", process::no),
    ("find", disk::find),
    ("grep", text::grep),
    ("head", ends::head),
    ("hexdump", hexdump::hexdump),
    ("hostname", process::hostname),
    ("id", process::id),
    ("ln", disk::ln),
    ("ls", disk::ls),
    ("mkdir", disk::mkdir),
    ("mv", disk::mv),
    ("printenv", process::printenv),
    ("printf", text::printf),
    ("pwd", process::pwd),
    ("readlink", disk::readlink),
    ("rm", disk::rm),
    ("rmdir", disk::rmdir),
    ("seq", text::seq),
    ("sh", sh::sh),
    ("sleep", process::sleep),
    ("sort", text::sort),
    ("stat", disk::stat),
    ("tail", ends::tail),
    ("tar", tar::tar),
    ("tee", text::tee),
    ("test", test::test),
    ("toolbox", list),
    ("touch", disk::touch),
    ("tr", text::tr),
    ("true", process::yes),
    ("uniq", text::uniq),
    ("wc", text::wc),
    ("wget", net::wget),
    ("whoami", process::whoami),
];

impl Context {
    /// The session's context: its streams, variables and folder.
    pub fn of_the_session(more: &'static [(&'static str, Tool)]) -> Self {
        Self {
            stdin: Stdin::new(),
            input: Source::Stdin.into(),
            out: Sink::Stream(cli::stdout::get_stdout()).into(),
            err: Sink::Stream(cli::stderr::get_stderr()).into(),
            env: cli::environment::get_environment(),
            cwd: cli::environment::initial_cwd().filter(|cwd| cwd.starts_with('/')).unwrap_or_else(|| "/".to_owned()),
            more,
        }
    }

    /// Finds a tool by name; the path of a program folder is accepted.
    pub fn tool(&self, name: &str) -> Option<Tool> {
        const FOLDERS: [&str; 6] =
            ["/bin/", "/usr/bin/", "/usr/local/bin/", "/sbin/", "/usr/sbin/", "/usr/local/sbin/"];
        let plain = FOLDERS.iter().find_map(|folder| name.strip_prefix(folder)).unwrap_or(name);
        self.more.iter().chain(&TOOLS).find(|(known, _)| *known == plain).map(|(_, tool)| *tool)
    }

    /// Reports an error on stderr; the exit code is 1.
    pub fn fail(&mut self, tool: &str, problem: &str) -> Ended {
        self.say(tool, problem)?;
        Ok(1)
    }

    pub fn say(&mut self, tool: &str, problem: &str) -> Result<(), Stop> {
        let line = format!("{}: {problem}", tool.rsplit('/').next().unwrap_or(tool));
        self.err.line(&line)
    }

    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A path relative to the root.
    pub fn absolute(&self, path: &str) -> String {
        files::absolute(&self.cwd, path)
    }
}

fn list(context: &mut Context, args: &[String]) -> Ended {
    if let [_, name, ..] = args
        && name != "toolbox"
    {
        let Some(tool) = context.tool(name) else {
            return context.fail("toolbox", &format!("{name}: no such tool")).map(|_| 127);
        };
        return tool(context, &args[1..]);
    }
    let mut names: Vec<&str> = TOOLS.iter().chain(context.more).map(|(name, _)| *name).collect();
    names.sort_unstable();
    for name in names {
        context.out.line(name)?;
    }
    Ok(0)
}

/// Runs the tool named by argv[0].
pub fn main(more: &'static [(&'static str, Tool)]) -> Result<(), ()> {
    let args = cli::environment::get_arguments();
    let mut context = Context::of_the_session(more);
    let name = args.first().cloned().unwrap_or_default();
    let ended = match context.tool(&name) {
        Some(tool) => tool(&mut context, &args),
        None => context.fail("toolbox", &format!("{name}: no such tool")).map(|_| 127),
    };
    match ended.unwrap_or_else(|stop| stop.0) {
        0 => Ok(()),
        code => exit(code),
    }
}

fn exit(code: i32) -> ! {
    cli::exit::exit_with_code(code as u8);
    core::arch::wasm32::unreachable()
}

/// Options as letters before the first operand, in one word or several: `-rf`, `-r -f`. Returns them and the operands, or
/// the first letter that is not in `known`.
pub fn letters<'a>(args: &'a [String], known: &str) -> Result<(String, &'a [String]), String> {
    let mut found = String::new();
    let mut at = 1;
    while let Some(arg) = args.get(at).filter(|arg| arg.len() > 1 && arg.starts_with('-')) {
        at += 1;
        if arg == "--" {
            break;
        }
        for letter in arg[1..].chars() {
            if !known.contains(letter) {
                return Err(format!("unknown option -{letter} (there are -{known})"));
            }
            found.push(letter);
        }
    }
    Ok((found, &args[at.min(args.len())..]))
}

/// A file error in the wording of Unix tools.
pub fn words(code: guest::wasip2::filesystem::types::ErrorCode) -> String {
    use guest::wasip2::filesystem::types::ErrorCode;
    match code {
        ErrorCode::NoEntry => "No such file or directory",
        ErrorCode::Access | ErrorCode::NotPermitted => "Permission denied",
        ErrorCode::Exist => "File exists",
        ErrorCode::NotDirectory => "Not a directory",
        ErrorCode::IsDirectory => "Is a directory",
        ErrorCode::NotEmpty => "Directory not empty",
        ErrorCode::ReadOnly => "Read-only file system",
        ErrorCode::InsufficientSpace | ErrorCode::Quota => "No space left on device",
        ErrorCode::Loop => "Too many levels of symbolic links",
        ErrorCode::CrossDevice => "Invalid cross-device link",
        other => return other.name().to_string(),
    }
    .to_owned()
}
