//! A node's heartbeat against a fake API server: one Node, one Lease, one watch.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use machinery_client::TlsIdentity;
use machinery_env::Env;
use serde_json::{Map, Value, json};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::fake_api::{FakeCluster, Watch, not_found, send_event};
use super::heartbeat::NodeStatusManager;
use super::register::Observation;
use super::{Capacity, NodeConfig, lease};
use crate::server::ServingTls;

const BEAT: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Cluster {
    version: u64,
    node: Option<Value>,
    lease: Option<Value>,
    renewals: u32,
    reports: u32,
    /// Reports get no response.
    hangs: bool,
    watches: Vec<Watch>,
    unavailable: bool,
    /// A Node that is created with a podCIDR is refused.
    refuses_claims: bool,
}

impl Cluster {
    fn put_node(&mut self, mut node: Value) -> Value {
        self.version += 1;
        node["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if node["metadata"]["uid"].is_null() {
            node["metadata"]["uid"] = json!(format!("uid-{}", self.version));
        }
        let kind = if self.node.is_some() { "MODIFIED" } else { "ADDED" };
        self.node = Some(node.clone());
        send_event(&mut self.watches, kind, &node);
        node
    }

    fn delete_node(&mut self) {
        self.version += 1;
        let mut node = self.node.take().unwrap();
        node["metadata"]["resourceVersion"] = json!(self.version.to_string());
        send_event(&mut self.watches, "DELETED", &node);
    }
}

impl FakeCluster for Cluster {
    fn initial_events(&self, _: &str) -> (&'static str, Vec<Value>, u64) {
        ("Node", self.node.iter().cloned().collect(), self.version)
    }

    fn add_watch(&mut self, _: &str, watch: Watch) {
        self.watches.push(watch);
    }

    fn is_unavailable(&self) -> bool {
        self.unavailable
    }

    fn describe(&self) -> String {
        format!("{:#?}", self.node)
    }

