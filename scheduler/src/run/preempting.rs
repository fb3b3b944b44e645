//! What becomes of a pod that fits nowhere: who goes for it, as far as those agree who have a say in it, and what is written of that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use machinery_client::{EventRecord, Informer, Pod};
use tokio::sync::OwnedSemaphorePermit;

use super::elsewhere::{Answered, object, whole};
use super::settle::{Settled, Trial, settle};
use super::{Done, Nomination, Scheduler, Told, profile_of};
use crate::bind::report;
use crate::diagnosis::not_available;
use crate::extender::Victims;
use crate::extender::client::process_preemption;
use crate::plugins::default_preemption::{Candidate, NO_CANDIDATE, choose};
use crate::pod::PodInfo;
use crate::preempt::{self, Cleared, Victim};
use crate::queue::QueuedPodInfo;
use crate::wasm::{self, Failed, Refused};

/// What is said of nodes on which nobody's going helps.
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";

/// A pod that fits nowhere, and what was found out about it.
pub(super) struct Nowhere {
    pub(super) waiting: QueuedPodInfo,
    pub(super) message: String,
    pub(super) refused_by: BTreeSet<&'static str>,
    pub(super) nomination: Nomination,
    pub(super) victims: Vec<Arc<PodInfo>>,
}

/// On which nodes others may go for a pod, by those who have a say in it.
pub(super) struct Agreed {
    nowhere: Nowhere,
    answer: Result<Left, String>,
}

/// What is left of the nodes.
struct Left {
    candidates: Vec<Candidate>,
    /// Nodes that plugins refuse whoever goes.
    refused: BTreeMap<String, Refused>,
    failed: Vec<Failed>,
}

/// A pod for which others go.
pub(super) struct Preempted {
    waiting: QueuedPodInfo,
    refused_by: BTreeSet<&'static str>,
    /// How much room had been made by then in the whole cluster.
    departures: u64,
}

/// What is done so that a pod may go to a node.
#[derive(Default)]
struct Going {
    victims: Vec<Victim>,
    node: String,
    cleared: Vec<Cleared>,
}

impl Scheduler {
    /// Has plugins and extenders look at the nodes on which others could go for a pod.
    pub(super) fn ask_about_victims(&mut self, profile: usize, nowhere: Nowhere, candidates: Vec<Candidate>) {
        let (guests, extenders) = (self.asking.guests(profile), self.asking.extenders.clone());
        let nodes = self.snapshot.node_count();
        let trials = candidates.into_iter().filter_map(|candidate| {
            let (node, load) = (object(&self.informer, &candidate.node)?, self.snapshot.node(&candidate.node)?.told());
            Some(Trial::new(candidate, wasm::Candidate { node, load }))
        });
        let trials: Vec<Trial> = trials.collect();
        let of = |name: &str| -> Option<Vec<Arc<PodInfo>>> {
            Some(self.snapshot.node(name)?.pods.values().cloned().collect())
        };
        let pods: BTreeMap<String, Vec<Arc<PodInfo>>> =
            trials.iter().filter_map(|trial| Some((trial.node().to_owned(), of(trial.node())?))).collect();
        let (client, done, informer) = (self.client.clone(), self.done.clone(), self.informer.clone());
        self.tasks.spawn(async move {
            let answer = async {
                let pod = &nowhere.waiting.pod;
                let whole = whole(&client, pod).await?;
                let Settled { candidates, refused, failed } = settle(&guests, whole.to_string(), nodes, trials).await?;
                let victims = candidates.into_iter().map(|candidate| {
                    let violations = i64::try_from(candidate.violations).unwrap_or(i64::MAX);
                    (candidate.node, Victims { pods: candidate.victims, violations })
                });
                let look = |pod: &PodInfo| whole_victim(&informer, pod);
                let left = process_preemption(&extenders, (pod, &whole), victims.collect(), &pods, &look).await?;
                let candidates = left.into_iter().map(|(node, Victims { pods, violations })| Candidate {
                    node,
                    victims: pods,
                    violations: usize::try_from(violations).unwrap_or(0),
                    spare: Vec::new(),
                });
                Ok(Left { candidates: candidates.collect(), refused, failed })
            };
            let answer = answer.await;
            let _ = done.send(Done::Answered(Box::new(Answered::Agreed(Agreed { nowhere, answer })))).await;
        });
    }

