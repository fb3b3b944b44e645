//! Who goes for a pod where plugins that run elsewhere have a say: they are asked again with others gone, as upstream runs its filters
//! again. A step asks about all nodes at once, so that there are as many calls as one node has pods, whatever the number of nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::plugins::default_preemption::{Candidate, Spare, sort};
use crate::pod::PodInfo;
use crate::wasm::{self, Failed, Guest, Load, Question, Refused, refused_of};

/// A node on which it is tried who has to go.
pub(super) struct Trial {
    candidate: Candidate,
    /// With everybody there.
    whole: wasm::Candidate,
    /// Who may go besides, and goes as it stands.
    going: Vec<bool>,
}

/// What plugins leave.
pub(super) struct Settled {
    pub(super) candidates: Vec<Candidate>,
    /// Nodes that they refuse whoever goes.
    pub(super) refused: BTreeMap<String, Refused>,
    pub(super) failed: Vec<Failed>,
}

impl Trial {
    pub(super) fn new(candidate: Candidate, whole: wasm::Candidate) -> Self {
        let going = vec![false; candidate.spare.len()];
        Self { candidate, whole, going }
    }

    pub(super) fn node(&self) -> &str {
        &self.candidate.node
    }

    /// As if those were gone who go.
    fn asked(&self) -> wasm::Candidate {
        let spare = self.candidate.spare.iter().zip(&self.going).filter(|(_, going)| **going);
        let gone: Vec<&Arc<PodInfo>> =
            self.candidate.victims.iter().chain(spare.map(|(spare, _)| &spare.pod)).collect();
        let sum = |of: fn(&PodInfo) -> i64| gone.iter().map(|pod| of(pod)).fold(0, i64::saturating_add);
        let load = self.whole.load;
        let load = Load {
            pods: load.pods.saturating_sub(u32::try_from(gone.len()).unwrap_or(u32::MAX)),
            cpu_millis: load.cpu_millis.saturating_sub(sum(|pod| pod.wants.requests.cpu_milli)),
            memory_bytes: load.memory_bytes.saturating_sub(sum(|pod| pod.wants.requests.memory_bytes)),
        };
        wasm::Candidate { node: self.whole.node.clone(), load }
    }

    /// Who goes in the end.
    fn end(self) -> Candidate {
        let Candidate { node, mut victims, mut violations, spare } = self.candidate;
        for (Spare { pod, violates }, _) in spare.into_iter().zip(self.going).filter(|(_, going)| *going) {
            violations += usize::from(violates);
            victims.push(pod);
        }
        sort(&mut victims);
        Candidate { node, victims, violations, spare: Vec::new() }
    }
}

/// What is asked, and what was found out.
struct Asking<'a> {
    guests: &'a [Guest],
    question: Question,
    failed: Vec<Failed>,
}

impl Asking<'_> {
    /// Which of the nodes are refused as they stand.
    async fn ask(&mut self, trials: impl Iterator<Item = &Trial>) -> Result<BTreeMap<String, Refused>, String> {
        self.question.candidates = trials.map(Trial::asked).collect();
        if self.question.candidates.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (refused, failed) = refused_of(self.guests, &self.question).await?;
        // What fails at each step is told once.
        let anew = failed.into_iter().filter(|one| self.failed.iter().all(|known| known.plugin != one.plugin));
        let anew: Vec<Failed> = anew.collect();
        self.failed.extend(anew);
        Ok(refused)
    }
}