    fn respond(&mut self, method: &Method, path: &str, body: &Value) -> Option<(u16, Value)> {
        let is = |wanted: &Method, end: &str| method == wanted && path.ends_with(end);
        Some(if is(&Method::POST, "/nodes") {
            match &self.node {
                None if self.refuses_claims && !body["spec"]["podCIDR"].is_null() => {
                    (403, json!({"kind": "Status", "code": 403, "reason": "Forbidden"}))
                }
                Some(_) => (409, json!({"kind": "Status", "code": 409, "reason": "AlreadyExists"})),
                None => (201, self.put_node(body.clone())),
            }
        } else if is(&Method::PATCH, "/status") {
            self.reports += 1;
            if self.hangs {
                return None;
            }
            let Some(mut node) = self.node.clone() else { return Some(not_found()) };
            merge(&mut node["status"], &body["status"]);
            (200, self.put_node(node))
        } else if is(&Method::GET, "/nodes/n") {
            self.node.clone().map_or_else(not_found, |node| (200, node))
        } else if is(&Method::GET, "/leases/n") {
            self.lease.clone().map_or_else(not_found, |lease| (200, lease))
        } else if is(&Method::PATCH, "/nodes/n") {
            (200, self.node.clone()?)
        } else if is(&Method::PATCH, "/leases/n") {
            self.renewals += 1;
            match &mut self.lease {
                None => not_found(),
                Some(lease) => {
                    merge(lease, body);
                    (200, lease.clone())
                }
            }
        } else if is(&Method::POST, "/leases") {
            self.lease = Some(body.clone());
            (201, body.clone())
        } else {
            panic!("{method} {path}")
        })
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (name, value) in patch {
        merge(&mut target[name], value);
    }
}

/// A list with the key `type` after a strategic merge: the patch's elements first, or alone with `$patch: replace`.
fn merged_by_type(list: &[Value], patch: &[Value]) -> Vec<Value> {
    let (directives, mut merged): (Vec<Value>, Vec<Value>) =
        patch.iter().cloned().partition(|element| element.get("$patch").is_some());
    assert!(directives.iter().all(|directive| directive["$patch"] == "replace"), "{directives:?}");
    if directives.is_empty() {
        let rest: Vec<Value> =
            list.iter().filter(|old| merged.iter().all(|new| new["type"] != old["type"])).cloned().collect();
        merged.extend(rest);
    }
    merged
}

type FakeApi = super::fake_api::FakeApi<Cluster>;

fn ready(cluster: &Cluster) -> Option<String> {
    let conditions = cluster.node.as_ref()?["status"]["conditions"].as_array()?.clone();
    conditions.iter().find(|c| c["type"] == "Ready").map(|c| c["status"].as_str().unwrap().to_owned())
}

fn is_ready(cluster: &Cluster) -> Option<()> {
    (ready(cluster)? == "True").then_some(())
}

fn node_uid(cluster: &Cluster) -> Option<String> {
    Some(cluster.node.as_ref()?["metadata"]["uid"].as_str()?.to_owned())
}

/// Runs the node agent's heartbeat until `stop`.
async fn beat(api: &FakeApi, stop: &CancellationToken) {
    let tls = ServingTls::fixed(TlsIdentity { cert_pem: String::new(), key_pem: String::new() }, Vec::new());
    let capacity = Capacity {
        cpu_millis: 1000,
        memory_bytes: 1 << 30,
        guest_memory_bytes: 1 << 30,
        ephemeral_bytes: 1 << 30,
        pods: 10,
    };
    let mut config = NodeConfig::new("n".into(), "/nowhere".into(), [127, 0, 0, 1].into(), tls, capacity);
    config.lease_interval = BEAT;
    config.pod_cidr = Some("10.0.0.0/24".into());
    let (uid, node_uid) = watch::channel(None);
    let env = Env::real();
    let (observe, shortages) = (Arc::new(Observation::default), watch::Sender::new(Vec::new()));
    let mut status_manager = NodeStatusManager::new(&config, api.client(), &env, 1, observe, uid, shortages);
    tokio::spawn(lease::keep(api.client().into(), config, env, node_uid, stop.clone()));
    assert_eq!(status_manager.register_or_restore().await, ("10.0.0.0/24".to_owned(), true));
    status_manager.set_network_ready(capacity);
    let (ready_sender, ready) = oneshot::channel();
    tokio::spawn(status_manager.run(ready_sender, ([127, 0, 0, 1], 1).into(), stop.clone()));
    ready.await.unwrap();
}

#[tokio::test]
async fn a_node_that_was_marked_unknown_reports_at_once() {
    let (api, stop) = (FakeApi::default(), CancellationToken::new());
    beat(&api, &stop).await;
    api.until("watched", |cluster| (!cluster.watches.is_empty()).then_some(())).await;
    api.with(|cluster| {
        let mut node = cluster.node.clone().unwrap();
        for condition in node["status"]["conditions"].as_array_mut().unwrap() {
            condition["status"] = json!("Unknown");
        }
        cluster.put_node(node);
    });
    api.until("Ready again", is_ready).await;
    stop.cancel();
}

#[tokio::test]
async fn a_deleted_node_is_registered_again_with_its_addresses_and_lease() {
    let (api, stop) = (FakeApi::default(), CancellationToken::new());
    beat(&api, &stop).await;
    let owner = |cluster: &Cluster| {
        let lease = cluster.lease.as_ref()?;
        Some(lease["metadata"]["ownerReferences"][0]["uid"].as_str()?.to_owned())
    };
    let first = api.until("a Lease", owner).await;
    api.until("watched", |cluster| (!cluster.watches.is_empty()).then_some(())).await;
    assert_eq!(api.with(|cluster| node_uid(cluster)), Some(first.clone()));
    api.with(Cluster::delete_node);
    api.until("Ready again", is_ready).await;
    let second = api.with(|cluster| node_uid(cluster)).unwrap();
    assert_ne!(first, second);
    assert_eq!(api.with(|cluster| cluster.node.clone().unwrap()["spec"]["podCIDR"].clone()), "10.0.0.0/24");
    api.until("the Lease's owner", |cluster| (owner(cluster)? == second).then_some(())).await;
    stop.cancel();
}

#[tokio::test]
async fn a_node_whose_lease_another_process_renews_is_refused() {
    let (api, stop) = (FakeApi::default(), CancellationToken::new());
    let tls = ServingTls::fixed(TlsIdentity { cert_pem: String::new(), key_pem: String::new() }, Vec::new());
    let capacity = Capacity { cpu_millis: 1, memory_bytes: 1, guest_memory_bytes: 1, ephemeral_bytes: 1, pods: 10 };
    let mut config = NodeConfig::new("n".into(), "/nowhere".into(), [127, 0, 0, 1].into(), tls, capacity);
    config.lease_interval = BEAT;
    let (requests, env) = (machinery_client::request::ApiClient::from(api.client()), Env::real());
    let check = |recorded: Option<String>| {
        let (requests, config, env) = (&requests, &config, &env);
        async move { super::holder::check(requests, config, env, recorded.as_deref()).await }
    };
    assert!(check(None).await.is_ok(), "a new name");
    beat(&api, &stop).await;
    api.until("a Lease", |cluster| cluster.lease.clone()).await;
    let refused = async {
        loop {
            if let Err(error) = check(None).await {
                return error.to_string();
            }
        }
    };
    let error = env.timeout(Duration::from_secs(30), refused).await.unwrap();
    assert!(error.contains("node n: another process is this node now") && error.contains("--node-name"), "{error}");
    assert!(check(api.with(|cluster| node_uid(cluster))).await.is_ok(), "the next process of this folder and boot");
    // The other process has ended: its Lease is fresh, and stays as it is.
    stop.cancel();
    let still = async { while check(None).await.is_err() {} };
    env.timeout(Duration::from_secs(30), still).await.unwrap();
}

#[test]
fn a_report_replaces_foreign_addresses_but_a_cloud_provider_s() {
    let tls = ServingTls::fixed(TlsIdentity { cert_pem: String::new(), key_pem: String::new() }, Vec::new());
    let capacity = Capacity { cpu_millis: 1, memory_bytes: 1, guest_memory_bytes: 1, ephemeral_bytes: 1, pods: 10 };
    let mut config = NodeConfig::new("n".into(), "/nowhere".into(), [192, 0, 2, 1].into(), tls, capacity);
    let foreign = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
        "status": {"addresses": [{"type": "ExternalIP", "address": "192.0.2.66"}]}});
    let reported_over = |config: &NodeConfig, foreign: &Value| {
        let env = Env::real();
        let known = serde_json::from_value(foreign.clone()).unwrap();
        let patch = super::register::status(config, 1, &super::register::Health::default(), Some(&known), env.now());
        let known = foreign["status"]["addresses"].as_array().unwrap();
        let addresses = merged_by_type(known, patch["status"]["addresses"].as_array().map_or(&[], Vec::as_slice));
        addresses.iter().map(|one| one["address"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let after_report = |config: &NodeConfig| reported_over(config, &foreign);
    assert_eq!(after_report(&config), ["192.0.2.1", "n"]);
    // A joined node that a provider has described.
    let mut provided = foreign.clone();
    provided["spec"] = json!({"providerID": "rack://7"});
    assert_eq!(reported_over(&config, &provided), ["192.0.2.66"]);
    provided["spec"] = json!({"providerID": ""});
    assert_eq!(reported_over(&config, &provided), ["192.0.2.1", "n"]);
    provided["metadata"]["annotations"] = json!({"alpha.kubernetes.io/provided-node-ip": "192.0.2.66"});
    assert_eq!(reported_over(&config, &provided), ["192.0.2.66"]);
    provided["status"]["addresses"] = json!([{"type": "Hostname", "address": "other"}]);
    assert_eq!(reported_over(&config, &provided), ["192.0.2.1", "n"]);
    config.external_provider = true;
    assert!(after_report(&config).contains(&"192.0.2.66".to_owned()));
}

#[tokio::test]
async fn a_report_that_gets_no_answer_holds_no_heartbeat_up() {
    let (api, stop) = (FakeApi::default(), CancellationToken::new());
    beat(&api, &stop).await;
    api.with(|cluster| {
        cluster.hangs = true;
        cluster.delete_node();
    });
    api.until("a report that hangs", |cluster| (cluster.reports > 1).then_some(())).await;
    let before = api.with(|cluster| cluster.renewals);
    api.until("more renewals", |cluster| (cluster.renewals > before + 3).then_some(())).await;
    stop.cancel();
}

#[tokio::test]
#[should_panic(expected = "it was meant to")]
async fn a_lease_that_is_kept_no_longer_ends_the_node() {
    super::panic_of(&mut tokio::spawn(async { panic!("it was meant to") })).await;
}

/// Starts a heartbeat on the checkpoint of a Node with uid `uid-0` and CIDR 10.0.0.0/24, while the API is unavailable.
async fn restore(api: &FakeApi, dir: &std::path::Path, env: &Env) -> (NodeStatusManager, String, bool) {
    let tls = ServingTls::fixed(TlsIdentity { cert_pem: String::new(), key_pem: String::new() }, Vec::new());
    let capacity = Capacity { cpu_millis: 1, memory_bytes: 1, guest_memory_bytes: 1, ephemeral_bytes: 1, pods: 10 };
    let config = NodeConfig::new("n".into(), dir.to_owned(), [127, 0, 0, 1].into(), tls, capacity);
    let record =
        json!({"name": "n", "uid": "uid-0", "origin": "uid-0", "podCidr": "10.0.0.0/24", "labels": {"a": "1"}});
    machinery_client::checkpoint::write(&dir.join("node.json"), "node", record.to_string().as_bytes()).unwrap();
    api.with(|cluster| cluster.unavailable = true);
    let (observe, shortages) = (Arc::new(Observation::default), watch::Sender::new(Vec::new()));
    let (client, uid) = (api.client(), watch::channel(None).0);
    let mut manager = NodeStatusManager::new(&config, client, env, 1, observe, uid, shortages);
    manager.set_checkpoint(crate::checkpoint::Checkpoint::open(Some(dir.to_owned()), "n"));
    let (cidr, registered) = manager.register_or_restore().await;
    manager.set_network_ready(capacity);
    (manager, cidr, registered)
}

#[tokio::test(start_paused = true)]
async fn a_node_without_an_api_server_is_that_of_its_checkpoint_and_reports_later() {
    let (api, dir) = (FakeApi::default(), tempfile::tempdir().unwrap());
    let env = machinery_env::TokioClock::env(7).0;
    let (manager, cidr, registered) = restore(&api, dir.path(), &env).await;
    assert_eq!((cidr.as_str(), registered, env.elapsed().as_secs()), ("10.0.0.0/24", false, 5));
    assert_eq!(manager.facts().borrow().labels["a"], "1");
    let (sender, ready) = oneshot::channel();
    let stop = CancellationToken::new();
    let running = tokio::spawn(manager.run(sender, ([127, 0, 0, 1], 1).into(), stop.clone()));
    env.sleep(std::time::Duration::from_secs(3600)).await;
    api.with(|cluster| cluster.unavailable = false);
    ready.await.unwrap();
    let cidr = api.with(|cluster| cluster.node.clone().unwrap()["spec"]["podCIDR"].clone());
    assert_eq!(cidr, "10.0.0.0/24", "a Node that is created again keeps its block");
    stop.cancel();
    assert!(running.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_node_ends_if_its_block_is_not_its_own_any_more() {
    let (api, dir) = (FakeApi::default(), tempfile::tempdir().unwrap());
    let env = machinery_env::TokioClock::env(7).0;
    let (manager, ..) = restore(&api, dir.path(), &env).await;
    let node = json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.0.9.0/24"}});
    api.with(|cluster| {
        cluster.put_node(node);
        cluster.unavailable = false;
    });
    let (sender, ready) = oneshot::channel();
    let ended = manager.run(sender, ([127, 0, 0, 1], 1).into(), CancellationToken::new()).await.unwrap_err();
    let want = "node n: its podCIDR is 10.0.9.0/24 now, and its pods have addresses of 10.0.0.0/24: start it again";
    assert_eq!(ended.to_string(), want);
    assert!(ready.await.is_err(), "it was never Ready");
}

/// The pod CIDR of a deleted Node was given to another one.
#[tokio::test(start_paused = true)]
async fn a_node_whose_block_is_refused_registers_without_it_and_ends() {
    let (api, dir) = (FakeApi::default(), tempfile::tempdir().unwrap());
    let env = machinery_env::TokioClock::env(7).0;
    let (manager, ..) = restore(&api, dir.path(), &env).await;
    api.with(|cluster| (cluster.unavailable, cluster.refuses_claims) = (false, true));
    let (sender, ready_from) = oneshot::channel();
    let running = tokio::spawn(manager.run(sender, ([127, 0, 0, 1], 1).into(), CancellationToken::new()));
    let reported = api.until("a report", ready).await;
    assert_eq!(reported, "False", "its pods have addresses that aren't its own");
    api.with(|cluster| {
        let mut node = cluster.node.clone().unwrap();
        assert!(node["spec"]["podCIDR"].is_null());
        node["spec"] = json!({"podCIDR": "10.0.9.0/24"});
        cluster.put_node(node);
    });
    let ended = running.await.unwrap().unwrap_err();
    let want = "node n: its podCIDR is 10.0.9.0/24 now, and its pods have addresses of 10.0.0.0/24: start it again";
    assert_eq!(ended.to_string(), want);
    assert!(ready_from.await.is_err(), "it was never Ready");
}

#[test]
fn refusals_are_retried_less_and_less_and_outages_each_second() {
    let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
    let mut failures = super::heartbeat::Failures::new();
    let waits = |failures: &mut super::heartbeat::Failures, code| {
        let all: Vec<_> = (0..100).map(|_| failures.add(&env, code)).collect();
        (all.iter().map(|(wait, _)| wait.as_secs()).max(), all.iter().filter(|(_, is_logged)| *is_logged).count())
    };
    assert_eq!(waits(&mut failures, 503), (Some(1), 7), "1, 2, 4 … 64 are logged");
    failures.reset();
    let (longest, logged) = waits(&mut failures, 403);
    assert!((10..=15).contains(&longest.unwrap()) && logged == 7, "{longest:?} {logged}");
    failures.reset();
    assert!(failures.add(&env, 403).0 < std::time::Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_api_answers_takes_nothing_from_its_checkpoint() {
    let (api, dir) = (FakeApi::default(), tempfile::tempdir().unwrap());
    let env = machinery_env::TokioClock::env(7).0;
    let late = async {
        env.sleep(std::time::Duration::from_secs(3)).await;
        let node = json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.0.9.0/24"}});
        api.with(|cluster| {
            cluster.put_node(node);
            cluster.unavailable = false;
        });
    };
    let ((_, cidr, registered), ()) = tokio::join!(restore(&api, dir.path(), &env), late);
    assert_eq!((cidr.as_str(), registered), ("10.0.9.0/24", true));
}
