//! Where a container stands: the words of [`super::cell`]. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::event::ImageOf;

/// How a container ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Exit {
    /// Exit code.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled` …
    pub reason: String,
    /// Termination message.
    pub message: Option<String>,
    /// When it was started.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Timestamp,
    /// Its id.
    pub container_id: Option<String>,
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Running {
    /// Since when.
    pub since: Timestamp,
    /// Its id.
    pub container_id: String,
    /// The hook after its start goes on, or has failed: until that has ended it doesn't count as running.
    pub hooking: bool,
    /// The startup probe, where there is one, has succeeded.
    pub started: bool,
    /// The readiness probe, where there is one, says so.
    pub ready: bool,
    /// An instance can be made.
    pub instantiable: bool,
    /// The first result of the probe that decides is still to come.
    pub unprobed: bool,
    /// Results in a row per probe: (good, how many).
    pub(super) rows: [(bool, u32); 3],
}

impl Running {
    pub(super) fn serves(&self) -> bool {
        self.ready && self.instantiable && self.started && !self.hooking
    }
}

/// Why a running container is being stopped.
#[derive(Debug, Clone, PartialEq)]
pub enum StopReason {
    /// The pod ends.
    Pod,
    /// A probe has failed too often: it is started again.
    Probe,
    /// The hook after its start has failed: it is started again where its policy says so.
    Hook {
        /// What was wrong.
        message: String,
    },
    /// Its image is another one: it is started again, whatever its restart policy.
    Changed {
        /// When that was seen.
        since: Timestamp,
    },
    /// The whole pod is started anew.
    Anew,
}

/// Why a container waits before its next try.
#[derive(Debug, Clone, PartialEq)]
pub enum Wait {
    /// The image can't be had; the reason and message are shown, then its back-off.
    Pull {
        /// Of what.
        of: ImageOf,
        /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`.
        reason: &'static str,
        /// Why.
        message: String,
    },
    /// Waiting to pull again.
    PullBackOff {
        /// Why the last pull failed.
        message: String,
    },
    /// It can't be configured, created or started.
    Config {
        /// `CreateContainerConfigError`, `CreateContainerError`, `RunContainerError`.
        reason: &'static str,
        /// Why.
        message: String,
    },
    /// The hook after its start has failed.
    Hook {
        /// What was wrong.
        message: String,
    },
    /// It has ended too often.
    Crash {
        /// For how long.
        wait: Duration,
    },
}

/// Where a container stands.
#[derive(Debug, Clone, PartialEq)]
pub enum CellStage {
    /// It waits for the pod's volumes, and for those that come before it.
    Idle,
    /// The image is being had.
    Pulling,
    /// Until the next try.
    Waiting {
        /// Why.
        wait: Wait,
        /// Until when.
        until: Timestamp,
    },
    /// The container is being made.
    Starting,
    /// The container runs.
    Running(Running),
    /// The container is being stopped.
    Stopping {
        /// What it is.
        running: Running,
        /// Why.
        why: StopReason,
    },
    /// It runs no more, and never will.
    Done,
}
