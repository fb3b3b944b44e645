//! The only place with HTTP types: request info, negotiation, streaming, answers.

mod connect;
pub mod deadline;
pub(crate) mod dispatch;
#[cfg(test)]
mod fuzz;
pub mod handle;
pub mod health;
pub mod info;
pub mod kubelets;
mod large;
mod logs;
pub mod metrics;
pub mod negotiate;
mod node_pool;
mod openapi;
mod pages;
mod protobuf;
mod proxy;
pub mod respond;
pub mod route;
mod seats;
pub(crate) mod services;
pub mod table;
mod under_way;
mod warnings;
pub mod watch;
