//! What a request asks for beside its path and body: its query and its options, as types. Below everything that acts on
//! them.

pub mod deadline;
pub mod options;
pub mod query;
