//! Decisions with extenders and WebAssembly plugins. Their pods wait beside the queue, so that other pods don't wait
//! for the answers. Each profile has its own in-flight limit, so that the plugins of one profile don't delay another.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use machinery_api::ObjectKey;
use machinery_client::{EventRecord, Informer, Kind, Pod};
use machinery_env::Env;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::preempting::{PreemptionReply, UnschedulablePod};
use super::{Config, Nomination, RunError, Scheduler, SchedulingEvent, TaskResult, profile_of};
use crate::decide::{feasible, num_feasible_nodes};
use crate::extender::Verdicts;
use crate::extender::client::{Extender, Nodes, filter_and_prioritize};
use crate::metrics::Outcome;
use crate::plugins::default_preemption::Candidate as PreemptionCandidate;
use crate::pod::PodInfo;
use crate::queue::QueuedPodInfo;
use crate::wasm::{self, Answers, Candidate, Failed, Guest, PluginRequest, WasmPlugin};

/// The in-flight limit of a profile: each decision may hold a large answer.
const IN_FLIGHT_MAX: usize = 16;

/// The decisions with extenders and WebAssembly plugins.
pub(super) struct ExtenderQueue {
    pub(super) extenders: Arc<[Extender]>,
    /// By profile.
    lanes: Vec<ProfileQueue>,
    /// Decisions with complete answers.
    pub(super) replies: VecDeque<Box<ExtenderReply>>,
}

/// The waiting pods of a profile, and its WebAssembly plugins.
struct ProfileQueue {
    guests: Arc<[Guest]>,
    slots: Arc<Semaphore>,
    waiting: VecDeque<QueuedPodInfo>,
}

/// The complete answers of one step.
pub(super) enum ExtenderReply {
    /// The verdicts on the feasible nodes.
    Filtered(FilterReply),
    /// The accepted candidates of a preemption.
    Preemption(PreemptionReply),
}

/// The answers for a pod's feasible nodes.
pub(super) struct FilterReply {
    waiting: QueuedPodInfo,
    /// The first node of the decision in the snapshot's order.
    start: usize,
    /// The verdicts, and the plugins that failed.
    verdicts: Result<(Verdicts, Vec<Failed>), String>,
}

impl ExtenderQueue {
    /// # Errors
    /// A profile has WebAssembly plugins, and there is no host for them.
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
            lanes.push(ProfileQueue {
                guests: guests.map(guest).collect(),
                slots: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
                waiting: VecDeque::new(),
            });
        }
        Ok(Self { extenders: extenders.into(), lanes, replies: VecDeque::new() })
    }

    /// Loads plugins before the first pod needs them.
    pub(super) fn warm(&self) {
        for guests in self.lanes.iter().map(|lane| lane.guests.clone()).filter(|guests| !guests.is_empty()) {
            tokio::spawn(async move {
                for guest in &*guests {
                    guest.preload().await;
                }
            });
        }
    }

    /// Whether extenders or WebAssembly plugins filter or score nodes for a pod.
    pub(super) fn applies_to(&self, profile: usize, pod: &PodInfo) -> bool {
        !self.lanes[profile].guests.is_empty()
            || self.extenders.iter().any(|extender| extender.config.scores_or_filters(pod))
    }

    /// Whether extenders or WebAssembly plugins take part in the preemption for a pod.
    pub(super) fn applies_to_preemption(
        &self,
        profile: usize,
        unschedulable: &UnschedulablePod,
        candidates: &[PreemptionCandidate],
    ) -> bool {
        let filters = self.lanes[profile].guests.iter().any(|guest| guest.plugin.filters);
        let preempts = |extender: &Extender| extender.config.supports_preemption(&unschedulable.waiting.pod);
        !candidates.is_empty() && (filters || self.extenders.iter().any(preempts))
    }

    pub(super) fn guests(&self, profile: usize) -> Arc<[Guest]> {
        self.lanes[profile].guests.clone()
    }

    pub(super) fn enqueue(&mut self, profile: usize, waiting: QueuedPodInfo) {
        self.lanes[profile].waiting.push_back(waiting);
    }

    /// The extender that binds a pod; none: the scheduler binds it.
    pub(super) fn binder(&self, pod: &PodInfo) -> Option<Extender> {
        let binds = |extender: &&Extender| !extender.config.bind_verb.is_empty() && extender.config.is_interested(pod);
        self.extenders.iter().find(binds).cloned()
    }
}

/// Binds a pod through an extender; none: the scheduler binds it.
pub(super) async fn bind_with_extender(
    binder: Option<Extender>,
    pod: &PodInfo,
    node: &str,
) -> Option<Result<(), String>> {
    let binder = binder?;
    match binder.bind(pod, node).await {
        Err(why) if binder.config.ignorable => {
            tracing::info!(extender = binder.config.url_prefix, pod = %pod.key, why, "an extender failed and is ignored");
            None
        }
        bound => Some(bound),
    }
}

/// The current object of a node.
pub(super) fn node_object(informer: &Informer, name: &str) -> Option<Arc<Node>> {
    informer.read(|view| view.get_arc::<Node>(&ObjectKey::cluster(name)))
}

impl Scheduler {
    /// Starts requests for waiting pods, up to the in-flight limits.
    pub(super) fn send_next(&mut self) {
        for profile in 0..self.extender_queue.lanes.len() {
            loop {
                let lane = &mut self.extender_queue.lanes[profile];
                if lane.waiting.is_empty() {
                    break;
                }
                let Ok(slot) = lane.slots.clone().try_acquire_owned() else { break };
                let Some(waiting) = lane.waiting.pop_front() else { break };
                self.send_filter_requests(profile, waiting, slot);
            }
        }
    }

