//! The scheduler: binds each pod without a node to a node.
//!
//! A pure core ([`cycle`], [`decide`], [`plugins`], [`queue`], [`snapshot`]) with upstream's plugins, weights and
//! messages, and a shell ([`run`], [`bind`]) that watches the Kubernetes API and writes bindings, conditions and events.
//! It runs against any kube-apiserver.
//!
//! Invariant: the core reads no clock, no randomness and no client.

pub mod bind;
pub mod budget;
pub mod configuration;
pub mod cycle;
pub mod decide;
pub mod diagnosis;
pub mod explain;
pub mod extender;
pub mod index;
pub mod metrics;
pub mod node;
pub mod nominated;
mod options;
pub mod plugins;
pub mod pod;
pub mod preempt;
pub mod queue;
pub mod refusal;
pub mod resources;
pub mod run;
pub mod snapshot;
pub mod volumes;
pub mod wasm;

#[cfg(test)]
mod naive;
#[cfg(test)]
mod shell_tests;
#[cfg(test)]
mod tests;

pub use metrics::Metrics;
pub use options::{SchedulerOptions, UnsupportedFlags};
pub use run::{Config, RunError, run, run_on};
