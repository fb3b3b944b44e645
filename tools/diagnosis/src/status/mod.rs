//! `coracle status`: what runs in a cluster, and what is not as it should be.
//!
//! [`gather`] reads API server and data folder; the other parts are pure.
//!
//! - [`report`]: the result as data, which `--output json` prints.
//! - [`nodes`], [`pods`], [`workloads`]: rows of the result, made from API objects.
//! - [`problems`]: what isn't healthy, each with the next step.
//! - [`text`]: the result for people.

pub(crate) mod gather;
mod nodes;
mod pods;
pub(crate) mod problems;
pub(crate) mod report;
#[cfg(test)]
mod tests;
pub(crate) mod text;
pub mod verb;
mod workloads;
