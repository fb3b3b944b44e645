//! A pod's scheduling cycle as data. Pure. [`SchedulingCycle::step`] takes the event that ended a stage and the state of
//! the scheduler, and returns the next stage with the actions; `run` performs them, and sends their results as events.
//!
//! Invariant: a cycle ends only after the pod is bound or requeued, or if the pod has left the queue.

mod actions;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub use self::actions::{
    AcceptedCandidates, Action, Event, ExtenderReply, NodeVerdicts, Preemption, SchedulingFailure, Unschedulable,
};
use crate::decide::{Decision, Nomination};
use crate::diagnosis::not_available;
use crate::extender::{ExtenderConfig, Verdicts};
use crate::metrics::Outcome;
use crate::plugins::Profile;
use crate::plugins::default_preemption::{Candidate, NO_CANDIDATE, choose};
use crate::pod::PodInfo;
use crate::queue::{Queue, QueuedPodInfo};
use crate::snapshot::Snapshot;
use crate::wasm::{Failed, NodeRejection};

/// Upstream's reason for nodes where preemption doesn't help.
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";

/// The message of an event that its stage doesn't allow. The pod is retried.
const UNEXPECTED_EVENT: &str = "the scheduling cycle received an event that its stage does not allow";

/// The stage of a cycle. Each stage but the last has one operation in flight, whose result is the next event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Popped from the queue.
    Popped,
    /// Waits for a call permit of the profile.
    WaitingForCallPermit,
    /// Extenders and WebAssembly plugins filter and score the feasible nodes.
    WaitingForExtenders {
        /// The first node of the decision in the snapshot's order.
        start: usize,
    },
    /// Has the results of extenders and WebAssembly plugins, and waits for a write permit.
    WaitingForWritePermit(Box<ExtenderReply>),
    /// A node is being chosen.
    Deciding {
        /// The first node of the decision in the snapshot's order.
        start: usize,
    },
    /// The pod is assumed, and the `Reserve` plugins run.
    Reserving {
        /// The chosen node.
        node: Arc<str>,
    },
    /// The `PreBind` patches and the binding are being written.
    Binding,
    /// Extenders and WebAssembly plugins filter the candidates of a preemption.
    SelectingVictims(Box<Unschedulable>),
    /// The nomination is being written, and the victims are being deleted.
    Preempting {
        /// The plugins that rejected nodes.
        refused_by: BTreeSet<&'static str>,
        /// [`CycleContext::departures`] at the start of the preemption.
        departures: u64,
    },
    /// The pod is requeued, and its event and status are being written.
    Reporting,
    /// Nothing is in flight.
    Ended,
}

/// One attempt to schedule a pod.
#[derive(Debug)]
pub struct SchedulingCycle {
    /// The pod as of the start of the attempt.
    pub queued: QueuedPodInfo,
    /// The index of the pod's profile.
    pub profile: usize,
    pub stage: Stage,
}

/// The state of the scheduler that a step reads.
#[derive(Clone, Copy)]
pub struct CycleContext<'a> {
    pub profiles: &'a [Profile],
    pub extenders: &'a [ExtenderConfig],
    pub snapshot: &'a Snapshot,
    pub queue: &'a Queue,
    /// The first node of the next decision in the snapshot's order.
    pub next_start: usize,
    /// The number of events that freed resources in the cluster.
    pub departures: u64,
}

impl SchedulingCycle {
    /// The cycle of a popped pod. Its first event is [`Event::WritePermit`].
    #[must_use]
    pub fn new(queued: QueuedPodInfo, profile: usize) -> Self {
        Self { queued, profile, stage: Stage::Popped }
    }

    /// Applies an event, and appends the actions in their order to `actions`. The caller reuses that buffer, so that a
    /// step allocates nothing for it.
    #[must_use]
    pub fn step(self, event: Event, cx: CycleContext<'_>, actions: &mut Vec<Action>) -> Self {
        let Self { queued, profile, stage } = self;
        let mut transition = Transition { queued: &queued, profile, cx, actions };
        let stage = transition.apply(stage, event);
        Self { queued, profile, stage }
    }
}

/// One step of a cycle.
struct Transition<'a> {
    queued: &'a QueuedPodInfo,
    profile: usize,
    cx: CycleContext<'a>,
    actions: &'a mut Vec<Action>,
}

