//! A WebSocket server over sockets: `chat [--port N] …`, or `chat call URL TEXT…` as its client.
//!
//! A command (`wasi:cli/run`): one instance with an event loop over all connections. `GET /` returns a page,
//! `/ws?room=R&name=N` joins a room, `/echo` returns each message, `GET /stats` returns counts.
//!
//! - [`frames`]: WebSocket frames as bytes, in both directions (RFC 6455, without extensions).
//! - [`handshake`]: the HTTP/1.1 requests and responses before them.
//! - [`hub`]: all connections and rooms; [`peer`]: one connection. Bytes in, bytes out, deadlines.
//! - [`settings`]: the arguments.
//! - `server`: the event loop. `client`: `chat call`.
#![cfg_attr(target_env = "p2", no_std)]
// Without the event loop, on the machine of a test, some items have no user.
#![cfg_attr(not(target_env = "p2"), allow(dead_code, reason = "their callers are of the component"))]
extern crate alloc;

mod frames;
mod handshake;
mod hub;
mod peer;
mod settings;

#[cfg(target_env = "p2")]
mod client;
#[cfg(target_env = "p2")]
mod server;

#[cfg(target_env = "p2")]
mod program {
    use super::{client, server, settings::Settings};
    use guest::format;
    use guest::process::{arguments, print_error};

    struct Chat;
    guest::wasip2::cli::command::export!(Chat);

    impl guest::wasip2::exports::cli::run::Guest for Chat {
        fn run() -> Result<(), ()> {
            let arguments = arguments();
            let ended = match arguments.split_first() {
                Some((first, rest)) if first == "call" => client::call(rest),
                _ => Settings::parse(&arguments).and_then(server::serve),
            };
            ended.map_err(|problem| print_error(&format!("chat: {problem}")))
        }
    }
}
