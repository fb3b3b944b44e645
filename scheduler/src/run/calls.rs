//! Calls to extenders and WebAssembly plugins. Their cycles wait beside the queue, so that other pods don't wait for the
//! replies. Each profile has its own in-flight limit, so that the plugins of one profile don't delay another.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use machinery_api::ObjectKey;
use machinery_client::request::ApiClient;
use machinery_client::{Informer, Kind, Pod};
use machinery_env::Env;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::victims::{NodeTrial, select_victims};
use super::{Config, Performed, RunError, Scheduler};
use crate::cycle::{AcceptedCandidates, Event, NodeVerdicts, SchedulingCycle};
use crate::decide::{feasible, num_feasible_nodes};
use crate::extender::client::{Extender, Nodes, filter_and_prioritize, process_preemption};
use crate::extender::{Verdicts, Victims};
use crate::plugins::default_preemption::Candidate as PreemptionCandidate;
use crate::pod::PodInfo;
use crate::wasm::{self, Candidate, Failed, Guest, PluginRequest, WasmPlugin};

/// The in-flight limit of a profile: each call may hold a large reply.
const IN_FLIGHT_MAX: usize = 16;

/// The cycles that wait for calls of extenders and WebAssembly plugins, and for what follows.
pub(super) struct CallQueue {
    extenders: Arc<[Extender]>,
    profiles: Vec<ProfileQueue>,
    /// The cycles with the results of their calls, until a write permit is free.
    pub(super) replied: VecDeque<SchedulingCycle>,
}

/// The waiting cycles of a profile, and its WebAssembly plugins.
struct ProfileQueue {
    guests: Arc<[Guest]>,
    permits: Arc<Semaphore>,
    waiting: VecDeque<SchedulingCycle>,
}

