//! Pods about which others are asked: extenders, and plugins that are WebAssembly components. They wait beside the queue, so that
//! other pods don't wait for those answers, and each profile has places of its own: one profile's plugins are no other's delay.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use machinery_api::ObjectKey;
use machinery_client::{EventRecord, Informer, Kind, Pod};
use machinery_env::Env;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::preempting::{Agreed, Nowhere};
use super::{Config, Done, Nomination, RunError, Scheduler, Told, profile_of};
use crate::decide::{feasible, num_feasible_nodes};
use crate::extender::Verdicts;
use crate::extender::client::{Extender, Nodes, ask};
use crate::metrics::Outcome;
use crate::plugins::default_preemption::Candidate as PreemptionCandidate;
use crate::pod::PodInfo;
use crate::queue::QueuedPodInfo;
use crate::wasm::{self, Answers, Candidate, Failed, Guest, Question, WasmPlugin};

/// Pods of a profile about which others are asked at once: each may hold a large answer.
const ASKED_MAX: usize = 16;

/// See the module.
pub(super) struct Asking {
    pub(super) extenders: Arc<[Extender]>,
    /// By profile.
    lanes: Vec<Lane>,
    /// Those of which the answers are there.
    pub(super) answered: VecDeque<Box<Answered>>,
}

/// The pods of a profile that are still to be asked about, and whom beside extenders.
struct Lane {
    guests: Arc<[Guest]>,
    slots: Arc<Semaphore>,
    waiting: VecDeque<QueuedPodInfo>,
}

/// What was answered.
pub(super) enum Answered {
    /// Which nodes will do.
    Asked(Asked),
    /// For whom others may go.
    Agreed(Agreed),
}

/// What was answered about a pod.
pub(super) struct Asked {
    waiting: QueuedPodInfo,
    /// Where its decision began in the order of nodes.
    start: usize,
    /// And which plugins failed.
    verdicts: Result<(Verdicts, Vec<Failed>), String>,
}

impl Asking {
    /// # Errors
    /// Profiles have plugins that nobody here runs.
    pub(super) fn new(extenders: Vec<Extender>, config: &Config, env: &Env) -> Result<Self, RunError> {
        let mut lanes = Vec::with_capacity(config.profiles.len());
        for profile in &config.profiles {
            let host = match &config.plugins {
                Some(host) => Some(host),
                None if profile.wasm.is_empty() => None,
                None => return Err(RunError::Plugins(profile.scheduler_name.clone())),
            };
            let guest = |(host, plugin): (_, &Arc<WasmPlugin>)| {
                Guest::new(plugin.clone(), Arc::clone(host), env.clone(), Arc::new(config.metrics.clone()))
            };
            let guests = host.into_iter().flat_map(|host| profile.wasm.iter().map(move |plugin| (host, plugin)));
            lanes.push(Lane {
                guests: guests.map(guest).collect(),
                slots: Arc::new(Semaphore::new(ASKED_MAX)),
                waiting: VecDeque::new(),
            });
        }
        Ok(Self { extenders: extenders.into(), lanes, answered: VecDeque::new() })
    }

    /// Has plugins loaded while nobody waits for them yet.
    pub(super) fn warm(&self) {
        for guests in self.lanes.iter().map(|lane| lane.guests.clone()).filter(|guests| !guests.is_empty()) {
            tokio::spawn(async move {
                for guest in &*guests {
                    guest.warm().await;
                }
            });
        }
    }

    /// Whether anybody is asked before a pod is given a node.
    pub(super) fn concerns(&self, profile: usize, pod: &PodInfo) -> bool {
        !self.lanes[profile].guests.is_empty() || self.extenders.iter().any(|extender| extender.config.is_asked(pod))
    }

    /// Whether anybody has a say in who goes for a pod.
    pub(super) fn concerns_preemption(
        &self,
        profile: usize,
        nowhere: &Nowhere,
        candidates: &[PreemptionCandidate],
    ) -> bool {
        let filters = self.lanes[profile].guests.iter().any(|guest| guest.plugin.filters);
        let preempts = |extender: &Extender| extender.config.has_say_in_preemption(&nowhere.waiting.pod);
        !candidates.is_empty() && (filters || self.extenders.iter().any(preempts))
    }

    pub(super) fn guests(&self, profile: usize) -> Arc<[Guest]> {
        self.lanes[profile].guests.clone()
    }

    pub(super) fn wait(&mut self, profile: usize, waiting: QueuedPodInfo) {
        self.lanes[profile].waiting.push_back(waiting);
    }

    /// Who binds a pod, if it isn't the scheduler.
    pub(super) fn binder(&self, pod: &PodInfo) -> Option<Extender> {
        let binds = |extender: &&Extender| !extender.config.bind_verb.is_empty() && extender.config.is_interested(pod);
        self.extenders.iter().find(binds).cloned()
    }
}

/// Has an extender bind a pod; none: it is to be done without one.
pub(super) async fn bind(binder: Option<Extender>, pod: &PodInfo, node: &str) -> Option<Result<(), String>> {
    let binder = binder?;
    match binder.bind(pod, node).await {
        Err(why) if binder.config.ignorable => {
            tracing::info!(extender = binder.config.url_prefix, pod = %pod.key, why, "an extender is done without");
            None
        }
        bound => Some(bound),
    }
}

/// A node's object, as it is by now.
pub(super) fn object(informer: &Informer, name: &str) -> Option<Arc<Node>> {
    informer.read(|view| view.get_arc::<Node>(&ObjectKey::cluster(name)))
}

