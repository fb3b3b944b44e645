//! Extenders over loopback, and the effect of their answers on decisions.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use machinery_env::Env;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::client::{ByNode, Extender, process_preemption};
use super::{EXTENDER, ExtenderConfig, Verdict, Verdicts, Victims, wire};
use crate::decide::{Decision, decide_with, feasible};
use crate::plugins::Profile;
use crate::pod::PodInfo;
use crate::shell_tests::{self, Server};
use crate::snapshot::Snapshot;
use crate::tests::{node, pod};
use crate::{Config, run};

fn three() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for name in ["a", "b", "c"] {
        snapshot.set_node(node(name, json!({})));
    }
    snapshot
}

fn parse_filter_reply(answer: Value, by_name: bool) -> Result<wire::Filtered, String> {
    let candidates = ["a", "b", "c"].map(str::to_owned).into();
    wire::filtered(answer.to_string().as_bytes(), "http://e", by_name, &candidates)
}

#[test]
fn a_filter_reply_accepts_and_rejects_nodes() {
    let mut verdicts = Verdicts::new(["a", "b", "c"].map(str::to_owned));
    let answer = json!({"NodeNames": ["a"], "FailedNodes": {"b": "full", "c": "busy"}, "FailedAndUnresolvableNodes": {"c": "broken"}});
    verdicts.filter(parse_filter_reply(answer, true).unwrap());
    let refused =
        |why: &str, unresolvable| Some(Verdict::Refused { by: EXTENDER, why: Some(why.into()), unresolvable });
    assert_eq!(
        (verdicts.of("b").cloned(), verdicts.of("c").cloned()),
        (refused("full", false), refused("broken", true))
    );
    // A rejected node stays rejected, and scores count for the accepted ones.
    verdicts.filter(parse_filter_reply(json!({"NodeNames": ["a", "b"]}), true).unwrap());
    verdicts.score(vec![("a".into(), 7), ("b".into(), 9), ("other".into(), 1)], 3);
    assert_eq!(verdicts.of("a"), Some(&Verdict::Fits(7 * 3 * 10)));
    assert_eq!(verdicts.fitting().into_iter().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn replies_are_parsed_as_go_parses_them() {
    let nodes = json!({"nodes": {"items": [{"metadata": {"name": "b"}, "spec": {"x": 1}}]}, "nodeNames": ["a"]});
    let left = |by_name| parse_filter_reply(nodes.clone(), by_name).unwrap().left.into_iter().collect::<Vec<_>>();
    assert_eq!((left(true), left(false)), (vec!["a".to_owned()], vec!["b".to_owned()]));
    assert_eq!(parse_filter_reply(json!(null), true).unwrap(), wire::Filtered::default());
    assert_eq!(parse_filter_reply(json!({"Error": "no"}), true).unwrap_err(), "no");
    let other = parse_filter_reply(json!({"NodeNames": ["d"]}), true).unwrap_err();
    assert_eq!(other, "extender \"http://e\" claims a filtered node \"d\" which is not found in the input node list");
    assert_eq!(wire::priorities(br#"[{"host":"a","score":2}]"#, "u").unwrap(), [("a".to_owned(), 2)]);
    assert_eq!(wire::bound(br#"{"Error":"taken"}"#, "u"), Err("taken".into()));
}

#[test]
fn a_decision_uses_the_verdicts_of_extenders() {
    let (snapshot, pod, profile) = (three(), pod("p", json!({"spec": {"priority": 5}})), Profile::default());
    assert_eq!(feasible(&snapshot, &pod, &profile, 0), ["a", "b", "c"]);
    let decide = |verdicts: &Verdicts| decide_with(&snapshot, &pod, &profile, 0, 0, Some(verdicts));
    let mut verdicts = Verdicts::new(["a", "b"].map(str::to_owned));
    verdicts.score(vec![("b".into(), 1)], 1);
    assert!(matches!(decide(&verdicts), Decision::Node { name, .. } if name == "b"));
    let answer =
        json!({"NodeNames": [], "FailedNodes": {"a": "too loud"}, "FailedAndUnresolvableNodes": {"b": "too hot"}});
    verdicts.filter(parse_filter_reply(answer, true).unwrap());
    let Decision::Unschedulable { message, refused_by, .. } = decide(&verdicts) else { panic!() };
    assert!(message.starts_with("0/3 nodes are available: 1 too hot, 1 too loud."), "{message}");
    assert!(refused_by.contains(EXTENDER));
    assert!(profile.may_fit_after(&crate::plugins::Event::Namespace, &pod, &refused_by));
}

/// Serves one request; without an answer the connection stays open.
async fn serve(mut stream: TcpStream, answer: impl Fn(&str, &Value) -> Option<(u16, String)>) -> std::io::Result<()> {
    let mut read = Vec::new();
    let head = loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    };
    let text = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    while read.len() < head + length.unwrap_or(0) {
        stream.read_buf(&mut read).await?;
    }
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    let body = serde_json::from_slice(&read[head..]).unwrap_or(Value::Null);
    let Some((code, reply)) = answer(&path, &body) else { return std::future::pending().await };
    let head = format!("HTTP/1.1 {code} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", reply.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(reply.as_bytes()).await
}

/// Listens on loopback. Returns the URL and the log of requests.
async fn extender<F>(answer: F) -> (String, Arc<Mutex<Vec<(String, Value)>>>)
where
    F: Fn(&str, &Value) -> Option<(u16, String)> + Clone + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/ext/", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let log = requests.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answer, log) = (answer.clone(), log.clone());
            tokio::spawn(serve(stream, move |path, body| {
                log.lock().unwrap().push((path.to_owned(), body.clone()));
                answer(path, body)
            }));
        }
    });
    (url, requests)
}

fn started(server: &Server, extenders: Vec<ExtenderConfig>) -> CancellationToken {
    let stop = CancellationToken::new();
    let config = Config { extenders, ..Config::default() };
    tokio::spawn(run(server.client(), Env::real(), config, stop.clone()));
    stop
}

fn config(url: &str) -> ExtenderConfig {
    ExtenderConfig {
        url_prefix: url.to_owned(),
        weight: 5,
        timeout: Duration::from_secs(10),
        ..ExtenderConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extenders_are_called_in_order_and_bind() {
    let server = Server::new();
    ["n1", "n2", "n3"].into_iter().for_each(|name| server.write("nodes", shell_tests::node(name, "2")));
    let bound = server.clone();
    let (url, requests) = extender(move |path, body| {
        Some((
            200,
            match path {
                "/ext/filter" => json!({"NodeNames": ["n1", "n2"], "FailedNodes": {"n3": "full"}}).to_string(),
                "/ext/prioritize" => json!([{"Host": "n1", "Score": 1}, {"Host": "n2", "Score": 10}]).to_string(),
                _ => {
                    bound.bind("p", body["Node"].as_str().unwrap());
                    "{}".to_owned()
                }
            },
        ))
    })
    .await;
    let verbs = ExtenderConfig {
        filter_verb: "filter".into(),
        prioritize_verb: "prioritize".into(),
        bind_verb: "bind".into(),
        node_cache_capable: true,
        ..config(&url)
    };
    // An ignorable extender that is down is skipped.
    let away = ExtenderConfig { filter_verb: "filter".into(), ignorable: true, ..config("http://127.0.0.1:1/") };
    let stop = started(&server, vec![verbs, away]);
    let mut pod = shell_tests::pod("p", "default-scheduler", "1");
    pod["spec"]["containers"][0]["env"] = json!([{"name": "WHOLE", "value": "yes"}]);
    server.write("pods", pod);
    server.until(|state| state.pod("p")["spec"]["nodeName"] == "n2").await;
    let requests = requests.lock().unwrap().clone();
    let paths: Vec<&str> = requests.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["/ext/filter", "/ext/prioritize", "/ext/bind"]);
    assert_eq!(requests[0].1["NodeNames"], json!(["n1", "n2", "n3"]));
    assert_eq!(requests[0].1["Pod"]["spec"]["containers"][0]["env"][0]["value"], "yes", "extenders get pods whole");
    assert_eq!((&requests[1].1["NodeNames"], &requests[1].1["Nodes"]), (&json!(["n1", "n2"]), &Value::Null));
    assert_eq!(requests[2].1, json!({"PodName": "p", "PodNamespace": "a", "PodUID": "p", "Node": "n2"}));
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_extender_delays_only_its_pods() {
    let server = Server::new();
    let mut node = shell_tests::node("n1", "64");
    node["status"]["allocatable"]["a.b/c"] = json!("100");
    server.write("nodes", node);
    let (url, requests) = extender(|_, _| None).await;
    let silent = ExtenderConfig {
        filter_verb: "filter".into(),
        managed_resources: ["a.b/c".to_owned()].into(),
        timeout: Duration::from_secs(3600),
        ..config(&url)
    };
    let stop = started(&server, vec![silent]);
    // More than the in-flight limits of questions and writes.
    for nth in 0..80 {
        let mut pod = shell_tests::pod(&format!("needs-{nth}"), "default-scheduler", "1m");
        pod["spec"]["containers"][0]["resources"]["requests"]["a.b/c"] = json!("1");
        server.write("pods", pod);
    }
    while requests.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    server.write("pods", shell_tests::pod("free", "default-scheduler", "1m"));
    server.until(|state| state.pod("free")["spec"]["nodeName"] == "n1").await;
    assert_eq!(requests.lock().unwrap()[0].1["Nodes"]["items"][0]["metadata"]["name"], "n1", "nodes are given whole");
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_extender_is_reported_and_retried() {
    let server = Server::new();
    server.write("nodes", shell_tests::node("n1", "2"));
    let (times, answers) = (Arc::new(Mutex::new(0)), json!({"NodeNames": ["n1"]}).to_string());
    let (url, _) = extender(move |_, _| {
        let mut times = times.lock().unwrap();
        *times += 1;
        Some(if *times == 1 { (503, String::new()) } else { (200, answers.clone()) })
    })
    .await;
    let failing = ExtenderConfig { filter_verb: "filter".into(), node_cache_capable: true, ..config(&url) };
    let stop = started(&server, vec![failing]);
    server.write("pods", shell_tests::pod("p", "default-scheduler", "1"));
    server.until(|state| state.pod("p")["spec"]["nodeName"] == "n1").await;
    server.until(|state| !state.status_writes.is_empty()).await;
    let writes = server.status_writes();
    let message = writes[0]["status"]["conditions"][0]["message"].as_str().unwrap();
    assert_eq!(writes[0]["status"]["conditions"][0]["reason"], "SchedulerError");
    assert_eq!(message, format!("failed filter with extender at URL {url}filter, code 503"));
    stop.cancel();
}

fn victims(of: &[(&str, &[&Arc<PodInfo>])]) -> ByNode {
    let of = of.iter().map(|(node, pods)| {
        ((*node).to_owned(), Victims { pods: pods.iter().map(|pod| Arc::clone(pod)).collect(), violations: 1 })
    });
    of.collect()
}

/// Runs the preempt verb with this answer on two nodes with a victim each.
async fn preempted(
    answer: Value,
    change: impl Fn(&mut ExtenderConfig),
) -> (Result<ByNode, String>, Vec<(String, Value)>, String) {
    let (url, requests) = extender(move |_, _| Some((200, answer.to_string()))).await;
    let mut config = ExtenderConfig { preempt_verb: "preempt".into(), ..config(&url) };
    change(&mut config);
    let (one, two, other) = (lower("one"), lower("two"), lower("other"));
    let there = [("a".to_owned(), vec![one.clone(), other]), ("b".to_owned(), vec![two.clone()])].into();
    let (pod, whole) = (pod("p", json!({})), json!({"metadata": {"name": "p"}}));
    let asking = [Extender::new(config, Env::real()).await.unwrap()];
    let look = |pod: &PodInfo| json!({"metadata": {"name": pod.key.name}});
    let left =
        process_preemption(&asking, (&pod, &whole), victims(&[("a", &[&one]), ("b", &[&two])]), &there, &look).await;
    let requests = requests.lock().unwrap().clone();
    (left, requests, url)
}

fn lower(name: &str) -> Arc<PodInfo> {
    Arc::new(pod(name, json!({"metadata": {"uid": format!("uid-{name}")}})))
}

#[tokio::test]
async fn an_extender_accepts_some_nodes_for_preemption() {
    let named = |left: &ByNode| -> Vec<(String, Vec<String>, i64)> {
        let names = |victims: &Victims| victims.pods.iter().map(|pod| pod.key.name.clone()).collect();
        left.iter().map(|(node, victims)| (node.clone(), names(victims), victims.violations)).collect()
    };
    // The extender may choose another pod of the node, and its own number of violations.
    let answer = json!({"NodeNameToMetaVictims": {"a": {"Pods": [{"UID": "uid-other"}], "NumPDBViolations": 2}}});
    let (left, requests, _) = preempted(answer.clone(), |config| config.node_cache_capable = true).await;
    assert_eq!(named(&left.unwrap()), [("a".to_owned(), vec!["other".to_owned()], 2)]);
    let (path, body) = &requests[0];
    assert_eq!(path, "/ext/preempt");
    let meta = json!({"a": {"Pods": [{"UID": "uid-one"}], "NumPDBViolations": 1}, "b": {"Pods": [{"UID": "uid-two"}], "NumPDBViolations": 1}});
    assert_eq!(
        *body,
        json!({"Pod": {"metadata": {"name": "p"}}, "NodeNameToVictims": null, "NodeNameToMetaVictims": meta})
    );
    // An extender without a node cache gets whole pods.
    let (left, requests, _) = preempted(answer, |_| {}).await;
    assert_eq!(left.unwrap().len(), 1);
    let whole = json!({"Pods": [{"metadata": {"name": "one"}}], "NumPDBViolations": 1});
    assert_eq!(
        (&requests[0].1["NodeNameToVictims"]["a"], &requests[0].1["NodeNameToMetaVictims"]),
        (&whole, &Value::Null)
    );
    let (left, ..) = preempted(json!({"nodeNameToMetaVictims": {"b": {"pods": [{"uid": "uid-two"}]}}}), |_| {}).await;
    assert_eq!(named(&left.unwrap()), [("b".to_owned(), vec!["two".to_owned()], 0)]);
    let (left, requests, _) =
        preempted(json!({}), |config| config.managed_resources = ["a.b/c".to_owned()].into()).await;
    assert_eq!((left.unwrap().len(), requests.len()), (2, 0), "one that isn't interested isn't asked");
    let (left, requests, _) = preempted(json!({}), |config| config.preempt_verb.clear()).await;
    assert_eq!((left.unwrap().len(), requests.len()), (2, 0), "nor one that has no say in it");
}

#[tokio::test]
async fn invalid_preemption_replies_are_rejected() {
    let meta = |node: &str, uids: &[&str]| {
        let pods: Vec<Value> = uids.iter().map(|uid| json!({"UID": uid})).collect();
        json!({"NodeNameToMetaVictims": {node: {"Pods": pods}}})
    };
    let strange = |url: &str| {
        format!(
            "extender: {url} claims to preempt pod (UID: &{{uid-two}}) on node: a, but the pod is not found on that node"
        )
    };
    fn unread(url: &str) -> String {
        let why = "invalid type: integer `7`, expected struct PreemptionResult at line 1 column 1";
        format!("the answer of extender {url:?} can't be read: {why}")
    }
    // An answer, the error if the extender isn't ignorable, and the number of candidate nodes if it is.
    type Why = fn(&str) -> String;
    let cases: [(Value, Why, usize); 6] = [
        (meta("a", &["uid-two"]), strange as Why, 2),
        (meta("c", &["uid-one"]), |_| "nodeinfo not found for node name \"c\"".into(), 2),
        (meta("a", &[]), |_| "expected at least one victim pod on node \"a\"".into(), 0),
        (json!({"NodeNameToMetaVictims": {"a": null}}), |_| "expected at least one victim pod on node \"a\"".into(), 0),
        (json!({"NodeNameToMetaVictims": {}}), |_| String::new(), 0),
        (json!(7), unread, 2),
    ];
    for (answer, why, left_without) in cases {
        let (left, _, url) = preempted(answer.clone(), |_| {}).await;
        match left {
            Err(error) => assert_eq!(error, why(&url), "{answer}"),
            Ok(left) => assert!(left.is_empty() && why(&url).is_empty(), "{answer}: {left:?}"),
        }
        let (left, ..) = preempted(answer.clone(), |config| config.ignorable = true).await;
        assert_eq!(left.unwrap().len(), left_without, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_victims_that_an_extender_accepts_are_deleted() {
    for (leaves, nominated) in [(json!({"Pods": [{"UID": "low-2"}]}), Some("n2")), (Value::Null, None)] {
        let server = Server::new();
        for (node, low) in [("n1", "low-1"), ("n2", "low-2")] {
            server.write("nodes", shell_tests::node(node, "1"));
            let mut pod = shell_tests::pod(low, "default-scheduler", "1");
            pod["spec"]["nodeName"] = node.into();
            server.write("pods", pod);
        }
        let answer = match &leaves {
            Value::Null => json!({"NodeNameToMetaVictims": {}}),
            victims => json!({"NodeNameToMetaVictims": {"n2": victims}}),
        };
        let (url, _) = extender(move |_, _| Some((200, answer.to_string()))).await;
        let preempts = ExtenderConfig { preempt_verb: "preempt".into(), ..config(&url) };
        let stop = started(&server, vec![preempts]);
        let mut high = shell_tests::pod("high", "default-scheduler", "1");
        high["spec"]["priority"] = 10.into();
        server.write("pods", high);
        server.until(|state| state.status_writes.iter().any(|pod| pod["metadata"]["name"] == "high")).await;
        let written = server.status_writes().into_iter().find(|pod| pod["metadata"]["name"] == "high").unwrap();
        assert_eq!(written["status"]["nominatedNodeName"].as_str(), nominated);
        let message = written["status"]["conditions"][0]["message"].as_str().unwrap().to_owned();
        let no_candidate = message.ends_with(" preemption: no candidate node for preemption");
        assert_eq!(no_candidate, nominated.is_none(), "{message}");
        stop.cancel();
    }
}
