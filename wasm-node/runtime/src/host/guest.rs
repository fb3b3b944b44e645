//! A container's configuration for the host interfaces, shared by all of its instances.

use std::sync::Arc;
use std::time::Duration;

use guest_sockets::SocketContext;
use machinery_env::Env;
use machinery_serve::net::{Caller, Dial};
use runtime_api::keyvalue::KeyvalueStore;
use runtime_api::ledger::Ledger;
use runtime_api::pipe::{PipeReader, PipeWriter};
use runtime_api::{ConfigValues, LogSink, Preopen};

use super::disk::Disk;
use crate::bounds::cpu::CpuMeter;
use crate::bounds::growth::{Growth, StoreLimiter};
use crate::bounds::guest::GuestBounds;

/// Stdout and stderr of a session; `None`: discarded.
#[derive(Clone)]
pub(crate) struct Outputs(pub(crate) Option<PipeWriter>, pub(crate) Option<PipeWriter>);

/// How its instances grow.
#[derive(Clone)]
pub(crate) struct GuestGrowth {
    pub(crate) growth: Arc<Growth>,
    /// Maximum wait of a growth for other guests.
    pub(crate) wait_max: Duration,
}

/// Configuration shared by a container's instances.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) argv: Arc<[String]>,
    pub(crate) env: Arc<[(String, String)]>,
    pub(crate) cwd: Option<String>,
    /// Its volumes and its limits of file work.
    pub(crate) disk: Arc<Disk>,
    /// The working directory, if it is in a volume.
    pub(crate) cwd_dir: Option<Preopen>,
    pub(crate) log: Arc<dyn LogSink>,
    /// Values of `wasi:config/store`.
    pub(crate) config: Option<Arc<dyn ConfigValues>>,
    /// Store of `wasi:keyvalue`.
    pub(crate) keyvalue: Option<Arc<dyn KeyvalueStore>>,
    /// Its stdin; `None`: an empty input.
    pub(crate) stdin: Option<PipeReader>,
    /// Whether its standard streams report a terminal.
    pub(crate) terminal: bool,
    /// Outputs of a session; `None`: the log.
    pub(crate) outputs: Option<Outputs>,
    /// Bounds of each instance.
    pub(crate) bounds: GuestBounds,
    pub(crate) caller: Caller,
    pub(crate) dial: Option<Arc<dyn Dial>>,
    /// Its sockets' network; `None`: it has no sockets.
    pub(crate) sockets: Option<SocketContext>,
    /// Its CPU time, for work that the host does for it in tasks of its own.
    pub(crate) cpu: Arc<CpuMeter>,
    /// Resources held by its instances together.
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) growth: GuestGrowth,
    /// Fuel of each instance, if metered.
    pub(crate) fuel: Option<u64>,
    /// The engine of its instances.
    pub(crate) engine: wasmtime::Engine,
}

impl Guest {
    /// The clock of its timeouts.
    pub(super) fn clock(&self) -> &Env {
        self.growth.growth.env()
    }

    pub(super) fn limiter(&self) -> StoreLimiter {
        StoreLimiter::new(self.ledger.clone(), self.growth.growth.clone(), self.growth.wait_max)
    }
}
