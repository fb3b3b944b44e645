//! Plugins: what a component's functions are called, what they take and give, and how values travel as text. Pure: from
//! bytes to values and back; instances, limits and HTTP are `engine`'s.
//!
//! - [`types`]: functions and types as data, kept beside the compiled code.
//! - [`describe`]: that data, read from a component's binary.
//! - [`names`]: which function a name means.
//! - [`schema`]: JSON Schema and OpenAPI of it.
//! - [`json`], [`wave`]: arguments read, results written. Both stay within a [`budget::Budget`] before they make anything.
//!
//! A resource is an opaque string in every text, and [`Val::String`](wasmtime::component::Val) in every value here: which
//! resource that is in a session, `engine` knows.

pub(crate) mod budget;
pub(crate) mod describe;
#[cfg(test)]
mod fuzz;
pub(crate) mod json;
mod maps;
pub(crate) mod names;
pub(crate) mod place;
pub(crate) mod resources;
pub(crate) mod schema;
#[cfg(test)]
mod tests;
pub(crate) mod types;
pub(crate) mod wave;
