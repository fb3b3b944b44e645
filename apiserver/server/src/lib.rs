//! The Kubernetes API server: the only component that touches the store.
//!
//! One direction, each stage a plain function or a tower layer with a typed input and output: accept → request info →
//! authenticate → authorize → decode and default → load → build → mutating admission → strategy → normalise → validation →
//! validating admission → one transaction → encode. All writes take the same way ([`registry`]).
//! [`apiserver_resources`] has the one table that drives routes, discovery, OpenAPI, storage, columns, defaulting and
//! validation; [`apiserver_storage`] the store and the watch cache.
//!
//! Absent on purpose: a Kubernetes client, and HTTP types outside [`http`] (but for the TLS listener and the reading of
//! credentials in [`auth`]).

pub mod admission;
pub mod auth;
pub mod bootstrap;
pub mod catalog;
mod component_statuses;
mod conversion;
mod default_objects;
mod extensions;
pub mod http;
pub mod node_metrics;
pub mod registry;
pub mod request;
pub mod server;
pub mod step;
mod turns;
pub mod webhook;

#[cfg(test)]
mod store_format;
