//! Scripted plugins: the calls that they get, the effect of their answers on decisions, and their failures.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use machinery_env::Env;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::decide::{Decision, decide_with, feasible};
use crate::extender::ExtenderConfig;
use crate::plugins::{Event, Profile};
use crate::shell_tests::{self, Server};
use crate::snapshot::Snapshot;
use crate::{Config, Metrics, run};

pub(super) fn plugin() -> WasmPlugin {
    WasmPlugin {
        name: "P",
        module: PathBuf::from("p.wasm"),
        config: "told".into(),
        failure_policy: FailurePolicy::Fail,
        timeout: Duration::from_secs(1),
        memory_bytes: 1 << 20,
        fuel: None,
        filters: true,
        weight: Some(2),
    }
}

type FilterResult = Result<Value, CallError>;

/// Returns the scripted answers in order, then default ones.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<FilterResult>>,
    by_pod: Mutex<Vec<(&'static str, FilterResult)>>,
    calls: Mutex<Vec<(String, &'static str, Value)>>,
    refuses_to_load: Mutex<u32>,
}

#[derive(Clone)]
struct Scripted(Arc<Script>);

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

impl PluginHost for Scripted {
    fn load<'a>(&'a self, _: &'a WasmPlugin) -> BoxFuture<'a, Result<Arc<dyn PluginModule>, String>> {
        let mut refusals = self.0.refuses_to_load.lock().unwrap();
        if *refusals > 0 {
            *refusals -= 1;
            return Box::pin(async { Err("no such file".to_owned()) });
        }
        let module: Arc<dyn PluginModule> = Arc::new(self.clone());
        Box::pin(async move { Ok(module) })
    }
}

impl PluginModule for Scripted {
    fn call<'a>(
        &'a self,
        session: &'a str,
        function: &'static str,
        arguments: Vec<u8>,
    ) -> BoxFuture<'a, Result<Vec<u8>, CallError>> {
        let request: Value = serde_json::from_slice(&arguments).unwrap();
        self.0.calls.lock().unwrap().push((session.to_owned(), function, request.clone()));
        let asks = [wire::FILTER, wire::SCORE].contains(&function);
        let pod = request["pod"].as_str().unwrap_or_default().to_owned();
        let by_pod =
            self.0.by_pod.lock().unwrap().iter().find(|(name, _)| pod.contains(name)).map(|(_, result)| result.clone());
        let result =
            by_pod.filter(|_| asks).or_else(|| asks.then(|| self.0.answers.lock().unwrap().pop_front()).flatten());
        let usual = || match function {
            wire::OPEN => json!({"ok": format!("instance-{session}")}),
            wire::FILTER => json!({"ok": []}),
            wire::SCORE => {
                json!({"ok": request["candidates"].as_array().unwrap().iter().map(|_| 0).collect::<Vec<_>>()})
            }
            _ => Value::Null,
        };
        let result = result.unwrap_or_else(|| Ok(usual())).map(|value| value.to_string().into_bytes());
        Box::pin(async move { result })
    }
}

fn failing(kind: &'static str) -> FilterResult {
    Err(CallError::Failed(Failure::new(kind, format!("by {kind}"))))
}

fn candidate(name: &str, version: &str) -> Candidate {
    let node = json!({"metadata": {"name": name, "resourceVersion": version, "managedFields": [{"manager": "m"}]}});
    Candidate {
        node: Arc::new(serde_json::from_value::<Node>(node).unwrap()),
        load: Load { pods: 3, ..Load::default() },
    }
}

fn request(names: &[(&str, &str)], wanted: usize, nodes: usize) -> PluginRequest {
    let candidates = names.iter().map(|(name, version)| candidate(name, version)).collect();
    PluginRequest { pod: "{}".into(), candidates, wanted, nodes }
}

/// A scripted guest, and its clock.
fn guest(plugin: WasmPlugin) -> (Vec<Guest>, Arc<Script>, Arc<machinery_env::ManualClock>) {
    let script = Arc::new(Script::default());
    let (env, clock) = Env::seeded(1, Timestamp::UNIX_EPOCH);
    let guest = Guest::new(Arc::new(plugin), Arc::new(Scripted(script.clone())), env, Arc::new(Metrics::default()));
    (vec![guest], script, clock)
}