impl CallQueue {
    /// # Errors
    /// A profile has WebAssembly plugins, and there is no host for them.
    pub(super) fn new(extenders: Vec<Extender>, config: &Config, env: &Env) -> Result<Self, RunError> {
        let mut profiles = Vec::with_capacity(config.profiles.len());
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
            profiles.push(ProfileQueue {
                guests: guests.map(guest).collect(),
                permits: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
                waiting: VecDeque::new(),
            });
        }
        Ok(Self { extenders: extenders.into(), profiles, replied: VecDeque::new() })
    }

    /// Loads plugins before the first pod needs them.
    pub(super) fn preload(&self) {
        for guests in self.profiles.iter().map(|queue| queue.guests.clone()).filter(|guests| !guests.is_empty()) {
            tokio::spawn(async move {
                for guest in &*guests {
                    guest.preload().await;
                }
            });
        }
    }

    /// Queues a cycle until [`next`](Self::next) returns it.
    pub(super) fn enqueue(&mut self, cycle: SchedulingCycle) {
        self.profiles[cycle.profile].waiting.push_back(cycle);
    }

    /// The next waiting cycle of a profile with its permit, up to the in-flight limit.
    fn next(&mut self, profile: usize) -> Option<(SchedulingCycle, OwnedSemaphorePermit)> {
        let queue = &mut self.profiles[profile];
        if queue.waiting.is_empty() {
            return None;
        }
        let permit = queue.permits.clone().try_acquire_owned().ok()?;
        Some((queue.waiting.pop_front()?, permit))
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
fn node_object(informer: &Informer, name: &str) -> Option<Arc<Node>> {
    informer.read(|view| view.get_arc::<Node>(&ObjectKey::cluster(name)))
}

impl Scheduler {
    /// Starts the calls of waiting cycles, up to the in-flight limits.
    pub(super) fn start_calls(&mut self) {
        for profile in 0..self.calls.profiles.len() {
            while let Some((cycle, permit)) = self.calls.next(profile) {
                self.advance(cycle, Event::CallPermit, Some(permit));
            }
        }
    }

    /// Runs the first half of the decision, and calls extenders and plugins for the feasible nodes.
    pub(super) fn call_extenders(
        &mut self,
        cycle: SchedulingCycle,
        start: usize,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Performed {
        let (client, pod) = (self.client.clone(), cycle.queued.pod.clone());
        let (profile, guests) =
            (&self.config.profiles[cycle.profile], self.calls.profiles[cycle.profile].guests.clone());
        let extenders = self.calls.extenders.clone();
        let names = feasible(&self.snapshot, &pod, profile, start);
        let candidates: Vec<Candidate> = self.informer.read(|view| {
            let of = |name: &String| {
                let node = view.get_arc::<Node>(&ObjectKey::cluster(name.as_str()))?;
                Some(Candidate { node, load: self.snapshot.node(name)?.plugin_load() })
            };
            names.iter().filter_map(of).collect()
        });
        let nodes = self.snapshot.node_count();
        let wanted = num_feasible_nodes(nodes, profile.feasible_percent);
        let request = PluginRequest { pod: String::new(), candidates, wanted, nodes };
        self.spawn(cycle, async move {
            let result = filter_nodes(&client, &guests, &extenders, &pod, request).await;
            drop(permit);
            Event::NodesFiltered(result)
        })
    }

    /// Calls plugins and extenders for the candidates of a preemption.
    pub(super) fn select_victims(&mut self, cycle: SchedulingCycle, candidates: Vec<PreemptionCandidate>) -> Performed {
        let (client, informer, pod) = (self.client.clone(), self.informer.clone(), cycle.queued.pod.clone());
        let (guests, extenders) = (self.calls.profiles[cycle.profile].guests.clone(), self.calls.extenders.clone());
        let nodes = self.snapshot.node_count();
        let trials = candidates.into_iter().filter_map(|candidate| {
            let (node, load) =
                (node_object(&self.informer, &candidate.node)?, self.snapshot.node(&candidate.node)?.plugin_load());
            Some(NodeTrial::new(candidate, Candidate { node, load }))
        });
        let trials: Vec<NodeTrial> = trials.collect();
        let pods_of = |name: &str| -> Option<Vec<Arc<PodInfo>>> {
            Some(self.snapshot.node(name)?.pods.values().cloned().collect())
        };
        let pods: BTreeMap<String, Vec<Arc<PodInfo>>> =
            trials.iter().filter_map(|trial| Some((trial.node().to_owned(), pods_of(trial.node())?))).collect();
        self.spawn(cycle, async move {
            let result = async {
                let whole = fetch_pod(&client, &pod).await?;
                let selected = select_victims(&guests, whole.to_string(), nodes, trials).await?;
                let AcceptedCandidates { candidates, refused, failed } = selected;
                let victims = candidates.into_iter().map(|candidate| {
                    let violations = i64::try_from(candidate.violations).unwrap_or(i64::MAX);
                    (candidate.node, Victims { pods: candidate.victims, violations })
                });
                let read_pod = |pod: &PodInfo| victim_object(&informer, pod);
                let left = process_preemption(&extenders, (&pod, &whole), victims.collect(), &pods, &read_pod).await?;
                let candidates = left.into_iter().map(|(node, Victims { pods, violations })| PreemptionCandidate {
                    node,
                    victims: pods,
                    violations: usize::try_from(violations).unwrap_or(0),
                    spare: Vec::new(),
                });
                Ok(AcceptedCandidates { candidates: candidates.collect(), refused, failed })
            };
            Event::VictimsSelected(result.await)
        })
    }
}

/// Calls the WebAssembly plugins and then the extenders for the candidates of a request.
async fn filter_nodes(
    client: &ApiClient,
    guests: &[Guest],
    extenders: &[Extender],
    pod: &PodInfo,
    mut request: PluginRequest,
) -> Result<NodeVerdicts, String> {
    if request.candidates.is_empty() {
        return Ok(NodeVerdicts::default());
    }
    let whole = fetch_pod(client, pod).await?;
    request.pod = whole.to_string();
    let (verdicts, failed) = run_plugins(guests, &request).await?;
    let of = |candidate: &Candidate| (candidate.name().to_owned(), candidate.node.clone());
    let fitting = request.candidates.iter().filter(|candidate| verdicts.fits(candidate.name()));
    let nodes: Nodes = fitting.map(of).collect();
    let verdicts = filter_and_prioritize(extenders, pod, &whole, &nodes, verdicts).await?;
    Ok(NodeVerdicts { verdicts, failed })
}

/// The full object of a pod: the view holds only the fields that scheduling reads.
async fn fetch_pod(client: &ApiClient, pod: &PodInfo) -> Result<Value, String> {
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
    let answers = wasm::call_plugins(guests, request).await?;
    let plugins: Vec<Arc<WasmPlugin>> = guests.iter().map(|guest| guest.plugin.clone()).collect();
    Ok((answers.verdicts(&plugins), answers.failed))
}

/// A pod as in the scheduler's view: without the fields that decisions never read.
fn victim_object(informer: &Informer, pod: &PodInfo) -> Value {
    let object = informer.read(|view| view.get_arc::<Pod>(&pod.key));
    object.and_then(|object| serde_json::to_value(&*object).ok()).unwrap_or_default()
}