impl Transition<'_> {
    /// The table of stages and events.
    fn apply(&mut self, stage: Stage, event: Event) -> Stage {
        match (stage, event) {
            (Stage::Popped, Event::WritePermit) if self.calls_extenders() => {
                self.actions.push(Action::WaitForCallPermit);
                Stage::WaitingForCallPermit
            }
            (Stage::Popped, Event::WritePermit) => self.decide(self.cx.next_start, None),
            (Stage::WaitingForCallPermit, Event::CallPermit) => {
                let start = self.cx.next_start;
                self.actions.push(Action::CallExtenders { start });
                Stage::WaitingForExtenders { start }
            }
            (Stage::WaitingForExtenders { start }, Event::NodesFiltered(result)) => {
                self.wait_for_write_permit(ExtenderReply::Nodes { start, result })
            }
            (Stage::SelectingVictims(unschedulable), Event::VictimsSelected(result)) => {
                self.wait_for_write_permit(ExtenderReply::Victims { unschedulable: *unschedulable, result })
            }
            (Stage::WaitingForWritePermit(reply), Event::WritePermit) => match *reply {
                ExtenderReply::Nodes { start, result } => self.decide_again(start, result),
                ExtenderReply::Victims { unschedulable, result } => self.choose_candidate(unschedulable, result),
            },
            (Stage::Deciding { start }, Event::Decided { decision, took }) => self.decided(start, decision, took),
            (Stage::Reserving { node }, Event::Reserved(patches)) => {
                self.actions.push(Action::Bind { node, patches });
                Stage::Binding
            }
            (Stage::Binding, Event::Bound) => {
                self.actions.push(Action::ObserveBound);
                Stage::Ended
            }
            (Stage::Preempting { refused_by, departures }, Event::Preempted(result)) => {
                self.finish_preemption(refused_by, departures, result)
            }
            (Stage::Reporting | Stage::Ended, _) => Stage::Ended,
            (_, Event::Failed(why)) => self.fail(why),
            (_, _) => self.fail(UNEXPECTED_EVENT.to_owned()),
        }
    }

    /// Whether extenders or WebAssembly plugins filter or score nodes for the pod.
    fn calls_extenders(&self) -> bool {
        !self.cx.profiles[self.profile].wasm.is_empty()
            || self.cx.extenders.iter().any(|extender| extender.scores_or_filters(&self.queued.pod))
    }

    /// Whether extenders or WebAssembly plugins take part in the preemption for the pod.
    fn calls_extenders_for_preemption(&self) -> bool {
        self.cx.profiles[self.profile].wasm.iter().any(|plugin| plugin.filters)
            || self.cx.extenders.iter().any(|extender| extender.supports_preemption(&self.queued.pod))
    }

    /// Whether the pod is unchanged since the start of the attempt; none: it is deleted, or bound by others.
    fn is_unchanged(&self) -> Option<bool> {
        let pod = &self.queued.pod;
        let current = self.cx.queue.get(&pod.key).filter(|current| current.pod.uid == pod.uid);
        current.map(|current| current.pod.is_equivalent(pod))
    }

    fn decide(&mut self, start: usize, verdicts: Option<Verdicts>) -> Stage {
        self.actions.push(Action::Decide { start, verdicts });
        Stage::Deciding { start }
    }

    fn wait_for_write_permit(&mut self, reply: ExtenderReply) -> Stage {
        self.actions.push(Action::WaitForWritePermit);
        Stage::WaitingForWritePermit(Box::new(reply))
    }

    /// Decides with the results of extenders and WebAssembly plugins, unless the pod has changed.
    fn decide_again(&mut self, start: usize, result: Result<NodeVerdicts, String>) -> Stage {
        match (self.is_unchanged(), result) {
            (None, _) => Stage::Ended,
            (Some(true), Ok(NodeVerdicts { verdicts, failed })) => {
                self.record_plugin_failures(failed);
                self.decide(start, Some(verdicts))
            }
            (Some(false), Ok(_)) => self.requeue_with_back_off(),
            (Some(_), Err(message)) => {
                self.observe_attempt(Outcome::Error, Duration::ZERO);
                self.actions.push(Action::Requeue(None));
                self.report("SchedulerError", message, Nomination::Clear)
            }
        }
    }

    fn decided(&mut self, start: usize, decision: Decision, took: Duration) -> Stage {
        match decision {
            Decision::Node { name, tried } => {
                self.observe_attempt(Outcome::Scheduled, took);
                let node: Arc<str> = name.into();
                let next_start = (start + tried).checked_rem(self.cx.snapshot.node_count()).unwrap_or(0);
                self.actions.push(Action::Assume { node: node.clone(), next_start });
                Stage::Reserving { node }
            }
            Decision::Unschedulable { message, refused_by, nomination, victims, candidates } => {
                self.observe_attempt(Outcome::Unschedulable, took);
                let unschedulable = Unschedulable { message, refused_by, nomination, victims };
                if !candidates.is_empty() && self.calls_extenders_for_preemption() {
                    self.actions.push(Action::SelectVictims { candidates });
                    return Stage::SelectingVictims(Box::new(unschedulable));
                }
                self.mark_unschedulable(unschedulable)
            }
        }
    }

    /// Chooses one of the candidates that extenders and WebAssembly plugins accept, unless the pod has changed.
    fn choose_candidate(
        &mut self,
        mut unschedulable: Unschedulable,
        result: Result<AcceptedCandidates, String>,
    ) -> Stage {
        match self.is_unchanged() {
            None => return Stage::Ended,
            Some(true) => {}
            Some(false) => return self.requeue_with_back_off(),
        }
        let (nomination, why) = match result {
            Err(why) => (Nomination::Keep, Some(format!("preemption: {why}"))),
            Ok(AcceptedCandidates { candidates, refused, failed }) => {
                self.record_plugin_failures(failed);
                let exists = |chosen: &&Candidate| self.cx.snapshot.node(&chosen.node).is_some();
                match choose(&candidates).filter(exists) {
                    Some(chosen) => {
                        unschedulable.victims.clone_from(&chosen.victims);
                        (Nomination::Node(chosen.node.clone()), None)
                    }
                    None if refused.is_empty() => (Nomination::Keep, Some(NO_CANDIDATE.to_owned())),
                    None => {
                        let why = rejections_message(&refused, self.cx.snapshot.node_count());
                        (Nomination::Clear, Some(format!("preemption: {why}")))
                    }
                }
            }
        };
        if let Some(why) = why {
            unschedulable.message = format!("{} {why}", unschedulable.message);
            unschedulable.victims.clear();
        }
        unschedulable.nomination = nomination;
        self.mark_unschedulable(unschedulable)
    }

    /// Requeues the pod until an event helps it, or starts its preemption.
    fn mark_unschedulable(&mut self, unschedulable: Unschedulable) -> Stage {
        let Unschedulable { message, refused_by, nomination, mut victims } = unschedulable;
        let selected = victims.len();
        let node = match &nomination {
            Nomination::Keep => None,
            Nomination::Clear => {
                self.actions.push(Action::ClearNomination);
                None
            }
            Nomination::Node(node) => Some(node.clone()),
        };
        let Some(node) = node else {
            self.actions.push(Action::Requeue(Some(refused_by)));
            return self.report("Unschedulable", message, nomination);
        };
        let displaced = self.displaced_by(&node);
        self.actions.push(Action::Nominate { node: node.clone(), displaced: displaced.clone() });
        victims.retain(|victim| !victim.terminating);
        if victims.is_empty() {
            self.actions.push(Action::Requeue(Some(refused_by)));
            return self.report("Unschedulable", message, nomination);
        }
        self.actions.push(Action::ObservePreemption { victims: selected });
        let failure = SchedulingFailure { reason: "Unschedulable", message, nomination };
        self.actions.push(Action::Preempt(Preemption { node, victims, displaced, failure }));
        // The pod isn't retried before all victims are deleted: it would select more victims.
        Stage::Preempting { refused_by, departures: self.cx.departures }
    }

    /// The pods that lose their nomination for a node to this pod.
    fn displaced_by(&self, node: &str) -> Vec<Arc<PodInfo>> {
        let nominated = self.cx.snapshot.nominated.on(node);
        nominated.filter(|other| other.priority < self.queued.pod.priority).cloned().collect()
    }

    /// The victims were deleted: the pod waits for their resources.
    fn finish_preemption(
        &mut self,
        refused_by: BTreeSet<&'static str>,
        departures: u64,
        result: Result<(), String>,
    ) -> Stage {
        if result.is_err() {
            return self.requeue_with_back_off();
        }
        self.actions.push(Action::Requeue(Some(refused_by)));
        // Events during the preemption did not find the pod among the unschedulable ones.
        if departures != self.cx.departures {
            self.actions.push(Action::Activate);
        }
        Stage::Ended
    }

    /// The attempt failed: undoes reservations, removes the assumed pod, and requeues it.
    fn fail(&mut self, why: String) -> Stage {
        self.observe_attempt(Outcome::Error, Duration::ZERO);
        let pod = &self.queued.pod;
        let placed = self.cx.snapshot.placed(&pod.key);
        let assumed = placed.filter(|(placed, assumed)| *assumed && placed.uid == pod.uid);
        if let Some(node) = assumed.and_then(|(placed, _)| placed.node.clone()) {
            self.actions.push(Action::Forget { node });
        }
        self.actions.push(Action::Requeue(None));
        if self.cx.queue.get(&pod.key).is_none() {
            return Stage::Ended;
        }
        self.report("SchedulerError", why, Nomination::Clear)
    }

    fn requeue_with_back_off(&mut self) -> Stage {
        self.actions.push(Action::Requeue(None));
        Stage::Ended
    }

    fn report(&mut self, reason: &'static str, message: String, nomination: Nomination) -> Stage {
        self.actions.push(Action::Report(SchedulingFailure { reason, message, nomination }));
        Stage::Reporting
    }

    fn observe_attempt(&mut self, outcome: Outcome, took: Duration) {
        self.actions.push(Action::ObserveAttempt { outcome, took });
    }

    fn record_plugin_failures(&mut self, failed: Vec<Failed>) {
        if !failed.is_empty() {
            self.actions.push(Action::RecordPluginFailures(failed));
        }
    }
}

/// Upstream's message about nodes that plugins reject whatever the victims.
fn rejections_message(refused: &BTreeMap<String, NodeRejection>, nodes: usize) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for refused in refused.values() {
        *counts.entry(&refused.reason).or_default() += 1;
    }
    let others = nodes.saturating_sub(refused.len());
    if others > 0 {
        *counts.entry(NOT_HELPFUL).or_default() += others;
    }
    not_available(nodes, counts.into_iter().map(|(reason, count)| (count, reason)).collect())
}
