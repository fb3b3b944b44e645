//! The runtime of a verb that sends a few requests.

use anyhow::Context as _;
use tokio::runtime::{Builder, Runtime};

/// A runtime on the thread of its caller.
///
/// # Errors
/// If the system has no resources for it.
pub fn single_threaded() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("cannot start")
}
