//! Managed fields and server-side apply, over any type of [`schema`](crate): ownership of fields, conflicts,
//! and the merge of a configuration into an object. Model and terms are those of structured-merge-diff.
//!
//! - [`path`], [`set`], [`fields`]: path elements, field sets, and their text form.
//! - [`pool`]: interns field sets and managers' identities.
//! - `shape`: merge behaviour of types. [`mod@compare`], `created`, `config`, `mod@merge`, `remove`: walks over values.
//! - [`body`]: request bodies.
//! - [`managers`]: the entries of `metadata.managedFields`. `rules`: their update by a write; `patch`: an apply.

pub mod body;
pub mod compare;
mod config;
mod created;
pub mod fields;
pub mod managers;
mod merge;
mod patch;
pub mod path;
pub mod pool;
mod remove;
mod rules;
pub mod set;
mod shape;

#[cfg(test)]
mod tests;

pub use compare::Form;
pub use config::check;
pub use managers::{Entry, Identity, Managers, Operation};
pub use patch::{Applied, Failure, LAST_APPLIED, apply};
pub use path::PathElement;
pub use rules::{Ignored, Versions, Writer, update};
pub use set::Set;
