//! A server of the Redis protocol: `kv [--port N] [--dir FOLDER] …`, or `kv call HOST:PORT COMMAND…` as its client.
//!
//! A command (`wasi:cli/run`): one instance with an event loop over all connections. Commands run one after the other, so each is
//! atomic. An effect is in the append-only file before its client gets the reply.
//!
//! - [`protocol`]: requests and replies as bytes.
//! - [`store`]: keys, values, deadlines.
//! - [`commands`]: the table of commands.
//! - [`settings`]: the arguments.
//! - `log`: the append-only file. `server`: the event loop. `client`: `kv call`.
#![cfg_attr(target_env = "p2", no_std)]
// Without the event loop, on the machine of a test, some items have no user.
#![cfg_attr(not(target_env = "p2"), allow(dead_code, reason = "their callers are of the component"))]
extern crate alloc;

mod commands;
mod failure;
mod number;
mod pattern;
mod protocol;
mod settings;
mod siphash;
mod store;

#[cfg(target_env = "p2")]
mod client;
#[cfg(target_env = "p2")]
mod log;
#[cfg(target_env = "p2")]
mod server;

#[cfg(target_env = "p2")]
mod program {
    use super::{client, server, settings::Settings};
    use guest::format;
    use guest::process::{arguments, print_error};

    struct Kv;
    guest::wasip2::cli::command::export!(Kv);

    impl guest::wasip2::exports::cli::run::Guest for Kv {
        fn run() -> Result<(), ()> {
            let arguments = arguments();
            let ended = match arguments.split_first() {
                Some((first, rest)) if first == "call" => client::call(rest),
                _ => Settings::parse(&arguments).and_then(|settings| server::serve(&settings)),
            };
            ended.map_err(|problem| print_error(&format!("kv: {problem}")))
        }
    }
}
