//! Client runtime of every component other than the API server: requests, reflectors, caches and the controller driver.
//!
//! An [`Informer`] keeps an [`ObjectCache`] in step with the server. A [`Controller`] row maps a key and that cache to
//! a [`Plan`] with a pure function. [`driver::run`] queues keys, performs plans, and holds a key back until the cache
//! shows the writes of its last pass. Invariant: no decision waits, sleeps or sends a request.
//!
//! Excluded by design: sockets, listeners and servers (`machinery-serve`); the machine's clock (`machinery-env`).
#![warn(missing_docs)]

pub mod api;
pub mod cache;
pub mod causes;
mod change;
pub mod checkpoint;
mod claim_cache;
mod claim_index;
pub mod claims;
mod connect;
pub mod discovery;
pub mod driver;
pub mod effect;
pub mod election;
pub mod events;
mod executor;
pub mod informer;
pub mod interner;
mod label_index;
pub mod losses;
pub mod metrics;
pub mod object;
pub mod pass;
mod pending;
pub mod plan;
pub mod pod;
mod progress;
pub mod queue;
pub mod reflector;
pub mod request;
mod rotating;
pub mod selector;
mod service_account;
pub mod simulate;
#[cfg(test)]
mod tests;
pub mod wire;

pub use api::{Api, ListOptions, Page};
pub use cache::{Change, ObjectCache};
pub use connect::{ClientError, from_config, from_kubeconfig, from_kubeconfig_as, in_process, read_kubeconfig};
pub use driver::{Context, Controller, Input};
pub use effect::{Effect, ReconcilerState};
pub use informer::Informer;
pub use object::{
    Kind, MetadataOnly, Object, Scope, Typed, controller_of, key_of, read, shared, typed, value_of, version_of,
};
pub use pass::{EffectResult, Pass, ReconcilerCache};
pub use plan::{Action, EventRecord, Failure, OutcomeEvents, Plan, Propagation, controlled_by, reference_to};
pub use pod::{Condition, Pod};
pub use queue::BackOff;
pub use reflector::{Reflector, ReflectorEvent, ReflectorEvents};
pub use rotating::{TlsIdentity, rotating};
pub use service_account::as_service_account;
pub use wire::{ReadWire, Wire};
