//! `wasi:keyvalue` from a guest: the sample `counter`, with and without the grant, alone and concurrently.

use runtime_api::{Grants, KeyvalueOwner, Runtime as _};
use serde_json::{Value, json};

use super::plugins::call;
use super::*;

fn granted(spec: &mut ContainerSpec, namespace: &str) {
    spec.grants = Grants::parse("keyvalue", &crate::host::optional()).unwrap();
    spec.keyvalue = Some(KeyvalueOwner { namespace: namespace.into(), uid: "1".into(), cluster: None });
    spec.caller.namespace = namespace.into();
}

async fn counter(bench: &Bench, namespace: &str) -> PluginServer {
    let loaded = bench.load_sample("counter", Metering::Epochs).await;
    bench.container(loaded, |spec| granted(spec, namespace)).0.serve_plugin().unwrap()
}

async fn ask(server: &PluginServer, function: &str, arguments: Value) -> Value {
    let answer = call(server, &format!("coracle:samples/counter/{function}"), arguments).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pods_of_a_namespace_share_its_data() {
    let bench = Bench::new();
    let loaded = bench.load_sample("counter", Metering::Epochs).await;
    let error = bench.engine.container(loaded.clone(), bench.spec()).unwrap_err().to_string();
    assert!(error.contains("is not granted") && error.contains("\"keyvalue\""), "{error}");
    let (one, two, theirs) = (counter(&bench, "a").await, counter(&bench, "a").await, counter(&bench, "b").await);
    let adds = (0..40).map(|n| ask(if n % 2 == 0 { &one } else { &two }, "add", json!({"name": "n", "by": 1})));
    let mut numbers: Vec<i64> =
        futures::future::join_all(adds).await.iter().map(|answer| answer["ok"].as_i64().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=40).collect::<Vec<_>>());
    let scores = (0..40).map(|n| ask(&one, "highest", json!({"name": "best", "score": n * 7 % 41})));
    futures::future::join_all(scores).await;
    assert_eq!(ask(&two, "read", json!({"names": ["best", "n", "none"]})).await, json!({"ok": ["40", "40", null]}));
    assert_eq!(ask(&theirs, "names", json!({"bucket": ""})).await, json!({"ok": []}));
    // A removed namespace's data is gone, also for its running pods.
    let owner = KeyvalueOwner { namespace: "a".into(), uid: "1".into(), cluster: None };
    bench.engine.remove_keyvalue(&owner).await.unwrap();
    let gone = ask(&one, "add", json!({"name": "n", "by": 1})).await;
    assert_eq!(gone, json!({"err": "the namespace was deleted"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_without_a_namespace_is_refused_at_the_call() {
    let bench = Bench::new();
    let loaded = bench.load_sample("counter", Metering::Epochs).await;
    let (container, _) = bench.container(loaded, |spec| {
        granted(spec, "a");
        spec.keyvalue = None;
    });
    let server = container.serve_plugin().unwrap();
    assert_eq!(ask(&server, "names", json!({"bucket": ""})).await, json!({"err": "Error::AccessDenied"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_the_containers_memory_while_it_waits() {
    let bench = Bench::new();
    let loaded = bench.load_sample("counter", Metering::Epochs).await;
    let (container, _) = bench.container(loaded, |spec| granted(spec, "a"));
    let server = container.serve_plugin().unwrap();
    let value = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, vec![7; 500_000]);
    let kept = ask(&server, "keep", json!({"bucket": "", "key": "k", "value": value})).await;
    assert_eq!(kept, json!({"ok": null}));
    assert_eq!(container.shared.ledger.used(runtime_api::ledger::Resource::Memory), 0, "given back");
    let peak = container.shared.ledger.peak(runtime_api::ledger::Resource::Memory);
    assert!(peak > 500_000, "{peak}");
}
