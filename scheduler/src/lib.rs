//! The scheduler: chooses a node for every pod that has none.
//!
//! A pure core ([`decide`], [`plugins`], [`queue`], [`snapshot`]) with upstream's plugins, weights and messages, and a thin
//! shell ([`run`], [`bind`]) that watches through the Kubernetes API and writes bindings, conditions and
//! events. It runs against any kube-apiserver.
//!
//! Absent on purpose: whatever reads the clock, randomness or a client inside the core.

pub mod bind;
pub mod budget;
pub mod configuration;
pub mod decide;
pub mod diagnosis;
pub mod explain;
pub mod extender;
pub mod index;
pub mod metrics;
pub mod node;
pub mod nominated;
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
pub use run::{Config, RunError, run, run_on};
