//! What a request asks for beside its path and body: its query, its options, its selectors, as types. Below everything that acts on
//! them.

pub mod options;
pub mod query;
pub mod selector;