    /// One of the nodes that are left is chosen.
    pub(super) fn agreed(&mut self, agreed: Agreed, permit: OwnedSemaphorePermit) {
        let Agreed { mut nowhere, answer } = agreed;
        match self.is_as_it_was(&nowhere.waiting) {
            None => return,
            Some(true) => {}
            Some(false) => return self.queue.failed(&nowhere.waiting, None, self.env.elapsed()),
        }
        let all = self.snapshot.node_count();
        let (nomination, why) = match &answer {
            Err(why) => (Nomination::Keep, Some(format!("preemption: {why}"))),
            Ok(left) => {
                self.tell_of_plugins(&nowhere.waiting.pod, &left.failed);
                match choose(&left.candidates).filter(|chosen| self.snapshot.node(&chosen.node).is_some()) {
                    Some(chosen) => {
                        nowhere.victims.clone_from(&chosen.victims);
                        (Nomination::Node(chosen.node.clone()), None)
                    }
                    None if left.refused.is_empty() => (Nomination::Keep, Some(NO_CANDIDATE.to_owned())),
                    None => (Nomination::Clear, Some(format!("preemption: {}", refusals(&left.refused, all)))),
                }
            }
        };
        if let Some(why) = why {
            nowhere.message = format!("{} {why}", nowhere.message);
            nowhere.victims.clear();
        }
        nowhere.nomination = nomination;
        self.goes_nowhere(nowhere, permit);
    }

    /// It waits for what may help it: for those to go whom it needs to, or for anything else.
    pub(super) fn goes_nowhere(&mut self, nowhere: Nowhere, permit: OwnedSemaphorePermit) {
        let Nowhere { waiting, message, refused_by, nomination, victims } = nowhere;
        let going = self.nominate(&waiting, &nomination, &victims);
        let told = Told { reason: "Unschedulable", message, nomination };
        if going.victims.is_empty() {
            self.queue.failed(&waiting, Some(refused_by), self.env.elapsed());
            self.tell(&waiting, told, Some(permit));
        } else {
            self.config.metrics.preempted(victims.len());
            // Until all were told to go it isn't tried again: it would find more victims.
            let preempted = Preempted { waiting, refused_by, departures: self.departures };
            self.preempt(Box::new(preempted), told, going, permit);
        }
    }

    /// A pod waits for a node from now on (or for none): who goes there for it, and who has to look for another one.
    fn nominate(&mut self, waiting: &QueuedPodInfo, nomination: &Nomination, victims: &[Arc<PodInfo>]) -> Going {
        let pod = &waiting.pod;
        let node = match nomination {
            Nomination::Keep => return Going::default(),
            Nomination::Clear => {
                self.snapshot.nominated.clear(&pod.key);
                return Going::default();
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
            generation: self.look(&victim.key, |pod: &Pod| pod.metadata.generation).flatten(),
            about: self.reference(victim),
        });
        Going { victims: victims.collect(), node, cleared }
    }

    /// Writes the nomination, and has the victims go.
    fn preempt(&mut self, preempted: Box<Preempted>, told: Told, going: Going, permit: OwnedSemaphorePermit) {
        let pod = preempted.waiting.pod.clone();
        let Some(profile) = profile_of(&self.config.profiles, &pod) else { return };
        let (client, done, env) = (self.client.clone(), self.done.clone(), self.env.clone());
        let events = self.events[profile].clone();
        let written = self.report_of(&pod, told);
        self.tasks.spawn(async move {
            if let Some(written) = written
                && let Err(error) = report(&client, &pod.key, &pod.uid, written).await
            {
                tracing::debug!(pod = %pod.key, %error, "a nomination was not written; the next try writes it");
            }
            let Going { victims, node, cleared } = going;
            preempt::clear(&client, cleared).await;
            let scheduler = &pod.wants.scheduler;
            let result = preempt::have_go(&client, env.now(), scheduler, victims, |about| {
                let message = format!("Preempted by pod {} on node {node}", pod.uid);
                let note = EventRecord { about, warning: false, reason: "Preempted", message, source: None };
                events.record_action(note, "Preempting");
            });
            let result = result.await;
            drop(permit);
            let _ = done.send(Done::Preempted(preempted, result)).await;
        });
    }

    /// Those that go for a pod have been told: it waits for their room.
    pub(super) fn has_preempted(&mut self, preempted: Preempted, result: Result<(), String>) {
        let Preempted { waiting, refused_by, departures } = preempted;
        let now = self.env.elapsed();
        if let Err(why) = result {
            tracing::info!(pod = %waiting.pod.key, %why, "a preemption failed");
            self.queue.failed(&waiting, None, now);
            return;
        }
        self.queue.failed(&waiting, Some(refused_by), now);
        // What happened meanwhile found it at work.
        if departures != self.departures {
            self.queue.activate(&waiting.pod.key, now);
        }
    }
}

/// A pod as the scheduler's view has it: without what decisions never read.
fn whole_victim(informer: &Informer, pod: &PodInfo) -> serde_json::Value {
    let object = informer.read(|view| view.get_arc::<Pod>(&pod.key));
    object.and_then(|object| serde_json::to_value(&*object).ok()).unwrap_or_default()
}

/// Upstream's sentence about nodes that plugins refuse though others went.
fn refusals(refused: &BTreeMap<String, Refused>, nodes: usize) -> String {
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
