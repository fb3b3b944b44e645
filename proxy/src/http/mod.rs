//! HTTP: requests of host processes are parsed once and balanced; requests of guests come parsed.

mod counted;
pub(crate) mod forward;
pub(crate) mod reset;
pub(crate) mod server;
