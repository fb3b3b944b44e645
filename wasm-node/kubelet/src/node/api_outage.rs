//! A node whose API server is unavailable for minutes: what continues meanwhile, and the writes afterwards. On a paused clock.

use std::time::Duration;

use machinery_env::TokioClock;
use machinery_serve::net::Protocol;
use serde_json::{Value, json};

use super::lifecycle::{Node, is_ready};

/// Time for the writes after the API server is back: longer than any delay between two tries.
const SETTLED: Duration = Duration::from_secs(60);

fn container(status: &Value) -> &Value {
    &status["containerStatuses"][0]
}

fn restarts(status: &Value) -> u64 {
    container(status)["restartCount"].as_u64().unwrap_or(0)
}

/// The written statuses of a pod, from that index on.
fn written(node: &Node, name: &str, from: usize) -> Vec<Value> {
    let of = |cluster: &super::lifecycle::Cluster| {
        let statuses = cluster.written.iter().filter(|(of, _)| of == name).map(|(_, status)| status.clone());
        statuses.skip(from).collect()
    };
    node.api.with(|cluster| of(cluster))
}

fn spec(node: &Node, name: &str, script: &str, more: Value) -> Value {
    let mut container = json!({"name": "c", "image": node.image(name, script)});
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"containers": [container], "terminationGracePeriodSeconds": 10})
}

async fn start() -> Node {
    let node = Node::with("127.66.0.0/24", TokioClock::env(7).0).await;
    let config = json!({"metadata": {"name": "config", "namespace": "default", "uid": "1", "resourceVersion": "1"}, "data": {"a": "b"}});
    node.object("/api/v1/namespaces/default/configmaps", config);
    let secret = json!({"metadata": {"name": "pull", "namespace": "default", "uid": "2", "resourceVersion": "1"}, "type": "Opaque"});
    node.object("/api/v1/namespaces/default/secrets", secret);
    node
}

#[tokio::test(start_paused = true)]
async fn containers_crash_and_restart_while_the_api_is_away() {
    let node = start().await;
    let env = json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "config", "key": "a"}}}]});
    let mut crashes = spec(&node, "crashes", "command exit=3 after=5000", env);
    crashes["imagePullSecrets"] = json!([{"name": "pull"}]);
    node.run("crashes", "command exit=3 after=5000", &crashes);
    // Passes for its first minute, and fails from then on.
    let probe = json!({"livenessProbe": {"exec": {"command": ["true", "exit=1", "after=0"]}, "periodSeconds": 30, "failureThreshold": 2}});
    node.run("probed", "command", &spec(&node, "probed", "command", probe));
    node.run("steady", "server status=204", &json!({}));
    node.run("ends", "command after=90000", &json!({"restartPolicy": "Never"}));
    for (name, what) in [("steady", "ready"), ("probed", "ready"), ("ends", "ready")] {
        node.until(name, what, is_ready).await;
    }
    node.until("crashes", "crashed", |status| restarts(status) >= 1).await;
    let before: Vec<usize> = ["crashes", "probed", "steady", "ends"].map(|name| written(&node, name, 0).len()).into();
    let known = ["crashes", "probed"].map(|name| restarts(written(&node, name, 0).last().unwrap()));

    node.set_unavailable(true);
    node.shared.parts.env.sleep(Duration::from_secs(300)).await;
    assert_eq!(written(&node, "crashes", before[0]), Vec::<Value>::new(), "nobody is told");
    node.set_unavailable(false);
    node.shared.parts.env.sleep(SETTLED).await;

    for (index, name) in ["crashes", "probed"].into_iter().enumerate() {
        let statuses = written(&node, name, before[index]);
        assert!(!statuses.is_empty() && statuses.len() <= 8, "{name}: {} statuses", statuses.len());
        assert!(statuses.windows(2).all(|two| restarts(&two[0]) <= restarts(&two[1])), "{name}: {statuses:#?}");
        let last = statuses.last().unwrap();
        // With back-off, the starts after a crash are 10, 20, 40, 80 and 160 s apart; the probe kills every 60 s.
        let more = restarts(last) - known[index];
        assert!((3..=5).contains(&more), "{name}: {more} starts more, {last}");
        assert!(container(last)["lastState"]["terminated"]["exitCode"].is_u64(), "{name}: {last}");
    }
    assert_eq!(written(&node, "steady", before[2]), Vec::<Value>::new(), "of it there is nothing to tell");
    let statuses = written(&node, "ends", before[3]);
    assert_eq!(statuses.len(), 1, "once: {statuses:#?}");
    assert_eq!(
        (&statuses[0]["phase"], &container(&statuses[0])["state"]["terminated"]["exitCode"]),
        (&json!("Succeeded"), &json!(0))
    );
}