fn functions(script: &Script) -> Vec<&'static str> {
    let calls = std::mem::take(&mut *script.calls.lock().unwrap());
    calls.into_iter().map(|(_, function, _)| function.rsplit('.').next().unwrap()).collect()
}

#[test]
fn calls_are_those_of_the_world() {
    let wit = include_str!("../../wit/plugin.wit");
    for call in [wire::OPEN, wire::SET_NODES, wire::REMOVE_NODES, wire::FILTER, wire::SCORE] {
        assert!(wit.contains(&format!("    {}: ", call.rsplit('.').next().unwrap())), "{call}");
    }
    assert!(wit.starts_with(&format!("package {}", wire::INTERFACE.replace("/plugin", ""))));
}

#[tokio::test]
async fn nodes_are_sent_once() {
    let (guests, script, _) = guest(plugin());
    let two = request(&[("a", "1"), ("b", "1")], 10, 2);
    call_plugins(&guests, &two).await.unwrap();
    let sent = script.calls.lock().unwrap()[1].2.clone();
    assert_eq!(sent["nodes"][0]["name"], "a");
    let object: Value = serde_json::from_str(sent["nodes"][0]["object"].as_str().unwrap()).unwrap();
    assert_eq!(
        object["metadata"],
        json!({"name": "a", "resourceVersion": "1"}),
        "whole, without whose fields are whose"
    );
    assert_eq!(functions(&script), ["open", "set-nodes", "filter", "score"]);
    call_plugins(&guests, &two).await.unwrap();
    assert_eq!(functions(&script), ["filter", "score"]);
    // One node has changed; a single feasible node isn't scored.
    script
        .answers
        .lock()
        .unwrap()
        .push_back(Ok(json!({"ok": [{"candidate": 1, "reason": "no", "unresolvable": false}]})));
    call_plugins(&guests, &request(&[("a", "2"), ("b", "1")], 10, 2)).await.unwrap();
    assert_eq!(script.calls.lock().unwrap()[0].2["nodes"].as_array().unwrap().len(), 1);
    assert_eq!(functions(&script), ["set-nodes", "filter"]);
    // An instance that caches more nodes than exist drops the others.
    call_plugins(&guests, &request(&[("c", "1")], 10, 2)).await.unwrap();
    assert_eq!(functions(&script), ["set-nodes", "remove-nodes", "filter"]);
}

#[tokio::test]
async fn many_nodes_are_sent_in_parts() {
    let (guests, script, _) = guest(plugin());
    let mut many = request(&[("a", "1"), ("b", "1"), ("c", "1")], 3, 3);
    for candidate in &mut many.candidates[..2] {
        let labels = [("long".to_owned(), "x".repeat(600 << 10))].into();
        Arc::make_mut(&mut candidate.node).metadata.labels = Some(labels);
    }
    call_plugins(&guests, &many).await.unwrap();
    assert_eq!(functions(&script), ["open", "set-nodes", "set-nodes", "set-nodes", "filter", "score"]);
}

