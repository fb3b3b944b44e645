//! Plugins: names, parameters and results of a component's functions, and values as text. Pure: from bytes to values and back;
//! instances, limits and HTTP are in `engine`.
//!
//! - [`types`]: functions and types as data, stored beside the compiled code.
//! - [`describe`]: reads that data from a component's binary.
//! - [`names`]: resolves function names.
//! - [`schema`]: JSON Schema and OpenAPI of it.
//! - [`json`], [`wave`]: parse arguments, write results; a [`budget::Budget`] bounds both before they allocate.
//!
//! A resource is an opaque string in every text, and [`Val::String`](wasmtime::component::Val) in every value here:
//! `engine` maps it to the session's resource.

pub(crate) mod budget;
pub(crate) mod describe;
pub(crate) mod error_path;
#[cfg(test)]
mod fuzz;
pub(crate) mod json;
mod maps;
pub(crate) mod names;
pub(crate) mod resources;
pub(crate) mod schema;
#[cfg(test)]
mod tests;
pub(crate) mod types;
pub(crate) mod wave;
