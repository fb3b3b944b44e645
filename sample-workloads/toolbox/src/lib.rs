//! A command of many names: the small Unix tools and the shell for sessions of `kubectl exec` in every container, and the
//! `tar` of `kubectl cp`. argv[0] selects the tool; `toolbox` lists them.
#![no_std]

struct Toolbox;
guest::wasip2::cli::command::export!(Toolbox);

impl guest::wasip2::exports::cli::run::Guest for Toolbox {
    fn run() -> Result<(), ()> {
        unix::main(&unix::dial::TOOLS)
    }
}
