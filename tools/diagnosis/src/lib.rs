//! What is wrong with a cluster or a machine: `coracle status` and `coracle doctor`.
//!
//! Input: the API server's responses, the data folder and the machine, each read without a change; output: a report as data and
//! as text. A verb's shell is its `verb` module, and `gather` reads; the other modules are pure.
//!
//! - [`status`]: what runs in a cluster, and what isn't healthy.
//! - [`doctor`]: what of this machine keeps a cluster from working well.
//! - [`program`]: what the program knows of itself.
//!
//! Absent on purpose: a write to a cluster, and a lock on a data folder.

pub mod doctor;
mod inspection;
pub mod program;
pub mod status;
