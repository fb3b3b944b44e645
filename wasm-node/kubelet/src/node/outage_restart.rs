//! A node that is killed and started again while its API server is unavailable: what it runs from its checkpoint, and
//! what it does once the server answers. On a paused clock.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use machinery_env::{Env, TokioClock};
use machinery_serve::net::Protocol;
use serde_json::{Value, json};

use super::lifecycle::{Cluster, Node, Start, is_ready};

/// Time for the writes after the API server is back: longer than any delay between two tries.
const SETTLED: Duration = Duration::from_secs(60);
/// Time for the checkpoint of a change.
const RECORDED: Duration = Duration::from_secs(5);

fn of(env: &Env) -> Start {
    Start { checkpoint: true, ..Start::new(env.clone()) }
}

/// A start without an answer to the registration.
fn alone(env: &Env) -> Start {
    Start { registered: false, ..of(env) }
}

async fn start() -> (Node, Env) {
    let env = TokioClock::env(7).0;
    let node = Node::launch(of(&env), Default::default(), std::sync::Arc::new(tempfile::tempdir().unwrap())).await;
    let metadata = |name: &str| json!({"name": name, "namespace": "default", "uid": name, "resourceVersion": "1"});
    node.object("/api/v1/namespaces/default/configmaps", json!({"metadata": metadata("config"), "data": {"a": "b"}}));
    node.object(
        "/api/v1/namespaces/default/secrets",
        json!({"metadata": metadata("secret"), "data": {"k": "aGlkZGVu"}}),
    );
    let spec = json!({"clusterIP": "10.0.0.9", "ports": [{"port": 80}]});
    node.object("/api/v1/services", json!({"metadata": metadata("shop"), "spec": spec}));
    (node, env)
}

async fn pass(env: &Env, time: Duration) {
    env.sleep(time).await;
}

fn container_of(status: &Value) -> &Value {
    &status["containerStatuses"][0]
}

fn restarts(status: &Value) -> u64 {
    container_of(status)["restartCount"].as_u64().unwrap_or(0)
}

/// The statuses written for pods of that name, from that index on.
fn written(node: &Node, name: &str, from: usize) -> Vec<Value> {
    let of = |cluster: &Cluster| {
        let statuses = cluster.written.iter().filter(|(of, _)| of == name).map(|(_, status)| status.clone());
        statuses.skip(from).collect()
    };
    node.api.with(|cluster| of(cluster))
}

/// The node's own status of a pod.
fn own(node: &Node, uid: &str) -> Option<Value> {
    let status = node.shared.pods.get(uid)?.snapshot().status.get();
    Some(serde_json::to_value(&*status).unwrap())
}

