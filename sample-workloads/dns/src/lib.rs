//! A DNS responder: `dns ZONE-FILE [PORT]` answers for the zone of a file over UDP and TCP, and follows changes of the file.
//!
//! A command with an event loop over both sockets. [`zone`] reads the file, [`message`] answers a query.
#![cfg_attr(target_env = "p2", no_std)]
// Without the event loop, on the machine of a test, some items have no user.
#![cfg_attr(not(target_env = "p2"), allow(dead_code, reason = "their callers are of the component"))]
extern crate alloc;

mod message;
mod zone;

#[cfg(target_env = "p2")]
mod server;

#[cfg(target_env = "p2")]
mod program {
    use guest::process::{arguments, print_error};
    use guest::{String, format};

    struct Dns;
    guest::wasip2::cli::command::export!(Dns);

    impl guest::wasip2::exports::cli::run::Guest for Dns {
        fn run() -> Result<(), ()> {
            run().map_err(|problem| print_error(&format!("dns: {problem}")))
        }
    }

    fn run() -> Result<(), String> {
        const USAGE: &str = "usage: dns ZONE-FILE [PORT]";
        let arguments = arguments();
        let (file, port) = match arguments.as_slice() {
            [file] => (file, 53),
            [file, port] => (file, port.parse().map_err(|_| USAGE)?),
            _ => return Err(USAGE.into()),
        };
        super::server::serve(file, port)
    }
}
