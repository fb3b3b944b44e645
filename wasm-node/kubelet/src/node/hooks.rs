//! Hooks and probes that run commands, on a node with the simulated runtime.

use machinery_env::Env;
use serde_json::{Value, json};

use super::lifecycle::{Node, is_ready};

fn spec(node: &Node, name: &str, more: Value) -> Value {
    let mut container = json!({"name": "c", "image": node.image(name, "command")});
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"containers": [container], "terminationGracePeriodSeconds": 10})
}

/// A tool of the simulated toolbox; its arguments are its script.
fn exec(words: &[&str]) -> Value {
    let command = [&["true"], words].concat();
    json!({"exec": {"command": command}})
}

fn state(status: &Value) -> &Value {
    &status["containerStatuses"][0]["state"]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_once_its_hook_has_ended() {
    let node = Node::start().await;
    let hook = |words: &[&str]| json!({"lifecycle": {"postStart": exec(words)}});
    node.run("good", "command", &spec(&node, "good", hook(&["after=300"])));
    node.run("bad", "command", &spec(&node, "bad", hook(&["after=10", "exit=3", "says=oh"])));
    node.run("endless", "command", &spec(&node, "endless", hook(&[])));
    let waits = |status: &Value| state(status)["waiting"]["reason"] == "ContainerCreating";
    let status = node.until("good", "waiting for its hook", waits).await;
    assert_eq!((&status["phase"], is_ready(&status)), (&json!("Pending"), false), "{status}");
    let status = node.until("good", "ready", is_ready).await;
    assert!(state(&status)["running"]["startedAt"].is_string(), "{status}");
    let failed = |status: &Value| state(status)["waiting"]["reason"] == "PostStartHookError";
    let status = node.until("bad", "failed by its hook", failed).await;
    let message = state(&status)["waiting"]["message"].as_str().unwrap();
    assert_eq!(
        message,
        "Exec lifecycle hook ([true after=10 exit=3 says=oh]) for Container \"c\" in Pod \"bad_default(uid-bad)\" failed \
         - error: command 'true after=10 exit=3 says=oh' exited with 3: , message: \"oh\\n\""
    );
    let last = &status["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 143, "{status}");
    let again = |status: &Value| status["containerStatuses"][0]["restartCount"].as_u64() >= Some(1);
    node.until("bad", "started again", again).await;
    let status = node.until("endless", "waiting for its hook", waits).await;
    assert_eq!(status["containerStatuses"][0]["started"], false, "{status}");
    // An endless hook doesn't delay a deletion.
    node.delete("endless").await;
    let events = node.api.until("told", |cluster| {
        let failed = cluster.events.iter().filter(|reason| *reason == "FailedPostStartHook").count();
        (failed >= 2).then(|| cluster.events.clone())
    });
    events.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_runs_a_command() {
    let node = Node::start().await;
    let probe = |kind: &str, words: &[&str], more: Value| {
        let mut probe = exec(words);
        probe.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({kind: probe})
    };
    let each = json!({"periodSeconds": 1, "failureThreshold": 1});
    node.run("well", "command", &spec(&node, "well", probe("readinessProbe", &["after=0"], each.clone())));
    node.run("ill", "command", &spec(&node, "ill", probe("readinessProbe", &["exit=1", "after=0"], each.clone())));
    node.run("slow", "command", &spec(&node, "slow", probe("livenessProbe", &[], each.clone())));
    let missing =
        json!({"livenessProbe": {"exec": {"command": ["nonesuch"]}, "periodSeconds": 1, "failureThreshold": 1}});
    node.run("missing", "command", &spec(&node, "missing", missing));
    node.until("well", "ready", is_ready).await;
    let restarted = |status: &Value| status["containerStatuses"][0]["restartCount"].as_u64() >= Some(1);
    node.until("slow", "killed by its probe", restarted).await;
    let unready = |status: &Value| state(status)["running"].is_object() && !is_ready(status);
    node.until("ill", "not ready", unready).await;
    // A failed exec isn't a failure of the container.
    let now = node.until("missing", "running", |status| state(status)["running"].is_object()).await;
    assert_eq!(now["containerStatuses"][0]["restartCount"], 0, "{now}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_before_the_stop_is_waited_for_within_the_grace() {
    let (node, env) = (Node::start().await, Env::real());
    for (name, words) in [("waits", &["after=300"][..]), ("fails", &["after=0", "exit=1"])] {
        node.run(name, "command", &spec(&node, name, json!({"lifecycle": {"preStop": exec(words)}})));
        node.until(name, "ready", is_ready).await;
        let began = env.elapsed();
        node.delete(name).await;
        let took = (env.elapsed() - began).as_millis();
        assert!((if name == "waits" { 300 } else { 0 }..9000).contains(&took), "{name}: {took} ms");
    }
    node.api.until("told", |cluster| cluster.events.contains(&"FailedPreStopHook".to_owned()).then_some(())).await;
}