#[tokio::test(start_paused = true)]
async fn pending_deletions_run_after_an_outage() {
    let node = start().await;
    for name in ["deleted", "removed", "kept"] {
        node.run(name, "server status=204", &spec(&node, name, "server status=204", json!({})));
        node.until(name, "ready", is_ready).await;
    }
    let kept = written(&node, "kept", 0).len();
    node.set_unavailable(true);
    node.shared.parts.env.sleep(Duration::from_secs(120)).await;
    node.run("new", "server status=204", &json!({}));
    node.api.with(|cluster| {
        cluster.pods.remove("removed");
        let deleted = cluster.pods.get_mut("deleted").unwrap();
        deleted["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:02:00Z");
        deleted["metadata"]["deletionGracePeriodSeconds"] = json!(10);
    });
    node.shared.parts.env.sleep(Duration::from_secs(60)).await;
    node.set_unavailable(false);
    node.until("new", "ready", is_ready).await;
    node.api.until("deleted", |cluster| (!cluster.pods.contains_key("deleted")).then_some(())).await;
    let last = written(&node, "deleted", 0).pop().unwrap();
    assert!(container(&last)["state"]["terminated"].is_object(), "its end is told: {last}");
    let gone = || !node.dir.path().join("node/pods/uid-removed").exists();
    node.api.until("removed", |_| gone().then_some(())).await;
    assert_eq!(written(&node, "kept", kept), Vec::<Value>::new());
}

/// The number of pods that listen on an address of the node.
fn served(node: &Node) -> usize {
    (1..20).filter(|last| node.network.find([127, 66, 0, *last].into(), Protocol::Tcp, 80).is_some()).count()
}

#[tokio::test(start_paused = true)]
async fn static_pods_begin_crash_and_end_while_the_api_is_away() {
    let node = Node::with_manifests("127.66.0.0/24", TokioClock::env(7).0).await;
    let manifest = |name: &str| node.dir.path().join(format!("manifests/{name}.yaml"));
    let write = |name: &str, script: &str| {
        let mut spec = spec(&node, name, script, json!({}));
        spec["enableServiceLinks"] = json!(false);
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        std::fs::write(manifest(name), pod.to_string()).unwrap();
    };
    write("first", "server status=204");
    write("crashes", "command exit=3 after=5000");
    node.until("first-n", "ready", is_ready).await;
    node.until("crashes-n", "crashed", |status| restarts(status) >= 1).await;
    assert_eq!(served(&node), 1);

    node.set_unavailable(true);
    write("second", "server status=204");
    node.shared.parts.env.sleep(Duration::from_secs(60)).await;
    assert_eq!(served(&node), 2, "a manifest begins without the API");
    std::fs::remove_file(manifest("first")).unwrap();
    node.shared.parts.env.sleep(Duration::from_secs(60)).await;
    assert_eq!(served(&node), 1, "and one that is gone ends");
    let mirrors: Vec<String> = node.api.with(|cluster| cluster.pods.keys().cloned().collect());
    assert_eq!(mirrors, ["crashes-n", "first-n"], "nobody is told");

    node.set_unavailable(false);
    node.until("second-n", "ready", is_ready).await;
    node.api.until("the other mirror goes", |cluster| (!cluster.pods.contains_key("first-n")).then_some(())).await;
    // The starts are 10, 20, 40 and 80 s apart.
    node.until("crashes-n", "started again and again", |status| restarts(status) >= 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_expires_during_hours_stops_no_restart() {
    let node = start().await;
    let sources = json!([{"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]);
    let mounts = json!({"volumeMounts": [{"name": "token", "mountPath": "/token"}]});
    let mut ends = spec(&node, "ends", "command exit=3 after=900000", mounts);
    ends["volumes"] = json!([{"name": "token", "projected": {"sources": sources}}]);
    ends["imagePullSecrets"] = json!([{"name": "pull"}]);
    node.run("ends", "command exit=3 after=900000", &ends);
    node.until("ends", "ready", is_ready).await;
    node.set_unavailable(true);
    // A token without an expiration is refreshed after 48 minutes.
    node.shared.parts.env.sleep(Duration::from_secs(4 * 3600)).await;
    let token = node.dir.path().join("node/pods/uid-ends/volumes/token/token");
    assert_eq!(std::fs::read_to_string(&token).unwrap(), "token-1");
    node.set_unavailable(false);
    node.until("ends", "restarted every 15 minutes", |status| restarts(status) >= 14).await;
    let refreshed = async {
        while std::fs::read_to_string(&token).unwrap() == "token-1" {
            node.shared.parts.env.sleep(Duration::from_secs(1)).await;
        }
    };
    node.shared.parts.env.timeout(Duration::from_secs(300), refreshed).await.expect("a new token follows");
}
