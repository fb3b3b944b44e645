//! A request's query and options as types. This module is below everything that uses them.

pub mod deadline;
pub mod options;
pub mod query;
