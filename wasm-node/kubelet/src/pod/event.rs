//! What decides about a pod, what can happen to it, and what is to be done then: the words of [`super::state`]. Pure.

use std::sync::Arc;
use std::time::Duration;

pub use crate::spec::containers::Class;

/// `restartPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Restart {
    /// Whatever it ended with.
    Always,
    /// Where it failed.
    OnFailure,
    /// Never.
    Never,
}

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Holds the others back until it succeeds.
    Startup,
    /// Decides whether the pod is Ready.
    Readiness,
    /// Decides whether the container goes on.
    Liveness,
}

impl ProbeKind {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// How many results in a row decide.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Thresholds {
    /// `successThreshold`.
    pub success: u32,
    /// `failureThreshold`.
    pub failure: u32,
    /// The probe's own grace period.
    pub grace: Option<Duration>,
}

/// What happens to a container that has ended, where `exit_codes` say so (`restartPolicyRules`, KEP-5307).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RestartRule {
    /// The codes that it is about.
    pub exit_codes: Vec<i32>,
    /// It is about all others (`NotIn`).
    pub others: bool,
    /// All containers of the pod are started anew, and not only this one (`RestartAllContainers`, KEP-5532).
    pub all: bool,
}

impl RestartRule {
    fn is_about(&self, code: i32) -> bool {
        self.exit_codes.contains(&code) != self.others
    }
}

/// What a container's `postStart` hook is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PostStart {
    /// It waits, whatever becomes of the container meanwhile.
    Sleep,
    /// It calls the container, and fails where that has ended.
    Call,
}

/// What a probe has found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeResult {
    /// All is well.
    Passed,
    /// It is, and there is something to say.
    Warned(String),
    /// It isn't: what is wrong.
    Failed(String),
    /// The probe could not be made, for no reason of the container's: it counts neither way.
    Errored(String),
}

/// What of a container's spec decides about its life.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerPolicy {
    /// Its name.
    pub name: String,
    /// What it is to the pod.
    pub class: Class,
    /// Whether it is started again: its own policy, else the pod's.
    pub restart: Restart,
    /// What comes before that.
    pub restart_rules: Vec<RestartRule>,
    /// The image, as the spec has it.
    pub image: String,
    /// The probes that there are.
    pub startup: Option<Thresholds>,
    /// See above.
    pub readiness: Option<Thresholds>,
    /// See above.
    pub liveness: Option<Thresholds>,
    /// What must have ended before it counts as running.
    pub post_start: Option<PostStart>,
}

/// What of a pod's spec decides about its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LifecyclePolicy {
    /// Its containers, in the order of [`crate::spec::containers`]: an index into them is how events and actions name one.
    /// Pods of one template share them.
    pub containers: Arc<Vec<ContainerPolicy>>,
    /// `name_namespace(uid)`, as upstream's messages call a pod.
    pub pod: String,
    /// `restartPolicy`.
    pub restart: Restart,
    /// `activeDeadlineSeconds`.
    pub deadline: Option<Duration>,
    /// `terminationGracePeriodSeconds`.
    pub grace: Duration,
}

impl LifecyclePolicy {
    #[cfg(test)]
    pub(super) fn containers_mut(&mut self) -> &mut Vec<ContainerPolicy> {
        Arc::make_mut(&mut self.containers)
    }
}

impl ContainerPolicy {
    /// Whether it is started again after an end with `code`.
    pub(super) fn restarts(&self, code: i32) -> bool {
        let by_rule = self.restart_rules.iter().any(|rule| rule.is_about(code));
        by_rule
            || match self.restart {
                Restart::Always => true,
                Restart::OnFailure => code != 0,
                Restart::Never => false,
            }
    }

    /// Whether an end with `code` starts the whole pod anew: the first rule that is about it says so.
    pub(super) fn restarts_all(&self, code: i32) -> bool {
        let rule = self.restart_rules.iter().find(|rule| rule.is_about(code));
        self.class != Class::Ephemeral && rule.is_some_and(|rule| rule.all)
    }

