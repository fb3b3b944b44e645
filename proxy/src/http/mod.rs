//! HTTP proxying: requests of host processes are parsed once; guests' requests arrive parsed. Scale from zero: `activator`.

pub(crate) mod activator;
#[cfg(test)]
mod corpus;
mod counted;
pub(crate) mod forward;
pub(crate) mod health;
pub(crate) mod server;
