//! Flags of what nodes share with each other.

use clap::Args;

use super::keyvalue::KeyvalueFlags;
use crate::cmd::Failure;
use crate::config::SharingConfig;

/// Flags of what this node shares with other ones.
#[derive(Debug, Clone, Args)]
pub(in crate::cmd) struct SharingFlags {
    /// Exchanges compiled modules with other nodes of the same version and CPU features that have this flag, instead of
    /// compiling each module once per node. Compiled code is trusted: each of these nodes can run code of its own on all
    /// of them
    #[arg(long, env = "CORACLE_SHARE_COMPILED_MODULES")]
    share_compiled_modules: bool,
    #[command(flatten)]
    keyvalue: KeyvalueFlags,
}

impl SharingFlags {
    /// What is shared.
    ///
    /// # Errors
    /// On flags that contradict each other, and on files that can't be read.
    pub(in crate::cmd) fn config(&self) -> Result<SharingConfig, Failure> {
        Ok(SharingConfig { compiled: self.share_compiled_modules, keyvalue: self.keyvalue.config()? })
    }
}
