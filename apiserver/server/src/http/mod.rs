//! The HTTP layer, and the only place with HTTP types: request info, negotiation, dispatch, streaming, responses.

mod connect;
pub mod deadline;
pub(crate) mod dispatch;
#[cfg(test)]
mod fuzz;
mod gauge_guard;
pub mod handle;
pub mod health;
mod in_flight;
pub mod info;
pub mod kubelets;
mod large;
mod logs;
pub mod metrics;
pub mod negotiate;
mod openapi;
mod pages;
pub mod prometheus_text;
mod protobuf;
mod proxy;
pub mod respond;
pub mod route;
pub(crate) mod services;
mod spans;
pub mod static_files;
pub(crate) mod store_metrics;
pub mod table;
#[cfg(test)]
mod tests;
mod user_limits;
mod warnings;
pub mod watch;
mod watch_websocket;
