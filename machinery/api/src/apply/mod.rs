//! Managed fields and server-side apply, over any type of [`schema`](crate::schema): who set which fields of an object, who loses
//! them, and how a configuration is laid over an object. The model and the words are those of structured-merge-diff.
//!
//! - [`path`], [`set`], [`fields`]: elements of paths, sets of fields, their text.
//! - [`pool`]: each set and each manager's identity held once, whoever shares it.
//! - `shape`: how values of a type merge. [`mod@compare`], `created`, `config`, `mod@merge`, `remove`: the walks over them.
//! - [`body`]: what a client sends.
//! - [`managers`]: the entries of `metadata.managedFields`. `rules`: what a write makes of them; `patch`: what an apply does.

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
