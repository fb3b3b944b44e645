//! What is wrong with a cluster or a machine, and why: `coracle status`, `coracle doctor`, `coracle explain-scheduling` and
//! `coracle explain-reconcile`.
//!
//! Input: the API server's responses, the data folder and the machine, each read without a change; output: a report as data and
//! as text. A verb's shell is its `verb` module, and `gather` reads; the other modules are pure.
//!
//! - [`status`]: what runs in a cluster, and what isn't healthy.
//! - [`doctor`]: what of this machine keeps a cluster from working well.
//! - [`explain`]: what the scheduler or a controller would decide.
//! - [`program`]: what the program knows of itself.
//!
//! Absent on purpose: a write to a cluster, and a lock on a data folder.

pub mod doctor;
pub mod explain;
mod inspection;
pub mod program;
pub mod status;
