//! The Kubernetes API server: the only component that touches the store.
//!
//! One direction, each stage a plain function or a tower layer with a typed input and output: accept → request info →
//! authenticate → authorize → decode and default → load → build → mutating admission → strategy → normalise → validation →
//! validating admission → one transaction → encode. All writes take the same way ([`verbs`]).
//! [`resources`] is the one table that drives routes, discovery, OpenAPI, storage, columns, defaulting and validation.
//!
//! Absent on purpose: a Kubernetes client, and HTTP types outside [`http`] (but for the TLS listener and the reading of
//! credentials in [`auth`]).

pub mod admission;
pub mod auth;
pub mod bootstrap;
pub mod cache;
pub mod http;
pub mod objects;
pub mod patch;
pub mod resources;
pub mod schema;
pub mod server;
pub mod store;
pub mod verbs;
