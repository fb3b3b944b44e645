//! The policies of a pod, its events, and its actions: the vocabulary of [`super::state`]. Pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;

pub use crate::spec::containers::Class;

/// `restartPolicy` of a pod or a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RestartPolicy {
    /// Restarts after every exit.
    Always,
    /// Restarts after a failure.
    OnFailure,
    /// Never restarts.
    Never,
}

/// The kind of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Delays the other probes until it succeeds.
    Startup,
    /// Decides whether the pod is Ready.
    Readiness,
    /// Restarts the container when it fails.
    Liveness,
}

impl ProbeKind {
    pub(in crate::pod) fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// The numbers of consecutive results that change a probe's state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Thresholds {
    /// `successThreshold`.
    pub success: u32,
    /// `failureThreshold`.
    pub failure: u32,
    /// The probe's own grace period.
    pub grace: Option<Duration>,
}

/// A restart rule of a container by its exit code (`restartPolicyRules`, KEP-5307).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RestartRule {
    /// The exit codes that match.
    pub exit_codes: Vec<i32>,
    /// All other exit codes match (`NotIn`).
    pub others: bool,
    /// Restarts all containers of the pod instead of only this one (`RestartAllContainers`, KEP-5532).
    pub all: bool,
}

impl RestartRule {
    fn is_about(&self, code: i32) -> bool {
        self.exit_codes.contains(&code) != self.others
    }
}

/// The kind of a container's `postStart` hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PostStart {
    /// Sleeps, even if the container exits meanwhile.
    Sleep,
    /// Calls the container, and fails if that has exited.
    Call,
}

/// The result of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeResult {
    /// Success.
    Passed,
    /// Success with a warning.
    Warned(String),
    /// Failure, with its cause.
    Failed(String),
    /// The probe could not run for a reason outside of the container; it counts as neither success nor failure.
    Errored(String),
}

/// The part of a container's spec that governs its lifecycle.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerPolicy {
    /// The container's name.
    pub name: String,
    /// The container's class.
    pub class: Class,
    /// The container's own restart policy, or the pod's.
    pub restart: RestartPolicy,
    /// The rules that take precedence over the policy.
    pub restart_rules: Vec<RestartRule>,
    /// The image reference in the spec.
    pub image: String,
    /// The thresholds of the startup probe, if there is one.
    pub startup: Option<Thresholds>,
    /// The thresholds of the readiness probe, if there is one.
    pub readiness: Option<Thresholds>,
    /// The thresholds of the liveness probe, if there is one.
    pub liveness: Option<Thresholds>,
    /// The hook that delays the container's running state.
    pub post_start: Option<PostStart>,
}

/// The part of a pod's spec that governs its lifecycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LifecyclePolicy {
    /// Its containers, in the order of [`crate::spec::containers`]: events and actions refer to them by index. Pods of
    /// the same template share this list.
    pub containers: Arc<Vec<ContainerPolicy>>,
    /// The pod in upstream's messages: `name_namespace(uid)`.
    pub pod: String,
    /// `restartPolicy`.
    pub restart: RestartPolicy,
    /// `activeDeadlineSeconds`.
    pub deadline: Option<Duration>,
    /// `terminationGracePeriodSeconds`.
    pub grace: Duration,
}

impl LifecyclePolicy {
    #[cfg(test)]
    pub(in crate::pod) fn containers_mut(&mut self) -> &mut Vec<ContainerPolicy> {
        Arc::make_mut(&mut self.containers)
    }
}

impl ContainerPolicy {
    /// Whether the container restarts after an exit with `code`.
    pub(in crate::pod) fn restarts(&self, code: i32) -> bool {
        let by_rule = self.restart_rules.iter().any(|rule| rule.is_about(code));
        by_rule
            || match self.restart {
                RestartPolicy::Always => true,
                RestartPolicy::OnFailure => code != 0,
                RestartPolicy::Never => false,
            }
    }

    /// Whether an exit with `code` restarts the whole pod: the first matching rule decides.
    pub(in crate::pod) fn restarts_all(&self, code: i32) -> bool {
        let rule = self.restart_rules.iter().find(|rule| rule.is_about(code));
        self.class != Class::Ephemeral && rule.is_some_and(|rule| rule.all)
    }

    pub(in crate::pod) fn thresholds(&self, kind: ProbeKind) -> Option<&Thresholds> {
        match kind {
            ProbeKind::Startup => self.startup.as_ref(),
            ProbeKind::Readiness => self.readiness.as_ref(),
            ProbeKind::Liveness => self.liveness.as_ref(),
        }
    }
}

