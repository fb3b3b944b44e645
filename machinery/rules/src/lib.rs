//! Rules that several components must apply alike, over the vocabulary of `machinery-api`: with a difference, admission and
//! a controller would disagree about a quota, or the scheduler would place a pod that a controller evicts. Upstream has
//! them in `k8s.io/component-helpers`, `apiserver/pkg/quota` and libraries.
//!
//! Input and output are plain values; the caller reads objects and the clock. Invariant: no tokio, no client, no clock.
//! A rule with one user belongs to that crate.
#![warn(missing_docs)]

pub mod activation;
pub mod address_pool;
pub mod certificate_request;
pub mod cron;
pub mod placement;
pub mod quota;
pub mod requests;
pub mod reserved_address;
pub mod response_times;
pub mod unsupported;
