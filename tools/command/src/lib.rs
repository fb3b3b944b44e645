//! What the verbs of the command line share: their common flags, the data folder, the terminal, and how they fail.
//!
//! Page: docs/contract.md.

pub mod data_dir;
pub mod environment;
pub mod failure;
pub mod flags;
pub mod format;
pub mod host;
pub mod machine_address;
pub mod notify;
pub mod output;
pub mod output_file;
pub mod packaged;
pub mod panics;
pub mod progress;
pub mod runtime;
pub mod signals;
