//! The events and actions of a scheduling cycle, and the data that they carry. An action that starts an operation is
//! the last one of its step; the operation's result is the cycle's next event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::decide::{Decision, Nomination};
use crate::extender::Verdicts;
use crate::metrics::Outcome;
use crate::plugins::PreBindPatch;
use crate::plugins::default_preemption::Candidate;
use crate::pod::PodInfo;
use crate::wasm::{Failed, NodeRejection};

/// A change that a cycle waits for.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A write permit is free.
    WritePermit,
    /// A call permit of the profile is free.
    CallPermit,
    /// The result of [`Action::CallExtenders`].
    NodesFiltered(Result<NodeVerdicts, String>),
    /// The result of [`Action::Decide`].
    Decided { decision: Decision, took: Duration },
    /// The result of [`Action::Assume`]: the `PreBind` patches, each with its plugin's name.
    Reserved(Vec<(&'static str, PreBindPatch)>),
    /// The result of [`Action::Bind`].
    Bound,
    /// A reservation failed, the pod was not bound, or the decision or an operation panicked.
    Failed(String),
    /// The result of [`Action::SelectVictims`].
    VictimsSelected(Result<AcceptedCandidates, String>),
    /// The result of [`Action::Preempt`]; the first error, if a victim was not deleted.
    Preempted(Result<(), String>),
    /// The result of [`Action::Report`].
    Reported,
}

/// What the scheduler does for a cycle.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Counts an attempt.
    ObserveAttempt { outcome: Outcome, took: Duration },
    /// Records the time from the pod's first queueing to its binding.
    ObserveBound,
    /// Counts a preemption with the number of its victims, terminating ones included.
    ObservePreemption { victims: usize },
    /// Logs the failures of ignored plugins, and records events for them.
    RecordPluginFailures(Vec<Failed>),
    /// Clears the pod's nomination in the snapshot.
    ClearNomination,
    /// Nominates the pod for a node in the snapshot. The displaced pods lose their nomination and are retried.
    Nominate { node: String, displaced: Vec<Arc<PodInfo>> },
    /// Undoes the reservations on a node, and removes the assumed pod from the snapshot.
    Forget { node: Arc<str> },
    /// Requeues the pod until an event helps one of the plugins that rejected it; none: after an error, with back-off.
    Requeue(Option<BTreeSet<&'static str>>),
    /// Retries the requeued pod without an event.
    Activate,
    /// Queues the cycle until a call permit is free.
    WaitForCallPermit,
    /// Queues the cycle until a write permit is free.
    WaitForWritePermit,
    /// Calls extenders and WebAssembly plugins for the feasible nodes.
    CallExtenders { start: usize },
    /// Decides, with the verdicts of extenders and WebAssembly plugins if they were called.
    Decide { start: usize, verdicts: Option<Verdicts> },
    /// Adds the pod to a node in the snapshot, clears its nomination, and runs the `Reserve` plugins.
    Assume { node: Arc<str>, next_start: usize },
    /// Writes the `PreBind` patches and the binding.
    Bind { node: Arc<str>, patches: Vec<(&'static str, PreBindPatch)> },
    /// Calls extenders and WebAssembly plugins for the candidates of a preemption.
    SelectVictims { candidates: Vec<Candidate> },
    /// Writes the event and the status of a pod that was not scheduled.
    Report(SchedulingFailure),
    /// Writes the event and the status, clears the nominations of displaced pods in the API, and deletes the victims.
    Preempt(Preemption),
}

/// The writes of a preemption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preemption {
    /// The nominated node.
    pub node: String,
    /// The victims that are not terminating yet.
    pub victims: Vec<Arc<PodInfo>>,
    /// The pods that lose their nomination for the node.
    pub displaced: Vec<Arc<PodInfo>>,
    pub failure: SchedulingFailure,
}

/// The event and condition of a pod that was not scheduled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulingFailure {
    /// The condition's reason.
    pub reason: &'static str,
    pub message: String,
    pub nomination: Nomination,
}

/// The decision for an unschedulable pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unschedulable {
    pub message: String,
    /// The plugins that rejected nodes.
    pub refused_by: BTreeSet<&'static str>,
    pub nomination: Nomination,
    pub victims: Vec<Arc<PodInfo>>,
}

/// The results of extenders and WebAssembly plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtenderReply {
    /// For the feasible nodes.
    Nodes {
        /// The first node of the decision in the snapshot's order.
        start: usize,
        result: Result<NodeVerdicts, String>,
    },
    /// For the candidates of a preemption.
    Victims { unschedulable: Unschedulable, result: Result<AcceptedCandidates, String> },
}

/// The verdicts on the feasible nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeVerdicts {
    pub verdicts: Verdicts,
    /// The ignored plugins that failed.
    pub failed: Vec<Failed>,
}

/// The candidates of a preemption that extenders and WebAssembly plugins accept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AcceptedCandidates {
    pub candidates: Vec<Candidate>,
    /// Nodes that plugins reject whatever the victims.
    pub refused: BTreeMap<String, NodeRejection>,
    /// The ignored plugins that failed.
    pub failed: Vec<Failed>,
}
