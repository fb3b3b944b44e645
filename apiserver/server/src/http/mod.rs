//! The only place with HTTP types: request info, negotiation, discovery, OpenAPI, streaming, answers.

pub mod deadline;
mod declared;
pub mod discovery;
pub(crate) mod dispatch;
pub mod handle;
pub mod health;
pub mod info;
mod large;
pub mod logs;
pub mod metrics;
pub mod negotiate;
pub mod openapi;
mod operations;
mod pages;
pub mod query;
pub mod respond;
pub mod route;
mod seats;
pub mod table;
mod turns;
mod warnings;
pub mod watch;