    /// Runs the first half of the decision, and sends the requests.
    fn send_filter_requests(&mut self, at: usize, waiting: QueuedPodInfo, slot: OwnedSemaphorePermit) {
        let start = self.start;
        let (profile, guests) = (&self.config.profiles[at], self.extender_queue.guests(at));
        let names = feasible(&self.snapshot, &waiting.pod, profile, start);
        let candidates: Vec<Candidate> = self.informer.read(|view| {
            let of = |name: &String| {
                let node = view.get_arc::<Node>(&ObjectKey::cluster(name.as_str()))?;
                Some(Candidate { node, load: self.snapshot.node(name)?.plugin_load() })
            };
            names.iter().filter_map(of).collect()
        });
        let nodes = self.snapshot.node_count();
        let wanted = num_feasible_nodes(nodes, profile.feasible_percent);
        let mut request = PluginRequest { pod: String::new(), candidates, wanted, nodes };
        let (client, done, extenders) = (self.client.clone(), self.done.clone(), self.extender_queue.extenders.clone());
        self.tasks.spawn(async move {
            let verdicts = async {
                if request.candidates.is_empty() {
                    return Ok(<_>::default());
                }
                let whole = fetch_pod(&client, &waiting.pod).await?;
                request.pod = whole.to_string();
                let (verdicts, failed) = run_plugins(&guests, &request).await?;
                let of = |candidate: &Candidate| (candidate.name().to_owned(), candidate.node.clone());
                let fitting = request.candidates.iter().filter(|candidate| verdicts.fits(candidate.name()));
                let nodes: Nodes = fitting.map(of).collect();
                Ok((filter_and_prioritize(&extenders, &waiting.pod, &whole, &nodes, verdicts).await?, failed))
            };
            let verdicts = verdicts.await;
            drop(slot);
            let reply = FilterReply { waiting, start, verdicts };
            let _ = done.send(TaskResult::Reply(Box::new(ExtenderReply::Filtered(reply)))).await;
        });
    }

    /// Continues a decision with its answers.
    pub(super) fn continue_decision(&mut self, reply: ExtenderReply, permit: OwnedSemaphorePermit) {
        match reply {
            ExtenderReply::Filtered(reply) => self.finish_decision(reply, permit),
            ExtenderReply::Preemption(reply) => self.choose_candidate(reply, permit),
        }
    }

    /// Whether a pod is unchanged since the request; none: it is gone, or bound by others.
    pub(super) fn is_unchanged(&self, waiting: &QueuedPodInfo) -> Option<bool> {
        let known = self.queue.get(&waiting.pod.key).filter(|known| known.pod.uid == waiting.pod.uid);
        known.map(|known| known.pod.is_equivalent(&waiting.pod))
    }

    /// Runs the second half of the decision.
    fn finish_decision(&mut self, reply: FilterReply, permit: OwnedSemaphorePermit) {
        let FilterReply { waiting, start, verdicts } = reply;
        let Some(same) = self.is_unchanged(&waiting) else { return };
        match verdicts {
            Ok((verdicts, failed)) if same => {
                self.record_plugin_failures(&waiting.pod, &failed);
                self.decide(waiting, start, Some(&verdicts), permit);
            }
            Ok(_) => self.queue.failed(&waiting, None, self.env.elapsed()),
            Err(message) => {
                let name = &waiting.pod.requirements.scheduler;
                self.config.metrics.tried(name, Outcome::Error, Duration::ZERO);
                self.queue.failed(&waiting, None, self.env.elapsed());
                let event = SchedulingEvent { reason: "SchedulerError", message, nomination: Nomination::Clear };
                self.report_failure(&waiting, event, Some(permit));
            }
        }
    }

    /// Records the failures of ignored plugins, once per back-off.
    pub(super) fn record_plugin_failures(&self, pod: &PodInfo, failed: &[Failed]) {
        let Some(profile) = profile_of(&self.config.profiles, pod) else { return };
        for Failed { plugin, extension_point, why, .. } in failed.iter().filter(|failed| failed.was_called) {
            tracing::warn!(plugin, extension_point, pod = %pod.key, why, "a scheduler plugin failed and is ignored");
            let message =
                format!("Scheduler plugin {plugin:?} failed at {extension_point} and was done without: {why}");
            let about = self.reference(pod);
            let note = EventRecord { about, warning: true, reason: "SchedulerPluginFailed", message, source: None };
            self.events[profile].record_action(note, "Scheduling");
        }
    }
}

/// The full object of a pod: the view holds only the fields that scheduling reads.
pub(super) async fn fetch_pod(client: &machinery_client::request::ApiClient, pod: &PodInfo) -> Result<Value, String> {
    let whole: Value = client.get(&Kind::of::<Pod>(), &pod.key).await.map_err(|error| error.to_string())?;
    if whole["metadata"]["uid"] != *pod.uid {
        return Err("the pod is another one by now".to_owned());
    }
    Ok(whole)
}

/// Calls the WebAssembly plugins, before the extenders.
async fn run_plugins(guests: &[Guest], request: &PluginRequest) -> Result<(Verdicts, Vec<Failed>), String> {
    if guests.is_empty() {
        let names = request.candidates.iter().map(|candidate| candidate.name().to_owned());
        return Ok((Verdicts::new(names), Vec::new()));
    }
    let answers: Answers = wasm::call_plugins(guests, request).await?;
    let plugins: Vec<Arc<WasmPlugin>> = guests.iter().map(|guest| guest.plugin.clone()).collect();
    Ok((answers.verdicts(&plugins), answers.failed))
}
