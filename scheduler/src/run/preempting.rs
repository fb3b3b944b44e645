//! Unschedulable pods: preemption, as far as extenders and WebAssembly plugins accept it, and the writes that follow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use machinery_client::{EventRecord, Informer, Pod};
use tokio::sync::OwnedSemaphorePermit;

use super::extenders::{ExtenderReply, fetch_pod, node_object};
use super::settle::{NodeTrial, SettledVictims, select_victims};
use super::{Nomination, Scheduler, SchedulingEvent, TaskResult, profile_of};
use crate::bind::report;
use crate::diagnosis::not_available;
use crate::extender::Victims;
use crate::extender::client::process_preemption;
use crate::plugins::default_preemption::{Candidate, NO_CANDIDATE, choose};
use crate::pod::PodInfo;
use crate::preempt::{self, Cleared, Victim};
use crate::queue::QueuedPodInfo;
use crate::wasm::{self, Failed, NodeRejection};

/// Upstream's reason for nodes where preemption doesn't help.
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";

/// An unschedulable pod, with the result of its decision.
pub(super) struct UnschedulablePod {
    pub(super) waiting: QueuedPodInfo,
    pub(super) message: String,
    pub(super) refused_by: BTreeSet<&'static str>,
    pub(super) nomination: Nomination,
    pub(super) victims: Vec<Arc<PodInfo>>,
}

/// The result of the requests about a preemption.
pub(super) struct PreemptionReply {
    unschedulable: UnschedulablePod,
    answer: Result<AcceptedCandidates, String>,
}

/// The accepted candidates.
struct AcceptedCandidates {
    candidates: Vec<Candidate>,
    /// Nodes that plugins reject whatever the victims.
    refused: BTreeMap<String, NodeRejection>,
    failed: Vec<Failed>,
}

/// A pod with a preemption in flight.
pub(super) struct PendingPreemption {
    waiting: QueuedPodInfo,
    refused_by: BTreeSet<&'static str>,
    /// The number of events that had freed resources in the whole cluster.
    departures: u64,
}

/// The writes of a nomination.
#[derive(Default)]
struct NominationWrites {
    victims: Vec<Victim>,
    node: String,
    cleared: Vec<Cleared>,
}

impl Scheduler {
    /// Passes the candidates of a preemption to plugins and extenders.
    pub(super) fn send_preemption_requests(
        &mut self,
        profile: usize,
        unschedulable: UnschedulablePod,
        candidates: Vec<Candidate>,
    ) {
        let (guests, extenders) = (self.extender_queue.guests(profile), self.extender_queue.extenders.clone());
        let nodes = self.snapshot.node_count();
        let trials = candidates.into_iter().filter_map(|candidate| {
            let (node, load) =
                (node_object(&self.informer, &candidate.node)?, self.snapshot.node(&candidate.node)?.plugin_load());
            Some(NodeTrial::new(candidate, wasm::Candidate { node, load }))
        });
        let trials: Vec<NodeTrial> = trials.collect();
        let of = |name: &str| -> Option<Vec<Arc<PodInfo>>> {
            Some(self.snapshot.node(name)?.pods.values().cloned().collect())
        };
        let pods: BTreeMap<String, Vec<Arc<PodInfo>>> =
            trials.iter().filter_map(|trial| Some((trial.node().to_owned(), of(trial.node())?))).collect();
        let (client, done, informer) = (self.client.clone(), self.done.clone(), self.informer.clone());
        self.tasks.spawn(async move {
            let answer = async {
                let pod = &unschedulable.waiting.pod;
                let whole = fetch_pod(&client, pod).await?;
                let SettledVictims { candidates, refused, failed } =
                    select_victims(&guests, whole.to_string(), nodes, trials).await?;
                let victims = candidates.into_iter().map(|candidate| {
                    let violations = i64::try_from(candidate.violations).unwrap_or(i64::MAX);
                    (candidate.node, Victims { pods: candidate.victims, violations })
                });
                let read_pod = |pod: &PodInfo| victim_object(&informer, pod);
                let left = process_preemption(&extenders, (pod, &whole), victims.collect(), &pods, &read_pod).await?;
                let candidates = left.into_iter().map(|(node, Victims { pods, violations })| Candidate {
                    node,
                    victims: pods,
                    violations: usize::try_from(violations).unwrap_or(0),
                    spare: Vec::new(),
                });
                Ok(AcceptedCandidates { candidates: candidates.collect(), refused, failed })
            };
            let answer = answer.await;
            let _ = done
                .send(TaskResult::Reply(Box::new(ExtenderReply::Preemption(PreemptionReply { unschedulable, answer }))))
                .await;
        });
    }

    /// Chooses one of the accepted candidates.
    pub(super) fn choose_candidate(&mut self, reply: PreemptionReply, permit: OwnedSemaphorePermit) {
        let PreemptionReply { mut unschedulable, answer } = reply;
        match self.is_unchanged(&unschedulable.waiting) {
            None => return,
            Some(true) => {}
            Some(false) => return self.queue.failed(&unschedulable.waiting, None, self.env.elapsed()),
        }
        let all = self.snapshot.node_count();
        let (nomination, why) = match &answer {
            Err(why) => (Nomination::Keep, Some(format!("preemption: {why}"))),
            Ok(left) => {
                self.record_plugin_failures(&unschedulable.waiting.pod, &left.failed);
                match choose(&left.candidates).filter(|chosen| self.snapshot.node(&chosen.node).is_some()) {
                    Some(chosen) => {
                        unschedulable.victims.clone_from(&chosen.victims);
                        (Nomination::Node(chosen.node.clone()), None)
                    }
                    None if left.refused.is_empty() => (Nomination::Keep, Some(NO_CANDIDATE.to_owned())),
                    None => {
                        (Nomination::Clear, Some(format!("preemption: {}", rejections_message(&left.refused, all))))
                    }
                }
            }
        };
        if let Some(why) = why {
            unschedulable.message = format!("{} {why}", unschedulable.message);
            unschedulable.victims.clear();
        }
        unschedulable.nomination = nomination;
        self.mark_unschedulable(unschedulable, permit);
    }

