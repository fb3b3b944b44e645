//! The Kubernetes API server: the only component that touches the store.
//!
//! One direction, each stage a plain function or a tower layer with a typed input and output: accept → request info →
//! authenticate → in-flight limit → authorize → decode and default → load → build → mutating admission → strategy →
//! normalise → validation → validating admission → one transaction (optimistic retry on a conflict) → encode. All
//! writes take this path ([`registry`]). [`apiserver_resources`] has the one table that drives routes, discovery,
//! OpenAPI, storage, columns, defaulting and validation; [`apiserver_catalog`] the set of served resources;
//! [`apiserver_storage`] the store and the watch cache; [`apiserver_auth`] authentication and authorization;
//! [`apiserver_admission`] the admission chain; [`apiserver_webhook`] the calls of webhooks.
//!
//! Absent on purpose: a Kubernetes client, and HTTP types outside [`http`] (except the TLS listener in [`tls`]).

pub mod bootstrap;
mod component_statuses;
mod extensions;
mod fair_queue;
pub mod http;
mod live_servers;
pub mod node_metrics;
pub mod options;
pub mod registry;
mod revocations;
pub mod server;
pub mod tls;

#[cfg(test)]
mod store_format;
#[cfg(test)]
mod test_catalog;
