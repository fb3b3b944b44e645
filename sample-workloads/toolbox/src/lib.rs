//! Command of many names: the small Unix tools and the shell that a session of `kubectl exec` finds in every container, and
//! the `tar` that `kubectl cp` wants. Which tool it is says argv[0]; `toolbox` lists them.
#![no_std]

struct Toolbox;
guest::wasip2::cli::command::export!(Toolbox);

impl guest::wasip2::exports::cli::run::Guest for Toolbox {
    fn run() -> Result<(), ()> {
        unix::main(&unix::dial::TOOLS)
    }
}