/// The facts that decide whether a pod starts, at its first step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Admission {
    /// `status.reason` and `status.message` of a pod that the node rejects.
    pub rejection: Option<(&'static str, String)>,
    /// The unsupported fields of the spec, as a sentence and one message each.
    pub unsupported: Option<(String, Vec<String>)>,
    /// The grace period, if the pod is being deleted.
    pub deleted: Option<Duration>,
    /// The object was removed from the API.
    pub removed: bool,
}

impl Admission {
    /// Whether the pod ends before it starts.
    #[must_use]
    pub fn ends(&self) -> bool {
        self.rejection.is_some() || self.deleted.is_some() || self.removed
    }
}

/// An event of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A deadline of the state may have passed.
    Tick,
    /// The wall clock was set forward by this, or back if it is negative.
    ClockStepped(SignedDuration),
    /// The API requests deletion with this grace period.
    Deleted(Duration),
    /// The object was removed from the API: the pod ends without a grace period.
    Removed,
    /// The volumes are filled.
    Mounted,
    /// A volume can't be filled yet; the fill is retried.
    MountFailed(String),
    /// The node shuts down, with this grace period.
    ShutDown(Duration),
    /// The pod exceeds a limit, or the node is under pressure; with the message.
    Evicted(String),
    /// All resources of the pod on the node are removed.
    Cleaned,
    /// An event of the container with that index.
    Container(usize, ContainerEvent),
}

/// The owner of an image.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageOwner {
    /// The container itself.
    Container,
    /// A mounted image volume, by its reference.
    Volume(String),
}

/// An event of a container.
#[derive(Debug, Clone, PartialEq)]
pub enum ContainerEvent {
    /// A pull has begun.
    PullBegan {
        /// The image's owner.
        of: ImageOwner,
    },
    /// The image of a mounted volume was pulled.
    VolumePulled {
        /// The event's message.
        message: String,
    },
    /// The container's image was pulled.
    Pulled {
        /// The number of the pull. A result with an older number is dropped.
        preparation: u32,
        /// The image's digest.
        image_id: String,
        /// The event's message.
        message: String,
    },
    /// The pull failed.
    PullFailed {
        /// The number of the pull.
        preparation: u32,
        /// The image's owner.
        of: ImageOwner,
        /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`.
        reason: &'static str,
        /// The cause.
        message: String,
    },
    /// The container was created and started.
    Started {
        /// The container's id.
        container_id: String,
    },
    /// The container can't be created.
    StartFailed {
        /// The number of the start.
        preparation: u32,
        /// `CreateContainerConfigError`, `CreateContainerError`, `RunContainerError`.
        reason: &'static str,
        /// The cause.
        message: String,
    },
    /// A referenced ConfigMap or Secret has changed.
    SourcesChanged,
    /// The `preStop` hook failed.
    HookFailed,
    /// A stopping server accepts no more requests.
    StoppedListening,
    /// The spec names another image.
    ImageChanged,
    /// CPU or memory changed, and the resize policy requires a restart.
    Resized,
    /// The result of a trial instantiation.
    InstantiationTried {
        /// The number of the start.
        attempt: u32,
        /// The error, if no instance can be created.
        broken: Option<String>,
    },
    /// A probe has a result.
    Probed {
        /// The number of the start.
        attempt: u32,
        /// The probe's kind.
        kind: ProbeKind,
        /// The probe's result.
        result: ProbeResult,
    },
    /// The `postStart` hook has ended.
    HookEnded {
        /// The number of the start.
        attempt: u32,
        /// The error, if it failed.
        failure: Option<String>,
    },
    /// A hook by HTTPS fell back to HTTP.
    HookFellBack {
        /// The host that was called.
        host: String,
    },
    /// The container has exited.
    Exited {
        /// The number of the start.
        attempt: u32,
        /// Exit code.
        code: i32,
        /// Reason.
        reason: String,
        /// Message.
        message: Option<String>,
    },
}

/// An action for the worker.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Record an event.
    EventRecord {
        /// Warning.
        warning: bool,
        /// Reason.
        reason: &'static str,
        /// Message.
        message: String,
        /// The container that it concerns, or `None` for the pod.
        container: Option<usize>,
    },
    /// Allocate an address and fill the volumes.
    Mount,
    /// Pull a container's images.
    Pull(usize),
    /// Create and start a container.
    Start {
        /// The container's index.
        container: usize,
        /// The number of the start, from 0.
        attempt: u32,
    },
    /// Start a probe of a container.
    Probe(usize, ProbeKind),
    /// Run a container's `postStart` hook.
    Hook(usize),
    /// Stop a container gracefully; a repetition only changes the grace period.
    Stop {
        /// The container's index.
        container: usize,
        /// The grace period.
        grace: Duration,
    },
    /// End a container's run or preparation at once.
    Kill(usize),
    /// Remove the volumes and free the address.
    Clean,
    /// Delete the pod from the API.
    Delete,
}
