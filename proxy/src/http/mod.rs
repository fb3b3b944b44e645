//! HTTP proxying: requests of host processes are parsed once; guests' requests arrive parsed. Scale from zero: `activator`.

pub(crate) mod activator;
#[cfg(test)]
mod corpus;
pub(crate) mod forward;
pub(crate) mod health;
mod held;
pub(crate) mod server;
pub(crate) mod spans;
