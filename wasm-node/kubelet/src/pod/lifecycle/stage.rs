//! The stages of a container: the vocabulary of [`super::container`]. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::event::ImageOwner;

/// The exit of a container.
#[derive(Debug, Clone, PartialEq)]
pub struct Exit {
    /// Exit code.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled` …
    pub reason: String,
    /// Termination message.
    pub message: Option<String>,
    /// The start time.
    pub started: Option<Timestamp>,
    /// The exit time.
    pub finished: Timestamp,
    /// The container's id.
    pub container_id: Option<String>,
}

/// A running container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerRun {
    /// The start time.
    pub since: Timestamp,
    /// The container's id.
    pub container_id: String,
    /// The `postStart` hook is running or has failed: until it succeeds, the container doesn't count as running.
    pub hook_pending: bool,
    /// The startup probe has succeeded, or there is none.
    pub started: bool,
    /// The readiness probe has succeeded, or there is none.
    pub ready: bool,
    /// The container has stopped to listen for its pod's end: no later probe makes it ready.
    pub(in crate::pod) stopped_listening: bool,
    /// An instance can be created.
    pub instantiable: bool,
    /// The first result of the deciding probe is outstanding.
    pub first_probe_pending: bool,
    /// Consecutive results per probe: (success, count).
    pub(in crate::pod) streaks: [(bool, u32); 3],
}

impl ContainerRun {
    pub(in crate::pod) fn serves(&self) -> bool {
        self.ready && self.instantiable && self.started && !self.hook_pending
    }
}

/// The reason of a running container's stop.
#[derive(Debug, Clone, PartialEq)]
pub enum StopReason {
    /// The pod ends.
    Pod,
    /// A probe reached its failure threshold: the container restarts.
    Probe,
    /// The `postStart` hook failed: the container restarts if its policy allows.
    Hook {
        /// The error.
        message: String,
    },
    /// Its image or resources changed: the container restarts, whatever its restart policy.
    Changed {
        /// The time of the change.
        since: Timestamp,
    },
    /// The whole pod restarts.
    RestartAll,
}

/// The reason of a container's wait before the next try.
#[derive(Debug, Clone, PartialEq)]
pub enum WaitReason {
    /// The pull failed; reason and message are shown before the back-off.
    Pull {
        /// The image's owner.
        of: ImageOwner,
        /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`.
        reason: &'static str,
        /// The cause.
        message: String,
    },
    /// The back-off after a failed pull.
    PullBackOff {
        /// The error of the last pull.
        message: String,
    },
    /// The configuration, creation or start failed.
    Config {
        /// `CreateContainerConfigError`, `CreateContainerError`, `RunContainerError`.
        reason: &'static str,
        /// The cause.
        message: String,
    },
    /// The `postStart` hook failed.
    Hook {
        /// The error.
        message: String,
    },
    /// The back-off after an exit (`CrashLoopBackOff`).
    Crash {
        /// The length of the back-off.
        wait: Duration,
    },
}

/// The stage of a container.
#[derive(Debug, Clone, PartialEq)]
pub enum ContainerStage {
    /// Waits for the pod's volumes and for preceding containers.
    Idle,
    /// The images are being pulled.
    Pulling,
    /// Waits for the next try.
    Waiting {
        /// The reason.
        wait: WaitReason,
        /// The time of the next try.
        until: Timestamp,
    },
    /// The container is being created.
    Starting,
    /// The container runs.
    Running(ContainerRun),
    /// The container is being stopped.
    Stopping {
        /// The container's run.
        running: ContainerRun,
        /// The reason.
        why: StopReason,
    },
    /// The container has ended for good.
    Done,
}