#[tokio::test]
async fn nodes_are_filtered_until_enough_are_feasible() {
    let (guests, script, _) = guest(plugin());
    let refused = json!({"ok": [{"candidate": 0, "reason": "full", "unresolvable": true}, {"candidate": 1, "reason": "full", "unresolvable": false}]});
    let answers = [Ok(refused), Ok(json!({"ok": []})), Ok(json!({"ok": [7, 100]}))];
    script.answers.lock().unwrap().extend(answers);
    let names = [("a", "1"), ("b", "1"), ("c", "1"), ("d", "1"), ("e", "1")];
    let answers = call_plugins(&guests, &request(&names, 2, 5)).await.unwrap();
    assert_eq!(functions(&script), ["open", "set-nodes", "filter", "set-nodes", "filter", "score"]);
    assert_eq!(answers.candidates.iter().map(String::as_str).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    let verdicts = answers.verdicts(&[guests[0].plugin.clone()]);
    let refused = |unresolvable| Verdict::Refused { by: "P", why: Some("full".into()), unresolvable };
    assert_eq!((verdicts.of("a"), verdicts.of("b")), (Some(&refused(true)), Some(&refused(false))));
    assert_eq!(
        (verdicts.of("c"), verdicts.of("d"), verdicts.of("e")),
        (Some(&Verdict::Fits(14)), Some(&Verdict::Fits(200)), None)
    );
    let text = serde_json::to_string(&answers).unwrap();
    assert_eq!(serde_json::from_str::<Answers>(&text).unwrap(), answers, "what was kept says the same");
}

#[tokio::test]
async fn a_failed_plugin_is_ignored_or_fails_the_pod() {
    let names = [("a", "1"), ("b", "1")];
    let cases: [(FilterResult, &str); 8] = [
        (failing("trap"), "by trap"),
        (Ok(json!({"err": "it\nbroke"})), "it broke"),
        (Ok(json!({"ok": [{"candidate": 2, "reason": "x", "unresolvable": false}]})), "candidate 2 is refused, of 2"),
        (
            Ok(json!({"ok": [{"candidate": 0, "reason": " ", "unresolvable": false}]})),
            "candidate 0 is refused for no reason",
        ),
        (
            Ok(
                json!({"ok": [{"candidate": 0, "reason": "x", "unresolvable": false}, {"candidate": 0, "reason": "x", "unresolvable": false}]}),
            ),
            "candidate 0 is refused twice",
        ),
        (Ok(json!("ok")), "an answer that can't be understood: "),
        (Ok(json!({"ok": [1]})), "an answer that can't be understood: "),
        (Err(CallError::Arguments("wanted a list".into())), "it rejects its arguments: wanted a list"),
    ];
    for (result, why) in cases {
        let (guests, script, _) = guest(plugin());
        script.answers.lock().unwrap().extend([result.clone(), result.clone()]);
        let failed = call_plugins(&guests, &request(&names, 2, 2)).await.unwrap_err();
        assert!(failed.starts_with(&format!("running \"P\" filter plugin: {why}")), "{failed}");
        let (guests, script, _) = guest(WasmPlugin { failure_policy: FailurePolicy::Ignore, ..plugin() });
        script.answers.lock().unwrap().extend([result.clone(), result]);
        let answers = call_plugins(&guests, &request(&names, 2, 2)).await.unwrap();
        let [failed] = &answers.failed[..] else { panic!("{answers:?}") };
        assert!(failed.why.starts_with(why) && failed.extension_point == "Filter" && failed.was_called, "{failed:?}");
        assert_eq!(answers.verdicts(&[guests[0].plugin.clone()]).fitting().len(), 2);
    }
    let scores = [
        (json!([1]), "1 scores are given for 2 candidates"),
        (json!([0, 101]), "returns an invalid score 101, it should in the range of [0, 100] after normalizing"),
    ];
    for (result, why) in scores {
        let (guests, script, _) = guest(plugin());
        script.answers.lock().unwrap().extend([Ok(json!({"ok": []})), Ok(json!({"ok": result}))]);
        let failed = call_plugins(&guests, &request(&names, 2, 2)).await.unwrap_err();
        assert_eq!(failed, format!("running Score plugins: plugin \"P\" failed with: {why}"));
    }
}

#[tokio::test]
async fn a_lost_instance_is_reopened() {
    let (guests, script, _) = guest(plugin());
    let one = request(&[("a", "1")], 1, 1);
    call_plugins(&guests, &one).await.unwrap();
    functions(&script);
    // The instance was idle for a minute and has ended, so the handle is invalid.
    script.answers.lock().unwrap().push_back(Err(CallError::Arguments("no resource".into())));
    call_plugins(&guests, &one).await.unwrap();
    assert_eq!(functions(&script), ["filter", "open", "set-nodes", "filter"]);
    // An instance that trapped is replaced.
    script.answers.lock().unwrap().push_back(failing("trap"));
    call_plugins(&guests, &one).await.unwrap_err();
    call_plugins(&guests, &one).await.unwrap();
    assert_eq!(functions(&script), ["filter", "open", "set-nodes", "filter"]);
    // An instance with a malformed answer is called again.
    script.answers.lock().unwrap().push_back(Ok(json!(7)));
    call_plugins(&guests, &one).await.unwrap_err();
    call_plugins(&guests, &one).await.unwrap();
    assert_eq!(functions(&script), ["filter", "filter"]);
}

#[tokio::test]
async fn repeated_failures_back_off() {
    let (guests, script, clock) = guest(plugin());
    let one = request(&[("a", "1")], 1, 1);
    script.answers.lock().unwrap().extend((0..12).map(|_| failing("trap")));
    let mut tries = 0;
    let mut rests = Vec::new();
    while rests.len() < 9 {
        let why = call_plugins(&guests, &one).await.unwrap_err();
        if why.ends_with("by trap") && !why.contains("left alone") {
            tries += 1;
            continue;
        }
        assert!(why.contains("3 failures in a row, the last: by trap") || tries > 3, "{why}");
        let mut rest = 0;
        while call_plugins(&guests, &one).await.is_err_and(|why| why.contains("left alone")) {
            clock.advance(Duration::from_secs(1));
            rest += 1;
        }
        rests.push(rest);
        tries += 1;
    }
    assert_eq!(rests, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    functions(&script);
    // A plugin that works again is called as before.
    clock.advance(Duration::from_secs(60));
    for _ in 0..3 {
        call_plugins(&guests, &one).await.unwrap();
    }
}

#[tokio::test]
async fn a_failed_load_is_retried() {
    let (guests, script, _) = guest(plugin());
    *script.refuses_to_load.lock().unwrap() = 1;
    let one = request(&[("a", "1")], 1, 1);
    assert_eq!(call_plugins(&guests, &one).await.unwrap_err(), "running \"P\" filter plugin: no such file");
    call_plugins(&guests, &one).await.unwrap();
}

#[test]
fn a_decision_uses_the_verdicts_of_plugins() {
    let mut snapshot = Snapshot::default();
    for name in ["a", "b", "c"] {
        snapshot.set_node(crate::tests::node(name, json!({})));
    }
    let profile = Profile { wasm: vec![Arc::new(plugin())], ..Profile::default() };
    let pod = crate::tests::pod("p", json!({}));
    assert_eq!(feasible(&snapshot, &pod, &profile, 0), ["a", "b", "c"]);
    let refused = |reason: &str| NodeRejection { plugin: "P".into(), reason: reason.into(), unresolvable: true };
    let mut answers = Answers {
        candidates: ["a", "b", "c"].map(str::to_owned).into(),
        refused: [("c".to_owned(), refused("too loud"))].into(),
        scores: vec![Scored { plugin: "P".into(), nodes: [("a".to_owned(), 1), ("b".to_owned(), 2)].into() }],
        failed: Vec::new(),
    };
    let decide =
        |answers: &Answers| decide_with(&snapshot, &pod, &profile, 0, 0, Some(&answers.verdicts(&profile.wasm)));
    assert!(matches!(decide(&answers), Decision::Node { name, .. } if name == "b"));
    let explanation = crate::explain::explain_with(&snapshot, &pod, &profile, Some(&answers));
    assert_eq!(explanation.node.as_deref(), Some("b"));
    let of = |name: &str| explanation.nodes.iter().find(|node| node.name == name).unwrap();
    assert_eq!(
        of("c").refused.as_ref().map(|by| (by.plugin, by.reasons.clone())),
        Some(("P", vec!["too loud".to_owned()]))
    );
    let score = of("b").scores.last().unwrap();
    assert_eq!((score.plugin, score.score, score.weighted), ("P", 2, 4));
    answers.refused.extend([("a".to_owned(), refused("too hot")), ("b".to_owned(), refused("too loud"))]);
    let Decision::Unschedulable { message, refused_by, .. } = decide(&answers) else { panic!() };
    assert!(message.starts_with("0/3 nodes are available: 1 too hot, 2 too loud."), "{message}");
    assert!(refused_by.contains("P") && profile.may_fit_after(&Event::Namespace, &pod, &refused_by));
    assert_eq!(crate::explain::explain_with(&snapshot, &pod, &profile, Some(&answers)).message, Some(message));
}

fn started(server: &Server, plugin: WasmPlugin, extenders: Vec<ExtenderConfig>) -> (Arc<Script>, CancellationToken) {
    let (script, stop) = (Arc::new(Script::default()), CancellationToken::new());
    let plugged = Profile { wasm: vec![Arc::new(plugin)], ..Profile::named("plugged") };
    let config = Config {
        profiles: vec![Profile::default(), plugged],
        plugins: Some(Arc::new(Scripted(script.clone()))),
        extenders,
        ..Config::default()
    };
    tokio::spawn(run(server.client(), Env::real(), config, stop.clone()));
    (script, stop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_is_called_for_its_profile_alone() {
    let server = Server::new();
    ["n1", "n2"].into_iter().for_each(|name| server.write("nodes", shell_tests::node(name, "8")));
    let (script, stop) = started(&server, plugin(), Vec::new());
    let refuse = |reason: &str| json!({"candidate": 0, "reason": reason, "unresolvable": true});
    let both = json!({"ok": [refuse("too cold"), {"candidate": 1, "reason": "too cold", "unresolvable": true}]});
    script.by_pod.lock().unwrap().push(("\"cold\"", Ok(both)));
    script.by_pod.lock().unwrap().push(("\"trapped\"", failing("trap")));
    server.write("pods", shell_tests::pod("cold", "plugged", "1"));
    server.until(|state| !state.status_writes.is_empty()).await;
    let message = |state: &Value| state["status"]["conditions"][0]["message"].as_str().unwrap().to_owned();
    assert!(
        message(&server.status_writes()[0]).starts_with("0/2 nodes are available: 2 too cold."),
        "{}",
        message(&server.status_writes()[0])
    );
    server.write("pods", shell_tests::pod("trapped", "plugged", "1"));
    server.write("pods", shell_tests::pod("free", "default-scheduler", "1"));
    server.write("pods", shell_tests::pod("well", "plugged", "1"));
    server.until(|state| ["free", "well"].iter().all(|name| state.pod(name)["spec"]["nodeName"].is_string())).await;
    server.until(|state| state.status_writes.iter().any(|pod| pod["metadata"]["name"] == "trapped")).await;
    let written = server.status_writes().into_iter().find(|pod| pod["metadata"]["name"] == "trapped").unwrap();
    assert_eq!(written["status"]["conditions"][0]["reason"], "SchedulerError");
    assert_eq!(message(&written), "running \"P\" filter plugin: by trap");
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_victim_is_deleted_where_a_plugin_rejects_the_pod() {
    let server = Server::new();
    ["n1", "n2"].into_iter().for_each(|name| server.write("nodes", shell_tests::node(name, "1")));
    for (name, node) in [("low-1", "n1"), ("low-2", "n2")] {
        let mut pod = shell_tests::pod(name, "default-scheduler", "1");
        pod["spec"]["nodeName"] = node.into();
        server.write("pods", pod);
    }
    let (script, stop) = started(&server, plugin(), Vec::new());
    // Of two candidates the better one is rejected, even without the victims.
    script
        .by_pod
        .lock()
        .unwrap()
        .push(("\"high\"", Ok(json!({"ok": [{"candidate": 0, "reason": "too cold", "unresolvable": true}]}))));
    let mut pod = shell_tests::pod("high", "plugged", "1");
    pod["spec"]["priority"] = 10.into();
    server.write("pods", pod);
    let call = |script: &Script| {
        script.calls.lock().unwrap().iter().find(|(_, function, _)| *function == wire::FILTER).cloned()
    };
    server.until(|state| state.status_writes.iter().any(|pod| pod["status"]["nominatedNodeName"].is_string())).await;
    let (_, _, call) = call(&script).unwrap();
    let (refused, left) = (call["candidates"][0]["node"].clone(), call["candidates"][1]["node"].clone());
    assert_eq!(call["candidates"][0]["pods"], 0, "as if they were gone");
    let writes = server.status_writes();
    let nominated = writes.iter().find(|pod| pod["status"]["nominatedNodeName"].is_string()).unwrap();
    assert_eq!(nominated["status"]["nominatedNodeName"], left);
    assert_ne!(left, refused);
    stop.cancel();
}
