//! Selection of victims under WebAssembly plugins: the plugins filter again without the victims, as upstream runs its
//! filters again. A step covers all nodes, so the number of calls is that of the pods on one node, whatever the number
//! of nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cycle::AcceptedCandidates;
use crate::plugins::default_preemption::{Candidate, SparePod, sort};
use crate::pod::PodInfo;
use crate::wasm::{self, Failed, Guest, Load, NodeRejection, PluginRequest, filter_candidates};

/// A candidate node whose victims are being selected.
pub(super) struct NodeTrial {
    candidate: Candidate,
    /// The candidate with all its pods.
    whole: wasm::Candidate,
    /// For each spare pod, whether it is a victim in the current trial.
    removed: Vec<bool>,
}

impl NodeTrial {
    pub(super) fn new(candidate: Candidate, whole: wasm::Candidate) -> Self {
        let removed = vec![false; candidate.spare.len()];
        Self { candidate, whole, removed }
    }

    pub(super) fn node(&self) -> &str {
        &self.candidate.node
    }

    /// The candidate without the current victims.
    fn without_victims(&self) -> wasm::Candidate {
        let spare = self.candidate.spare.iter().zip(&self.removed).filter(|(_, removed)| **removed);
        let gone: Vec<&Arc<PodInfo>> =
            self.candidate.victims.iter().chain(spare.map(|(spare, _)| &spare.pod)).collect();
        let sum = |of: fn(&PodInfo) -> i64| gone.iter().map(|pod| of(pod)).fold(0, i64::saturating_add);
        let load = self.whole.load;
        let load = Load {
            pods: load.pods.saturating_sub(u32::try_from(gone.len()).unwrap_or(u32::MAX)),
            cpu_millis: load.cpu_millis.saturating_sub(sum(|pod| pod.requirements.requests.cpu_milli)),
            memory_bytes: load.memory_bytes.saturating_sub(sum(|pod| pod.requirements.requests.memory_bytes)),
        };
        wasm::Candidate { node: self.whole.node.clone(), load }
    }

    /// The candidate with its final victims.
    fn into_candidate(self) -> Candidate {
        let Candidate { node, mut victims, mut violations, spare } = self.candidate;
        for (SparePod { pod, violates }, _) in spare.into_iter().zip(self.removed).filter(|(_, removed)| *removed) {
            violations += usize::from(violates);
            victims.push(pod);
        }
        sort(&mut victims);
        Candidate { node, victims, violations, spare: Vec::new() }
    }
}

/// The plugin calls of one selection, with their failures.
struct PluginCalls<'a> {
    guests: &'a [Guest],
    request: PluginRequest,
    failed: Vec<Failed>,
}

impl PluginCalls<'_> {
    /// Calls the filters for the trials without their current victims, and returns the rejected nodes.
    async fn filter(
        &mut self,
        trials: impl Iterator<Item = &NodeTrial>,
    ) -> Result<BTreeMap<String, NodeRejection>, String> {
        self.request.candidates = trials.map(NodeTrial::without_victims).collect();
        if self.request.candidates.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (refused, failed) = filter_candidates(self.guests, &self.request).await?;
        // A failure is reported once, though it recurs at each step.
        let new_failures =
            failed.into_iter().filter(|one| self.failed.iter().all(|earlier| earlier.plugin != one.plugin));
        let new_failures: Vec<Failed> = new_failures.collect();
        self.failed.extend(new_failures);
        Ok(refused)
    }
}