/// Waits for a status on the node.
async fn until(node: &Node, uid: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let found = async {
        loop {
            match own(node, uid).filter(|status| wanted(status)) {
                Some(status) => return status,
                None => node.shared.parts.env.sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let found = node.shared.parts.env.timeout(Duration::from_secs(600), found).await;
    found.unwrap_or_else(|_| panic!("{uid}: {:#?}", own(node, uid)))
}

fn ip_of(status: &Value) -> IpAddr {
    status["podIP"].as_str().unwrap().parse().unwrap()
}

fn serves(node: &Node, ip: IpAddr) -> bool {
    node.network.find(ip, Protocol::Tcp, 80).is_some()
}

fn file(node: &Node, uid: &str) -> PathBuf {
    node.dir.path().join(format!("node/checkpoint/pods/{uid}.json"))
}

/// A server with everything that a pod may need of the API.
fn needy(node: &Node) -> Value {
    let from = |kind: &str, name: &str, key: &str| json!({kind: {"name": name, "key": key}});
    let env = json!([
        {"name": "A", "valueFrom": from("configMapKeyRef", "config", "a")},
        {"name": "K", "valueFrom": from("secretKeyRef", "secret", "k")},
    ]);
    let token =
        json!({"projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]}});
    let mut volumes = json!([{"name": "t"}, {"name": "s", "secret": {"secretName": "secret"}}]);
    volumes[0]["projected"] = token["projected"].clone();
    json!({
        "enableServiceLinks": true, "imagePullSecrets": [{"name": "secret"}], "runtimeClassName": "other", "volumes": volumes,
        "containers": [{"name": "c", "image": node.image("needy", "server status=204"), "env": env,
            "volumeMounts": [{"name": "t", "mountPath": "/t"}, {"name": "s", "mountPath": "/s"}]}],
    })
}

#[tokio::test(start_paused = true)]
async fn pods_run_again_from_the_checkpoint_and_are_reported_once() {
    let (node, env) = start().await;
    node.api.with(|cluster| cluster.runtime_class_handler = Some("wasm"));
    let spec = needy(&node);
    node.run("needy", "server status=204", &spec);
    node.run("crashes", "command exit=3 after=5000", &json!({}));
    node.run("ends", "command after=1000", &json!({"restartPolicy": "Never"}));
    let before = node.until("needy", "ready", is_ready).await;
    node.until("crashes", "crashed", |status| restarts(status) >= 1).await;
    node.until("ends", "ended", |status| status["phase"] == "Succeeded").await;
    pass(&env, RECORDED).await;

    node.set_unavailable(true);
    let known = ["needy", "crashes", "ends"].map(|name| written(&node, name, 0).len());
    let node = node.restart(alone(&env)).await;
    let status = until(&node, "uid-needy", is_ready).await;
    assert_eq!((ip_of(&status), restarts(&status)), (ip_of(&before), 1));
    assert!(serves(&node, ip_of(&before)));
    let volume = node.dir.path().join("node/pods/uid-needy/volumes");
    assert_eq!(std::fs::read_to_string(volume.join("t/token")).unwrap(), "token-1", "the earlier run's");
    assert_eq!(std::fs::read_to_string(volume.join("s/k")).unwrap(), "hidden");
    until(&node, "uid-crashes", |status| restarts(status) >= 3).await;
    pass(&env, Duration::from_secs(3 * 3600)).await;
    assert!(serves(&node, ip_of(&before)));
    let crashes = restarts(&own(&node, "uid-crashes").unwrap());
    assert!(crashes >= 30, "{crashes} in three hours with a back-off of five minutes");

    node.set_unavailable(false);
    pass(&env, SETTLED).await;
    let statuses = written(&node, "needy", known[0]);
    assert_eq!(statuses.len(), 1, "{statuses:#?}");
    assert!(is_ready(&statuses[0]) && restarts(&statuses[0]) == 1, "{statuses:#?}");
    let statuses = written(&node, "crashes", known[1]);
    assert!(restarts(&statuses[0]) >= crashes && statuses.len() <= 4, "{statuses:#?}");
    assert_eq!(written(&node, "ends", known[2]), Vec::<Value>::new(), "it had been reported");
    assert_eq!(restarts(&own(&node, "uid-ends").unwrap()), 0);
    let token = async {
        while std::fs::read_to_string(volume.join("t/token")).unwrap() == "token-1" {
            env.sleep(Duration::from_secs(1)).await;
        }
    };
    env.timeout(Duration::from_secs(300), token).await.expect("a new token follows");
}

/// As behind a link that loses all packets.
#[tokio::test(start_paused = true)]
async fn an_api_server_that_never_responds_is_away_too() {
    let (node, env) = start().await;
    node.api.with(|cluster| cluster.runtime_class_handler = Some("wasm"));
    let spec = needy(&node);
    node.run("needy", "server status=204", &spec);
    let before = node.until("needy", "ready", is_ready).await;
    pass(&env, Duration::from_secs(15)).await;
    node.set_unavailable(false);
    node.api.with(|cluster| cluster.silent = true);
    let node = node.restart(alone(&env)).await;
    let began = env.elapsed();
    let status = until(&node, "uid-needy", is_ready).await;
    assert_eq!(ip_of(&status), ip_of(&before));
    let took = (env.elapsed() - began).as_secs();
    assert!(took <= 6, "{took} s: the token's request is awaited for 5 s");
}

#[tokio::test(start_paused = true)]
async fn the_api_decides_by_uid_once_it_answers() {
    let (node, env) = start().await;
    let names = ["gone", "again", "deleted", "changed", "same"];
    let mut ips = Vec::new();
    for name in names {
        node.run(name, "server status=204", &json!({"terminationGracePeriodSeconds": 10}));
        ips.push(ip_of(&node.until(name, "ready", is_ready).await));
    }
    pass(&env, RECORDED).await;
    let same = written(&node, "same", 0).len();
    node.set_unavailable(true);
    let node = node.restart(alone(&env)).await;
    for name in names {
        until(&node, &format!("uid-{name}"), is_ready).await;
    }
    let other = node.image("other", "server status=204");
    node.api.with(|cluster| {
        // Removed by force, or moved to another node.
        cluster.pods.remove("gone");
        let mut again = cluster.pods.remove("again").unwrap();
        again["metadata"]["uid"] = json!("uid-again-2");
        again["status"] = json!({"phase": "Pending"});
        cluster.put(again);
        let deleted = cluster.pods.get_mut("deleted").unwrap();
        deleted["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:02:00Z");
        deleted["metadata"]["deletionGracePeriodSeconds"] = json!(10);
        cluster.pods.get_mut("changed").unwrap()["spec"]["containers"][0]["image"] = json!(other);
    });
    node.set_unavailable(false);
    let status = node.until("again", "ready", is_ready).await;
    assert_eq!(restarts(&status), 0, "another pod");
    assert_ne!(ip_of(&status), ips[1]);
    node.api.until("deleted", |cluster| (!cluster.pods.contains_key("deleted")).then_some(())).await;
    node.until("changed", "the new image", |status| is_ready(status) && restarts(status) == 2).await;
    pass(&env, SETTLED).await;
    for uid in ["uid-gone", "uid-again", "uid-deleted"] {
        assert!(own(&node, uid).is_none() && !file(&node, uid).exists(), "{uid}");
        assert!(!node.dir.path().join("node/pods").join(uid).exists(), "{uid}");
    }
    assert!(!serves(&node, ips[0]) && !serves(&node, ips[1]) && !serves(&node, ips[2]));
    assert!(serves(&node, ips[3]) && serves(&node, ips[4]));
    assert_eq!(written(&node, "gone", 0).iter().filter(|status| restarts(status) > 0).count(), 0);
    let statuses = written(&node, "same", same);
    assert_eq!(statuses.len(), 1, "{statuses:#?}");
    assert!(is_ready(&statuses[0]));
}

#[tokio::test(start_paused = true)]
async fn finished_runs_that_were_not_reported_do_not_run_again() {
    let (node, env) = start().await;
    node.run("ends", "command after=60000", &json!({"restartPolicy": "Never"}));
    node.run("crashes", "command exit=3 after=5000", &json!({}));
    node.until("ends", "ready", is_ready).await;
    node.set_unavailable(true);
    pass(&env, Duration::from_secs(600)).await;
    assert_eq!(own(&node, "uid-ends").unwrap()["phase"], "Succeeded");
    let crashes = restarts(&own(&node, "uid-crashes").unwrap());
    assert!(crashes >= 4, "{crashes}");
    let known = written(&node, "ends", 0).len();
    // Once with and once without an answer to the start.
    let node = node.restart(alone(&env)).await;
    pass(&env, RECORDED).await;
    assert_eq!(own(&node, "uid-ends").unwrap()["phase"], "Succeeded");
    node.set_unavailable(false);
    let node = node.restart(of(&env)).await;
    pass(&env, SETTLED).await;
    let statuses = written(&node, "ends", known);
    assert_eq!(statuses.len(), 1, "{statuses:#?}");
    let ended = &container_of(&statuses[0])["state"]["terminated"];
    assert_eq!((&statuses[0]["phase"], &ended["exitCode"]), (&json!("Succeeded"), &json!(0)));
    let reported = node.until("crashes", "reported", |status| restarts(status) > crashes).await;
    assert!(restarts(&reported) > crashes, "{reported}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_being_deleted_does_not_run_again() {
    let (node, env) = start().await;
    let hook = json!({"preStop": {"sleep": {"seconds": 3000}}});
    let container = json!({"name": "c", "image": node.image("deleted", "server status=204"), "lifecycle": hook});
    node.run(
        "deleted",
        "server status=204",
        &json!({"containers": [container], "terminationGracePeriodSeconds": 3600}),
    );
    let ip = ip_of(&node.until("deleted", "ready", is_ready).await);
    node.api.with(|cluster| {
        let mut pod = cluster.pods["deleted"].clone();
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(3600);
        cluster.put(pod);
    });
    pass(&env, RECORDED).await;
    assert!(serves(&node, ip), "it has time");
    node.set_unavailable(true);
    let node = node.restart(alone(&env)).await;
    pass(&env, SETTLED).await;
    assert!(!serves(&node, ip));
    node.set_unavailable(false);
    node.api.until("deleted", |cluster| (!cluster.pods.contains_key("deleted")).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn only_changes_that_a_later_run_needs_are_written() {
    let (node, env) = start().await;
    let exec = json!({"command": ["true", "after=0"]});
    let probe = json!({"exec": exec, "initialDelaySeconds": 20, "periodSeconds": 1});
    let container = json!({"name": "c", "image": node.image("slow", "command"), "readinessProbe": probe});
    node.run("slow", "command", &json!({"containers": [container]}));
    node.until("slow", "started", |status| container_of(status)["started"] == true).await;
    pass(&env, RECORDED).await;
    let version = |node: &Node| std::fs::metadata(file(node, "uid-slow")).unwrap().modified().unwrap();
    let before = version(&node);
    node.until("slow", "ready", is_ready).await;
    pass(&env, RECORDED).await;
    assert_eq!(version(&node), before, "readiness isn't kept");
    node.api.with(|cluster| {
        let mut pod = cluster.pods["slow"].clone();
        pod["metadata"]["labels"] = json!({"a": "1"});
        cluster.put(pod);
    });
    pass(&env, RECORDED).await;
    assert_ne!(version(&node), before, "the labels are");
    node.delete("slow").await;
    pass(&env, RECORDED).await;
    assert!(!file(&node, "uid-slow").exists());
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_used_is_removed_and_the_others_start() {
    let (node, env) = start().await;
    for name in ["good", "damaged", "newer"] {
        node.run(name, "server status=204", &json!({}));
        node.until(name, "ready", is_ready).await;
    }
    pass(&env, RECORDED).await;
    let text = std::fs::read_to_string(file(&node, "uid-newer")).unwrap();
    std::fs::write(file(&node, "uid-newer"), text.replacen(" 1 ", " 2 ", 1)).unwrap();
    std::fs::write(file(&node, "uid-damaged"), &text[..text.len() / 2]).unwrap();
    std::fs::write(file(&node, "uid-foreign"), text.replacen("uid-newer", "uid-older", 1)).unwrap();
    node.set_unavailable(true);
    let node = node.restart(alone(&env)).await;
    until(&node, "uid-good", is_ready).await;
    for uid in ["uid-damaged", "uid-newer", "uid-foreign"] {
        assert!(own(&node, uid).is_none() && !file(&node, uid).exists(), "{uid}");
        assert!(!node.dir.path().join("node/checkpoint/pods/aside").exists(), "{uid}");
    }
    node.set_unavailable(false);
    for name in ["damaged", "newer"] {
        node.until(name, "ready again", |status| is_ready(status) && restarts(status) == 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn static_pods_start_without_the_api_and_without_a_checkpoint_of_theirs() {
    let env = TokioClock::env(7).0;
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let with_manifests = |start: Start| Start { manifests: true, ..start };
    let node = Node::launch(with_manifests(of(&env)), Default::default(), dir).await;
    let image = node.image("own", "server status=204");
    let spec = json!({"enableServiceLinks": false, "containers": [{"name": "c", "image": image}]});
    let manifest = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "own"}, "spec": spec});
    std::fs::write(node.dir.path().join("manifests/own.yaml"), manifest.to_string()).unwrap();
    node.until("own-n", "ready", is_ready).await;
    pass(&env, RECORDED).await;
    assert_eq!(std::fs::read_dir(node.dir.path().join("node/checkpoint/pods")).unwrap().count(), 0);
    node.set_unavailable(true);
    let node = node.restart(with_manifests(alone(&env))).await;
    let served = || (1..20).filter(|last| serves(&node, [127, 66, 0, *last].into())).count();
    pass(&env, SETTLED).await;
    assert_eq!(served(), 1);
    node.set_unavailable(false);
    pass(&env, SETTLED).await;
    assert_eq!((served(), node.api.with(|cluster| cluster.pods.len())), (1, 1), "it is not run twice");
}