impl Scheduler {
    /// Begins to ask about the next pods, as far as there are places.
    pub(super) fn ask_next(&mut self) {
        for profile in 0..self.asking.lanes.len() {
            loop {
                let lane = &mut self.asking.lanes[profile];
                if lane.waiting.is_empty() {
                    break;
                }
                let Ok(slot) = lane.slots.clone().try_acquire_owned() else { break };
                let Some(waiting) = lane.waiting.pop_front() else { break };
                self.ask(profile, waiting, slot);
            }
        }
    }

    /// The first half of the decision, and the questions.
    fn ask(&mut self, at: usize, waiting: QueuedPodInfo, slot: OwnedSemaphorePermit) {
        let start = self.start;
        let (profile, guests) = (&self.config.profiles[at], self.asking.guests(at));
        let names = feasible(&self.snapshot, &waiting.pod, profile, start);
        let candidates: Vec<Candidate> = self.informer.read(|view| {
            let of = |name: &String| {
                let node = view.get_arc::<Node>(&ObjectKey::cluster(name.as_str()))?;
                Some(Candidate { node, load: self.snapshot.node(name)?.told() })
            };
            names.iter().filter_map(of).collect()
        });
        let nodes = self.snapshot.node_count();
        let wanted = num_feasible_nodes(nodes, profile.feasible_percent);
        let mut question = Question { pod: String::new(), candidates, wanted, nodes };
        let (client, done, extenders) = (self.client.clone(), self.done.clone(), self.asking.extenders.clone());
        self.tasks.spawn(async move {
            let verdicts = async {
                if question.candidates.is_empty() {
                    return Ok(<_>::default());
                }
                let whole = whole(&client, &waiting.pod).await?;
                question.pod = whole.to_string();
                let (verdicts, failed) = plugins(&guests, &question).await?;
                let of = |candidate: &Candidate| (candidate.name().to_owned(), candidate.node.clone());
                let fitting = question.candidates.iter().filter(|candidate| verdicts.fits(candidate.name()));
                let nodes: Nodes = fitting.map(of).collect();
                Ok((ask(&extenders, &waiting.pod, &whole, &nodes, verdicts).await?, failed))
            };
            let verdicts = verdicts.await;
            drop(slot);
            let asked = Asked { waiting, start, verdicts };
            let _ = done.send(Done::Answered(Box::new(Answered::Asked(asked)))).await;
        });
    }

    /// What follows from answers.
    pub(super) fn answered(&mut self, answered: Answered, permit: OwnedSemaphorePermit) {
        match answered {
            Answered::Asked(asked) => self.decide_again(asked, permit),
            Answered::Agreed(agreed) => self.agreed(agreed, permit),
        }
    }

    /// Whether a pod that others were asked about is as it was; none: it is gone, or has a node by others.
    pub(super) fn is_as_it_was(&self, waiting: &QueuedPodInfo) -> Option<bool> {
        let known = self.queue.get(&waiting.pod.key).filter(|known| known.pod.uid == waiting.pod.uid);
        known.map(|known| known.pod.waits_as(&waiting.pod))
    }

    /// The second half of the decision.
    fn decide_again(&mut self, asked: Asked, permit: OwnedSemaphorePermit) {
        let Asked { waiting, start, verdicts } = asked;
        let Some(same) = self.is_as_it_was(&waiting) else { return };
        match verdicts {
            Ok((verdicts, failed)) if same => {
                self.tell_of_plugins(&waiting.pod, &failed);
                self.decide(waiting, start, Some(&verdicts), permit);
            }
            Ok(_) => self.queue.failed(&waiting, None, self.env.elapsed()),
            Err(message) => {
                let name = &waiting.pod.wants.scheduler;
                self.config.metrics.tried(name, Outcome::Error, Duration::ZERO);
                self.queue.failed(&waiting, None, self.env.elapsed());
                let told = Told { reason: "SchedulerError", message, nomination: Nomination::Clear };
                self.tell(&waiting, told, Some(permit));
            }
        }
    }

    /// Says of plugins that they failed and are done without: not again while they are left alone.
    pub(super) fn tell_of_plugins(&self, pod: &PodInfo, failed: &[Failed]) {
        let Some(profile) = profile_of(&self.config.profiles, pod) else { return };
        for Failed { plugin, extension_point, why, .. } in failed.iter().filter(|failed| failed.anew) {
            tracing::warn!(plugin, extension_point, pod = %pod.key, why, "a scheduler plugin failed and is done without");
            let message =
                format!("Scheduler plugin {plugin:?} failed at {extension_point} and was done without: {why}");
            let about = self.reference(pod);
            let note = EventRecord { about, warning: true, reason: "SchedulerPluginFailed", message, source: None };
            self.events[profile].record_action(note, "Scheduling");
        }
    }
}

/// Views hold what scheduling needs; others get all of a pod.
pub(super) async fn whole(client: &machinery_client::request::ApiClient, pod: &PodInfo) -> Result<Value, String> {
    let whole: Value = client.get(&Kind::of::<Pod>(), &pod.key).await.map_err(|error| error.to_string())?;
    if whole["metadata"]["uid"] != *pod.uid {
        return Err("the pod is another one by now".to_owned());
    }
    Ok(whole)
}

/// What plugins say, before extenders are asked.
async fn plugins(guests: &[Guest], question: &Question) -> Result<(Verdicts, Vec<Failed>), String> {
    if guests.is_empty() {
        let names = question.candidates.iter().map(|candidate| candidate.name().to_owned());
        return Ok((Verdicts::new(names), Vec::new()));
    }
    let answers: Answers = wasm::ask(guests, question).await?;
    let plugins: Vec<Arc<WasmPlugin>> = guests.iter().map(|guest| guest.plugin.clone()).collect();
    Ok((answers.verdicts(&plugins), answers.failed))
}