    /// Requeues the pod until an event helps it, or starts its preemption.
    pub(super) fn mark_unschedulable(&mut self, unschedulable: UnschedulablePod, permit: OwnedSemaphorePermit) {
        let UnschedulablePod { waiting, message, refused_by, nomination, victims } = unschedulable;
        let going = self.nominate(&waiting, &nomination, &victims);
        let event = SchedulingEvent { reason: "Unschedulable", message, nomination };
        if going.victims.is_empty() {
            self.queue.failed(&waiting, Some(refused_by), self.env.elapsed());
            self.report_failure(&waiting, event, Some(permit));
        } else {
            self.config.metrics.preempted(victims.len());
            // The pod isn't retried before all victims are deleted: it would select more victims.
            let preempted = PendingPreemption { waiting, refused_by, departures: self.departures };
            self.preempt(Box::new(preempted), event, going, permit);
        }
    }

    /// Applies the nomination, and returns the victims and the pods that lose their nomination for the node.
    fn nominate(
        &mut self,
        waiting: &QueuedPodInfo,
        nomination: &Nomination,
        victims: &[Arc<PodInfo>],
    ) -> NominationWrites {
        let pod = &waiting.pod;
        let node = match nomination {
            Nomination::Keep => return NominationWrites::default(),
            Nomination::Clear => {
                self.snapshot.nominated.clear(&pod.key);
                return NominationWrites::default();
            }
            Nomination::Node(node) => node.clone(),
        };
        let nominated = &mut self.snapshot.nominated;
        let lower = nominated.on(&node).filter(|other| other.priority < pod.priority).cloned().collect::<Vec<_>>();
        let mut cleared = Vec::new();
        for other in lower {
            nominated.clear(&other.key);
            self.queue.activate(&other.key, self.env.elapsed());
            cleared.push(Cleared { key: other.key.clone(), uid: other.uid.clone() });
        }
        self.snapshot.nominated.set(pod.clone(), &node);
        let going = victims.iter().filter(|victim| !victim.terminating);
        let victims = going.map(|victim| Victim {
            key: victim.key.clone(),
            uid: victim.uid.clone(),
            generation: self.read_object(&victim.key, |pod: &Pod| pod.metadata.generation).flatten(),
            about: self.reference(victim),
        });
        NominationWrites { victims: victims.collect(), node, cleared }
    }

    /// Writes the nomination, and deletes the victims.
    fn preempt(
        &mut self,
        preempted: Box<PendingPreemption>,
        event: SchedulingEvent,
        going: NominationWrites,
        permit: OwnedSemaphorePermit,
    ) {
        let pod = preempted.waiting.pod.clone();
        let Some(profile) = profile_of(&self.config.profiles, &pod) else { return };
        let (client, done, env) = (self.client.clone(), self.done.clone(), self.env.clone());
        let events = self.events[profile].clone();
        let written = self.record_failure(&pod, event);
        self.tasks.spawn(async move {
            if let Some(written) = written
                && let Err(error) = report(&client, &pod.key, &pod.uid, written).await
            {
                tracing::debug!(pod = %pod.key, %error, "a nomination was not written; the next try writes it");
            }
            let NominationWrites { victims, node, cleared } = going;
            preempt::clear(&client, cleared).await;
            let scheduler = &pod.requirements.scheduler;
            let result = preempt::delete_victims(&client, env.now(), scheduler, victims, |about| {
                let message = format!("Preempted by pod {} on node {node}", pod.uid);
                let note = EventRecord { about, warning: false, reason: "Preempted", message, source: None };
                events.record_action(note, "Preempting");
            });
            let result = result.await;
            drop(permit);
            let _ = done.send(TaskResult::Preempted(preempted, result)).await;
        });
    }

    /// The victims were deleted: the pod waits for their resources.
    pub(super) fn finish_preemption(&mut self, preempted: PendingPreemption, result: Result<(), String>) {
        let PendingPreemption { waiting, refused_by, departures } = preempted;
        let now = self.env.elapsed();
        if let Err(why) = result {
            tracing::info!(pod = %waiting.pod.key, %why, "a preemption failed");
            self.queue.failed(&waiting, None, now);
            return;
        }
        self.queue.failed(&waiting, Some(refused_by), now);
        // Events during the preemption did not find the pod in the queue.
        if departures != self.departures {
            self.queue.activate(&waiting.pod.key, now);
        }
    }
}

/// A pod as in the scheduler's view: without the fields that decisions never read.
fn victim_object(informer: &Informer, pod: &PodInfo) -> serde_json::Value {
    let object = informer.read(|view| view.get_arc::<Pod>(&pod.key));
    object.and_then(|object| serde_json::to_value(&*object).ok()).unwrap_or_default()
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