/// Has as few go as plugins agree to: first those alone who have to go by what was decided here, then all others too, of whom then one
/// after the other is let stay, if the plugins still agree.
///
/// # Errors
/// A plugin that can't be done without failed.
pub(super) async fn settle(guests: &[Guest], pod: String, nodes: usize, trials: Vec<Trial>) -> Result<Settled, String> {
    let question = Question { pod, candidates: Vec::new(), wanted: usize::MAX, nodes };
    let mut asking = Asking { guests, question, failed: Vec::new() };
    let mut refused = asking.ask(trials.iter().filter(|trial| !trial.candidate.victims.is_empty())).await?;
    let is_settled = |trial: &Trial| !trial.candidate.victims.is_empty() && !refused.contains_key(trial.node());
    let (settled, rest): (Vec<Trial>, Vec<Trial>) = trials.into_iter().partition(is_settled);
    let mut candidates: Vec<Candidate> = settled.into_iter().map(Trial::end).collect();
    let hopeless = |trial: &Trial| refused.get(trial.node()).is_some_and(|refused| refused.unresolvable);
    let mut open: Vec<Trial> = rest.into_iter().filter(|trial| !trial.going.is_empty() && !hopeless(trial)).collect();
    open.iter_mut().for_each(|trial| trial.going.fill(true));
    let never = asking.ask(open.iter()).await?;
    refused.retain(|node, _| open.iter().all(|trial| trial.node() != node));
    open.retain(|trial| !never.contains_key(trial.node()));
    refused.extend(never);
    let steps = open.iter().map(|trial| trial.going.len()).max().unwrap_or(0);
    for step in 0..steps {
        open.iter_mut().filter_map(|trial| trial.going.get_mut(step)).for_each(|going| *going = false);
        let needed = asking.ask(open.iter().filter(|trial| step < trial.going.len())).await?;
        for trial in open.iter_mut().filter(|trial| needed.contains_key(trial.node())) {
            trial.going[step] = true;
        }
    }
    // Where they have changed their mind nobody goes: the pod is tried again.
    candidates.extend(open.into_iter().map(Trial::end).filter(|candidate| !candidate.victims.is_empty()));
    Ok(Settled { candidates, refused, failed: asking.failed })
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

    /// Refuses nodes with more pods than two, or whoever goes (`never`); counts what it is asked.
    #[derive(Debug, Default)]
    struct Crowded {
        asked: AtomicUsize,
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
            let asked: Value = serde_json::from_slice(&arguments).unwrap();
            let fails = function == wire::FILTER && *self.fails.lock().unwrap();
            let said = match function {
                wire::FILTER => {
                    self.asked.fetch_add(1, Ordering::Relaxed);
                    let candidates = asked["candidates"].as_array().unwrap().iter().enumerate();
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
            let said = if fails { json!({"err": "no"}) } else { said };
            Box::pin(async move { Ok(said.to_string().into_bytes()) })
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

    /// Of a cluster in which a plugin refuses all nodes: what is decided, and how it is settled.
    fn trials(plugin: &Arc<WasmPlugin>) -> (Nomination, Vec<Trial>) {
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
            // Of this one one has to go for want of room already.
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
            let refused = Refused { plugin: "Crowded".into(), reason: "crowded".into(), unresolvable: false };
            (name.to_owned(), refused)
        };
        let answers = Answers {
            asked: ["a", "equal", "never"].map(str::to_owned).into(),
            refused: ["a", "equal", "never"].map(refused).into(),
            ..Answers::default()
        };
        let high = of("high", 1000, "500m");
        let decision = decide_with(&snapshot, &high, &profile, 0, 0, Some(&answers.verdicts(&profile.wasm)));
        let Decision::Nowhere { nomination, candidates, .. } = decision else { panic!("{decision:?}") };
        let trial = |candidate: Candidate| {
            let object = json!({"metadata": {"name": candidate.node}});
            let load = snapshot.node(&candidate.node).unwrap().told();
            let node = Arc::new(serde_json::from_value(object).unwrap());
            Trial::new(candidate, wasm::Candidate { node, load })
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
    async fn as_few_go_as_a_plugin_agrees_to() {
        let plugin = plugin(FailurePolicy::Fail);
        let (nomination, trials) = trials(&plugin);
        assert_eq!(nomination, Nomination::Node("b".into()), "where it isn't for the plugin alone");
        let (guests, host) = guests(&plugin);
        let mut settled = settle(&guests, "{}".into(), 4, trials).await.unwrap();
        settled.candidates.sort_by(|a, b| a.node.cmp(&b.node));
        let told = |candidate: &Candidate| {
            let names = candidate.victims.iter().map(|pod| pod.key.name.clone()).collect::<Vec<_>>();
            format!("{}: {}", candidate.node, names.join(" "))
        };
        let told: Vec<String> = settled.candidates.iter().map(told).collect();
        assert_eq!(told, ["a: a-3 a-1", "b: b-2 b-1"], "the least important, and who has to go anyhow");
        assert_eq!(
            settled.refused.keys().collect::<Vec<_>>(),
            ["never"],
            "where nobody is less important, nobody is asked"
        );
        assert_eq!(host.asked.load(Ordering::Relaxed), 2 + 3, "all nodes at each step");
    }

    #[tokio::test]
    async fn one_that_fails_meanwhile_is_done_without_or_ends_it() {
        let failing = plugin(FailurePolicy::Fail);
        let (guests_of, host) = guests(&failing);
        *host.fails.lock().unwrap() = true;
        assert!(settle(&guests_of, "{}".into(), 4, trials(&failing).1).await.is_err());
        let ignored = plugin(FailurePolicy::Ignore);
        let (guests_of, host) = guests(&ignored);
        *host.fails.lock().unwrap() = true;
        let settled = settle(&guests_of, "{}".into(), 4, trials(&ignored).1).await.unwrap();
        assert_eq!(settled.failed.len(), 1, "told once");
        let nodes: Vec<&str> = settled.candidates.iter().map(|candidate| candidate.node.as_str()).collect();
        assert_eq!(nodes, ["b"], "as if it weren't there: on the others nobody has to go");
    }
}