    pub(super) fn thresholds(&self, kind: ProbeKind) -> Option<&Thresholds> {
        match kind {
            ProbeKind::Startup => self.startup.as_ref(),
            ProbeKind::Readiness => self.readiness.as_ref(),
            ProbeKind::Liveness => self.liveness.as_ref(),
        }
    }
}

/// What happened to a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It was to be looked at about now.
    Tick,
    /// The API wants it gone within this grace.
    Deleted(Duration),
    /// The object is gone: nothing is to be waited for.
    Removed,
    /// The volumes are filled.
    Mounted,
    /// A volume can't be filled yet; it goes on being tried.
    MountFailed(String),
    /// Its node shuts down, and gives it so long.
    ShutDown(Duration),
    /// The pod uses more than it may.
    Evicted(String),
    /// Everything is removed.
    Cleaned,
    /// Something happened to the container of that index.
    Container(usize, CellEvent),
}

/// An image that a container needs.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageOf {
    /// Its own.
    Container,
    /// A volume's that it mounts, by its reference.
    Volume(String),
}

/// What happened to a container.
#[derive(Debug, Clone, PartialEq)]
pub enum CellEvent {
    /// A pull begins.
    PullBegan {
        /// Of what.
        of: ImageOf,
    },
    /// The image of a volume that it mounts is there.
    VolumePulled {
        /// What to say.
        message: String,
    },
    /// The image is there.
    Pulled {
        /// The number of the pull. A result with an older number is dropped.
        preparation: u32,
        /// Its digest.
        image_id: String,
        /// What to say.
        message: String,
    },
    /// It isn't.
    PullFailed {
        /// The number of the pull.
        preparation: u32,
        /// Of what.
        of: ImageOf,
        /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`.
        reason: &'static str,
        /// Why.
        message: String,
    },
    /// The container was made and runs.
    Started {
        /// Its id.
        container_id: String,
    },
    /// It can't be made.
    StartFailed {
        /// The number of the start.
        preparation: u32,
        /// `CreateContainerConfigError`, `CreateContainerError`, `RunContainerError`.
        reason: &'static str,
        /// Why.
        message: String,
    },
    /// An object that the pod names has changed.
    SourcesChanged,
    /// What was to be done before stopping failed.
    HookFailed,
    /// A server that is being stopped takes no more requests.
    Closed,
    /// The pod names another image.
    ImageChanged,
    /// It has other amounts of CPU or memory, which it is to be started anew for.
    Resized,
    /// Whether instances can be made.
    Tried {
        /// Of which start.
        attempt: u32,
        /// An error where they can't.
        broken: Option<String>,
    },
    /// A probe has a result.
    Probed {
        /// Of which start.
        attempt: u32,
        /// Which.
        kind: ProbeKind,
        /// What it says.
        result: ProbeResult,
    },
    /// The hook after the container's start has ended.
    Hooked {
        /// Of which start.
        attempt: u32,
        /// What is wrong where it failed.
        failure: Option<String>,
    },
    /// A hook that asked by HTTPS was answered by HTTP, which is what it made do with.
    HookFellBack {
        /// Whom it asked.
        host: String,
    },
    /// The container has ended.
    Exited {
        /// Of which start.
        attempt: u32,
        /// Exit code.
        code: i32,
        /// Reason.
        reason: String,
        /// Message.
        message: Option<String>,
    },
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write an event.
    EventRecord {
        /// Warning.
        warning: bool,
        /// Reason.
        reason: &'static str,
        /// Message.
        message: String,
        /// About that container, or about the whole pod.
        container: Option<usize>,
    },
    /// Take an address and fill the volumes.
    Mount,
    /// Have a container's image.
    Pull(usize),
    /// Make and start a container.
    Start {
        /// Which.
        container: usize,
        /// The how many-th start of it, from 0.
        attempt: u32,
    },
    /// Begin to probe a container.
    Probe(usize, ProbeKind),
    /// Call the hook after a container's start.
    Hook(usize),
    /// Stop a container in order, within the grace period; said again, only the period changes.
    Stop {
        /// Which.
        container: usize,
        /// How long it may take.
        grace: Duration,
    },
    /// Stop whatever of a container runs or is being prepared, now.
    Kill(usize),
    /// Remove volumes, give the address back.
    Clean,
    /// Tell the API that nothing is left.
    Delete,
}
