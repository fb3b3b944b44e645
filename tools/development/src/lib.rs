//! The verbs of a developer: a project from a template, its build and run in a cluster, modules and images, calls of plugins.
//! Each verb has its arguments and a function `run`; `src/cmd/mod.rs` of the program has their table.
//!
//! - [`new`], [`run`], [`bind`], [`call`]: from a template to a running plugin and its typed client.
//! - [`push`], [`pull`], [`image`], [`inspect`]: modules in registries, on a node, and in files.
//! - [`demo`]: a cluster's main features with measured figures.
//!
//! Absent on purpose: components of a cluster. A verb is a client of the API server and of the registry. The program starts
//! the cluster of the demo.

pub mod bind;
pub mod call;
pub mod demo;
pub mod image;
pub mod inspect;
mod module_file;
pub mod new;
mod project;
pub mod pull;
pub mod push;
mod registry;
mod rollout;
pub mod run;
mod rust_keywords;
