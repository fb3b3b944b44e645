//! Schemas of custom resources, compiled once and pure: what an object may hold, what is taken away, what is filled in.
//!
//! - `compile`: out of an `openAPIV3Schema`, within bounds.
//! - `prune`: what the schema doesn't know; `default`: what it fills in; `embedded`: objects within objects.
//! - `check`: values (types, bounds, formats, patterns), with upstream's sentences and unchanged values let pass.
//! - `rules`: what expressions say of an object, and of what it was.
//! - `lists`: sets and maps that hold an item twice. `path`: the JSON paths of columns and fields.
//! - `weight`: what one takes in memory.

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
pub(crate) mod rules;
#[cfg(test)]
mod tests;
pub(crate) mod weight;

pub(crate) use compile::{Listed, Schema, compile};
pub(crate) use default::{drop_nulls, fill};
pub(crate) use formats::is_known as is_known_format;
pub(crate) use pattern::compile as compile_pattern;
pub(crate) use prune::prune;

/// How deep a schema may nest: far more than one that people read does.
pub(crate) const DEPTH_MAX: usize = 64;
/// How many schemas one may hold in all: the largest in use have some thousands.
pub(crate) const NODES_MAX: usize = 20_000;
/// What all patterns of a schema may take as programs.
pub(crate) const PATTERNS_BYTES_MAX: usize = 8 << 20;
