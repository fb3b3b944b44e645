//! HTTP proxying: requests of host processes are parsed once; guests' requests arrive parsed. Scale from zero: `activator`.

pub(crate) mod activator;
#[cfg(test)]
mod corpus;
pub(crate) mod forward;
mod guarded_body;
pub(crate) mod health;
pub(crate) mod server;
pub(crate) mod spans;
