//! Compiled schemas of custom resources: pruning, defaulting, validation. Pure.
//!
//! - `compile`: from an `openAPIV3Schema`, within bounds.
//! - `prune`: drops unknown fields; `default`: sets defaults; `embedded`: objects within objects.
//! - `check`: validates values (types, bounds, formats, patterns) with upstream's messages and ratcheting.
//! - `rules`: evaluates CEL rules over an object and its previous state.
//! - `lists`: duplicates in sets and maps. `path`: the JSON paths of columns and fields.
//! - `weight`: the memory of a compiled schema.

pub(crate) mod check;
mod compile;
mod default;
pub(crate) mod embedded;
mod formats;
#[cfg(test)]
mod fuzz;
pub(crate) mod lists;
pub(crate) mod path;
mod pattern;
mod prune;
mod repetition;
pub(crate) mod rules;
#[cfg(test)]
mod tests;
pub(crate) mod weight;

pub(crate) use compile::{ListType, Schema, compile};
pub(crate) use default::{drop_nulls, fill};
pub(crate) use formats::is_known as is_known_format;
pub(crate) use pattern::compile as compile_pattern;
pub(crate) use prune::prune;

/// Maximum depth of a schema, far above that of hand-written ones.
pub(crate) const DEPTH_MAX: usize = 64;
/// Maximum number of schemas in one: the largest in use have some thousands.
pub(crate) const NODES_MAX: usize = 20_000;
/// Bound on the compiled size of all patterns of a schema, in bytes.
pub(crate) const PATTERNS_BYTES_MAX: usize = 8 << 20;
