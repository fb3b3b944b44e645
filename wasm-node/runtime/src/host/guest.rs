//! What the host interfaces know of a container: what all of its instances have in common.

use std::sync::Arc;
use std::time::Duration;

use machinery_serve::net::{Caller, Dial};
use runtime_api::ledger::Ledger;
use runtime_api::pipe::{PipeReader, PipeWriter};
use runtime_api::{ConfigValues, LogSink, Preopen};

use super::disk::Disk;
use crate::bounds::growth::{Growth, StoreLimiter};
use crate::bounds::guest::GuestBounds;
use crate::keyvalue::Namespace;

/// Stdout and stderr of a session; none = taken, and kept nowhere.
#[derive(Clone)]
pub(crate) struct Outputs(pub(crate) Option<PipeWriter>, pub(crate) Option<PipeWriter>);

/// See the module.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) argv: Arc<[String]>,
    pub(crate) env: Arc<[(String, String)]>,
    pub(crate) cwd: Option<String>,
    /// Its volumes, and its share of what file work takes.
    pub(crate) disk: Arc<Disk>,
    /// The working directory, where it lies in a volume.
    pub(crate) cwd_dir: Option<Preopen>,
    pub(crate) log: Arc<dyn LogSink>,
    /// What `wasi:config/store` has for it.
    pub(crate) config: Option<Arc<dyn ConfigValues>>,
    /// What `wasi:keyvalue` keeps for it.
    pub(crate) keyvalue: Option<Arc<Namespace>>,
    /// What it reads; none = an empty input.
    pub(crate) stdin: Option<PipeReader>,
    /// Whether it is told that it has a terminal.
    pub(crate) terminal: bool,
    /// Where a session's outputs go; none = into the log.
    pub(crate) outputs: Option<Outputs>,
    /// What each of its instances may take.
    pub(crate) bounds: GuestBounds,
    pub(crate) caller: Caller,
    pub(crate) dial: Option<Arc<dyn Dial>>,
    /// What its instances hold together.
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) growth: Arc<Growth>,
    /// How long a growth waits for others.
    pub(crate) growth_wait_max: Duration,
    /// Of each instance, where it is metered.
    pub(crate) fuel: Option<u64>,
    /// The engine that its instances are made in.
    pub(crate) engine: wasmtime::Engine,
}

impl Guest {
    pub(super) fn limiter(&self) -> StoreLimiter {
        StoreLimiter::new(self.ledger.clone(), self.growth.clone(), self.growth_wait_max)
    }
}