/// Selects the fewest victims that plugins accept. First trial: only the victims of the decision. Second: all pods of
/// lower priority, of which one after the other is then reprieved if the plugins still accept the node.
///
/// # Errors
/// A plugin whose policy is `Fail` failed.
pub(super) async fn select_victims(
    guests: &[Guest],
    pod: String,
    nodes: usize,
    trials: Vec<NodeTrial>,
) -> Result<AcceptedCandidates, String> {
    let request = PluginRequest { pod, candidates: Vec::new(), wanted: usize::MAX, nodes };
    let mut calls = PluginCalls { guests, request, failed: Vec::new() };
    let mut refused = calls.filter(trials.iter().filter(|trial| !trial.candidate.victims.is_empty())).await?;
    let is_accepted = |trial: &NodeTrial| !trial.candidate.victims.is_empty() && !refused.contains_key(trial.node());
    let (accepted, rest): (Vec<NodeTrial>, Vec<NodeTrial>) = trials.into_iter().partition(is_accepted);
    let mut candidates: Vec<Candidate> = accepted.into_iter().map(NodeTrial::into_candidate).collect();
    let hopeless = |trial: &NodeTrial| refused.get(trial.node()).is_some_and(|refused| refused.unresolvable);
    let mut open: Vec<NodeTrial> =
        rest.into_iter().filter(|trial| !trial.removed.is_empty() && !hopeless(trial)).collect();
    open.iter_mut().for_each(|trial| trial.removed.fill(true));
    let never = calls.filter(open.iter()).await?;
    refused.retain(|node, _| open.iter().all(|trial| trial.node() != node));
    open.retain(|trial| !never.contains_key(trial.node()));
    refused.extend(never);
    let steps = open.iter().map(|trial| trial.removed.len()).max().unwrap_or(0);
    for step in 0..steps {
        open.iter_mut().filter_map(|trial| trial.removed.get_mut(step)).for_each(|removed| *removed = false);
        let needed = calls.filter(open.iter().filter(|trial| step < trial.removed.len())).await?;
        for trial in open.iter_mut().filter(|trial| needed.contains_key(trial.node())) {
            trial.removed[step] = true;
        }
    }
    // If the plugins' answers changed meanwhile, nothing is preempted and the pod is retried.
    candidates
        .extend(open.into_iter().map(NodeTrial::into_candidate).filter(|candidate| !candidate.victims.is_empty()));
    Ok(AcceptedCandidates { candidates, refused, failed: calls.failed })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::BoxFuture;
    use jiff::Timestamp;
    use machinery_env::Env;
    use serde_json::{Value, json};

    use super::*;
    use crate::Metrics;
    use crate::decide::{Decision, Nomination, decide_with};
    use crate::plugins::Profile;
    use crate::snapshot::Snapshot;
    use crate::tests::{node, pod};
    use crate::wasm::{Answers, CallError, FailurePolicy, PluginHost, PluginModule, WasmPlugin, wire};

    /// Rejects nodes with more than two pods, and always `never`; counts its calls.
    #[derive(Debug, Default)]
    struct Crowded {
        filter_calls: AtomicUsize,
        fails: Mutex<bool>,
    }

    impl PluginHost for Arc<Crowded> {
        fn load<'a>(&'a self, _: &'a WasmPlugin) -> BoxFuture<'a, Result<Arc<dyn PluginModule>, String>> {
            let module: Arc<dyn PluginModule> = Arc::new(self.clone());
            Box::pin(async { Ok(module) })
        }
    }

    impl PluginModule for Arc<Crowded> {
        fn call<'a>(
            &'a self,
            _: &'a str,
            function: &'static str,
            arguments: Vec<u8>,
        ) -> BoxFuture<'a, Result<Vec<u8>, CallError>> {
            let arguments: Value = serde_json::from_slice(&arguments).unwrap();
            let fails = function == wire::FILTER && *self.fails.lock().unwrap();
            let result = match function {
                wire::FILTER => {
                    self.filter_calls.fetch_add(1, Ordering::Relaxed);
                    let candidates = arguments["candidates"].as_array().unwrap().iter().enumerate();
                    let refuses = |candidate: &Value| match candidate["node"].as_str().unwrap() {
                        "never" => true,
                        _ => candidate["pods"].as_u64().unwrap() > 2,
                    };
                    let refused = candidates.filter(|(_, candidate)| refuses(candidate));
                    let refusal = |(at, _)| json!({"candidate": at, "reason": "crowded", "unresolvable": false});
                    json!({"ok": refused.map(refusal).collect::<Vec<_>>()})
                }
                wire::OPEN => json!({"ok": "instance"}),
                _ => Value::Null,
            };
            let result = if fails { json!({"err": "no"}) } else { result };
            Box::pin(async move { Ok(result.to_string().into_bytes()) })
        }
    }

    fn plugin(failure_policy: FailurePolicy) -> Arc<WasmPlugin> {
        Arc::new(WasmPlugin {
            name: "Crowded",
            module: "crowded.wasm".into(),
            config: String::new(),
            failure_policy,
            timeout: std::time::Duration::from_secs(1),
            memory_bytes: 1 << 20,
            fuel: None,
            filters: true,
            weight: None,
        })
    }

    /// A cluster in which a plugin rejects all nodes: the nomination, and the trials.
    fn trials(plugin: &Arc<WasmPlugin>) -> (Nomination, Vec<NodeTrial>) {
        let mut snapshot = Snapshot::default();
        let names = ["a", "b", "equal", "never"];
        for name in names {
            snapshot.set_node(node(name, json!({"status": {"allocatable": {"cpu": "1"}}})));
        }
        let of = |name: &str, priority: i32, cpu: &str| {
            let containers = json!([{"name": "c", "resources": {"requests": {"cpu": cpu}}}]);
            pod(name, json!({"spec": {"priority": priority, "containers": containers}}))
        };
        for (name, priority, cpu, node) in [
            ("a-1", 1, "0", "a"),
            ("a-2", 3, "0", "a"),
            ("a-3", 2, "0", "a"),
            ("a-4", 2000, "0", "a"),
            // On this node one pod is a victim for lack of cpu already.
            ("b-1", 5, "1", "b"),
            ("b-2", 6, "0", "b"),
            ("b-3", 7, "0", "b"),
            ("b-4", 8, "0", "b"),
            ("equal-1", 1000, "0", "equal"),
            ("never-1", 1, "0", "never"),
        ] {
            snapshot.put_pod(Arc::new(of(name, priority, cpu)), node, false);
        }
        let profile = Profile { wasm: vec![plugin.clone()], ..Profile::default() };
        let refused = |name: &str| {
            let refused = NodeRejection { plugin: "Crowded".into(), reason: "crowded".into(), unresolvable: false };
            (name.to_owned(), refused)
        };
        let answers = Answers {
            candidates: ["a", "equal", "never"].map(str::to_owned).into(),
            refused: ["a", "equal", "never"].map(refused).into(),
            ..Answers::default()
        };
        let high = of("high", 1000, "500m");
        let decision = decide_with(&snapshot, &high, &profile, 0, 0, Some(&answers.verdicts(&profile.wasm)));
        let Decision::Unschedulable { nomination, candidates, .. } = decision else { panic!("{decision:?}") };
        let trial = |candidate: Candidate| {
            let object = json!({"metadata": {"name": candidate.node}});
            let load = snapshot.node(&candidate.node).unwrap().plugin_load();
            let node = Arc::new(serde_json::from_value(object).unwrap());
            NodeTrial::new(candidate, wasm::Candidate { node, load })
        };
        (nomination, candidates.into_iter().map(trial).collect())
    }

    fn guests(plugin: &Arc<WasmPlugin>) -> (Vec<Guest>, Arc<Crowded>) {
        let host = Arc::new(Crowded::default());
        let (env, _) = Env::seeded(1, Timestamp::UNIX_EPOCH);
        let guest = Guest::new(plugin.clone(), Arc::new(host.clone()), env, Arc::new(Metrics::default()));
        (vec![guest], host)
    }

    #[tokio::test]
    async fn the_fewest_victims_that_a_plugin_accepts_are_selected() {
        let plugin = plugin(FailurePolicy::Fail);
        let (nomination, trials) = trials(&plugin);
        assert_eq!(nomination, Nomination::Node("b".into()), "the node that lacks cpu, whatever the plugin");
        let (guests, host) = guests(&plugin);
        let mut selected = select_victims(&guests, "{}".into(), 4, trials).await.unwrap();
        selected.candidates.sort_by(|a, b| a.node.cmp(&b.node));
        let summary = |candidate: &Candidate| {
            let names = candidate.victims.iter().map(|pod| pod.key.name.clone()).collect::<Vec<_>>();
            format!("{}: {}", candidate.node, names.join(" "))
        };
        let summaries: Vec<String> = selected.candidates.iter().map(summary).collect();
        assert_eq!(summaries, ["a: a-3 a-1", "b: b-2 b-1"], "the lowest priorities, and the victims for lack of cpu");
        assert_eq!(
            selected.refused.keys().collect::<Vec<_>>(),
            ["never"],
            "a node without pods of lower priority is not filtered"
        );
        assert_eq!(host.filter_calls.load(Ordering::Relaxed), 2 + 3, "one call covers all nodes of a step");
    }

    #[tokio::test]
    async fn a_failed_plugin_is_ignored_or_ends_the_selection_by_its_policy() {
        let failing = plugin(FailurePolicy::Fail);
        let (guests_of, host) = guests(&failing);
        *host.fails.lock().unwrap() = true;
        assert!(select_victims(&guests_of, "{}".into(), 4, trials(&failing).1).await.is_err());
        let ignored = plugin(FailurePolicy::Ignore);
        let (guests_of, host) = guests(&ignored);
        *host.fails.lock().unwrap() = true;
        let selected = select_victims(&guests_of, "{}".into(), 4, trials(&ignored).1).await.unwrap();
        assert_eq!(selected.failed.len(), 1, "recorded once");
        let nodes: Vec<&str> = selected.candidates.iter().map(|candidate| candidate.node.as_str()).collect();
        assert_eq!(nodes, ["b"], "without the plugin, the other nodes need no victims");
    }
}
