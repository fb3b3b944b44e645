//! HTTP: requests of host processes are parsed once and balanced; requests of guests come parsed.

#[cfg(test)]
mod corpus;
mod counted;
pub(crate) mod forward;
pub(crate) mod health;
pub(crate) mod hold;
pub(crate) mod server;
