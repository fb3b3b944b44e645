//! The decisions of a pod. Pure: events, readings of clocks and objects in, actions out; [`super::worker`] performs them.
//!
//! Machines with a `step` function: the lifecycle ([`state`], with a [`container`] each), the writes of the status
//! ([`status_writer`]), its projection ([`projection`], [`status`]), the first actions of a resumed pod
//! ([`first_actions`]), an in-place resize ([`resize`]), and steps of the wall clock ([`clock`]). Their input is parsed once
//! ([`settings`], [`check`]).

pub mod backoff;
pub mod check;
pub(super) mod clock;
pub mod container;
pub mod event;
pub(super) mod first_actions;
pub(super) mod object;
pub mod order;
pub(super) mod projection;
pub(crate) mod resize;
pub(super) mod reuse;
pub mod settings;
pub mod stage;
pub(super) mod start_latency;
pub mod state;
pub mod status;
pub(super) mod status_writer;
