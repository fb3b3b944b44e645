//! The client kit: how a component other than the apiserver reaches the cluster, sees it and changes it.
//!
//! Shape: an [`Informer`] keeps an [`ObjectCache`] in step with the server; a [`Controller`] row turns a key of that view into a
//! [`Plan`] with a pure function; [`driver::run`] queues the keys, performs the plans, and holds a key back until the view
//! has seen what was written for it. No decision waits, sleeps or asks the server.
//!
//! Absent on purpose: sockets, listeners and whatever serves (`machinery-serve`); the machine's clock (`machinery-env`).
#![warn(missing_docs)]

pub mod api;
pub mod cache;
mod change;
mod claim_cache;
mod claim_index;
pub mod claims;
mod connect;
mod discovery;
pub mod driver;
pub mod election;
pub mod events;
mod executor;
pub mod informer;
mod label_index;
pub mod losses;
pub mod metrics;
pub mod object;
mod pace;
pub mod pass;
mod pending;
pub mod plan;
pub mod pod;
pub mod question;
pub mod queue;
pub mod reflector;
pub mod request;
pub mod selector;
pub mod simulate;
#[cfg(test)]
mod tests;
pub mod wire;

pub use api::{Api, ListOptions, Page};
pub use cache::{Change, ObjectCache};
pub use connect::{ClientError, from_config, from_kubeconfig, from_kubeconfig_as, in_process};
pub use driver::{Context, Controller, Input};
pub use informer::Informer;
pub use object::{
    Kind, MetadataOnly, Object, Scope, Typed, controller_of, key_of, read, shared, typed, value_of, version_of,
};
pub use pass::{Answer, Memories, Pass};
pub use plan::{Action, EventRecord, Failure, OutcomeEvents, Plan, Propagation, controlled_by, reference_to};
pub use pod::{Condition, Pod};
pub use question::{Memory, Question};
pub use queue::BackOff;
pub use reflector::{Reflector, ReflectorEvent, ReflectorEvents};
pub use wire::{ReadWire, Wire};
