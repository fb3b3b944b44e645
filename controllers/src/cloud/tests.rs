//! Nodes under an inventory.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use machinery_api::ObjectKey;
use machinery_client::simulate::Simulation;
use machinery_client::{Action, Kind, Plan};
use serde_json::{Value, json};

use super::{Instance, Instances, Inventory, SharedInventory};
use crate::table_tests::start;
use crate::{CONTROLLERS, Settings};

const FILE: &str = "
nodes:
- name: n1
  providerID: rack://7/1
  instanceType: large
  zone: z1
  region: r1
  addresses: [{type: InternalIP, address: 10.0.0.1}, {type: InternalIP, address: 10.0.0.2}, {type: ExternalIP, address: 192.0.2.1}]
  labels: {example.com/rack: '7', example.com/own: inventory}
- {name: n2}
- {name: off, shutdown: true}
";

struct Play {
    cluster: Simulation,
    inventory: Arc<SharedInventory>,
    settings: Settings,
}

impl Play {
    fn new(file: &str, nodes: Vec<Value>) -> Self {
        let inventory = Arc::new(SharedInventory::new(Inventory::parse(file).unwrap()));
        let settings = Settings { instances: Some(inventory.clone()), ..Settings::default() };
        let mut cluster = crate::simulation(start(), nodes);
        cluster.now = cluster.now.checked_add(std::time::Duration::from_secs(60)).unwrap();
        Self { cluster, inventory, settings }
    }

    fn plan(&self, controller: &str, key: &str) -> Plan {
        let row = CONTROLLERS.iter().find(|row| row.name == format!("cloud-{controller}-controller")).unwrap();
        let context = self.cluster.context(&self.settings);
        (row.reconcile)(&self.cluster.view, &ObjectKey::cluster(key), &context)
    }

    /// Runs passes until nothing is left to do, and returns the events.
    fn work(&mut self, controller: &str, key: &str) -> Vec<String> {
        let mut reported = Vec::new();
        for _ in 0..8 {
            let plan = self.plan(controller, key);
            let events = plan.actions.iter().filter_map(|action| match action {
                Action::Event(event) => Some(format!("{}: {}", event.reason, event.message)),
                _ => None,
            });
            reported.extend(events);
            if plan.actions.iter().all(|action| matches!(action, Action::Event(_))) {
                return reported;
            }
            assert_eq!(self.cluster.apply(plan), Vec::<String>::new());
        }
        panic!("it never rests");
    }

    fn node(&self, name: &str) -> Option<Value> {
        self.cluster.view.get::<Node>(&ObjectKey::cluster(name)).map(machinery_client::value_of)
    }

    fn change(&mut self, name: &str, at: &str, value: Value) {
        let mut node = self.node(name).unwrap();
        *node.pointer_mut(at).unwrap() = value;
        self.cluster.write(&Kind::of::<Node>(), node);
    }
}

fn node(name: &str, ready: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"example.com/own": "node"}, "annotations": {}},
        "spec": {"taints": [{"key": "node.cloudprovider.kubernetes.io/uninitialized", "value": "true", "effect": "NoSchedule"},
            {"key": "kept", "effect": "NoSchedule"}]},
        "status": {"conditions": [{"type": "Ready", "status": ready}],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": name}]}})
}

#[test]
fn a_node_gets_its_inventory_data_and_loses_its_taint() {
    let mut play = Play::new(FILE, vec![node("n1", "True"), node("n2", "True"), node("n3", "True")]);
    assert_eq!(play.work("node", "n1"), ["Synced: Node synced successfully"]);
    let n1 = play.node("n1").unwrap();
    assert_eq!(n1["spec"]["providerID"], "rack://7/1");
    assert_eq!(n1["spec"]["taints"], json!([{"key": "kept", "effect": "NoSchedule"}]));
    let wanted = json!({"example.com/own": "node", "example.com/rack": "7",
        "beta.kubernetes.io/instance-type": "large", "node.kubernetes.io/instance-type": "large",
        "failure-domain.beta.kubernetes.io/zone": "z1", "topology.kubernetes.io/zone": "z1",
        "failure-domain.beta.kubernetes.io/region": "r1", "topology.kubernetes.io/region": "r1"});
    assert_eq!(n1["metadata"]["labels"], wanted);
    let addresses = json!([{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "10.0.0.2"},
        {"type": "ExternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n1"}]);
    assert_eq!(n1["status"]["addresses"], addresses);
    // The inventory has no addresses, so the node keeps its own.
    play.work("node", "n2");
    let n2 = play.node("n2").unwrap();
    assert_eq!(
        (&n2["spec"]["providerID"], &n2["status"]["addresses"][0]["address"]),
        (&json!("inventory://n2"), &json!("127.0.0.1"))
    );
    assert_eq!(play.plan("node", "n3"), Plan::nothing(), "nobody knows it");
    // The beta label counts.
    play.change("n1", "/metadata/labels/topology.kubernetes.io~1zone", json!("other"));
    play.work("node", "n1");
    assert_eq!(play.node("n1").unwrap()["metadata"]["labels"], wanted);
}

#[test]
fn addresses_follow_and_a_full_pass_finds_late_nodes() {
    let mut play = Play::new(
        "nodes: [{name: n1, addresses: [{type: InternalIP, address: 10.0.0.1}]}]",
        vec![node("n1", "True"), node("n2", "True")],
    );
    play.work("node", "");
    assert!(play.plan("node", "").requeue_at.is_some());
    let addresses = |play: &Play, name: &str| play.node(name).unwrap()["status"]["addresses"][0]["address"].clone();
    assert_eq!((addresses(&play, "n1"), addresses(&play, "n2")), (json!("10.0.0.1"), json!("127.0.0.1")));
    let next = "nodes: [{name: n1, zone: z, addresses: [{type: InternalIP, address: 10.0.0.9}]}, {name: n2, addresses: [{type: InternalIP, address: 10.0.0.2}]}]";
    assert!(play.inventory.replace(Inventory::parse(next).unwrap()));
    assert!(!play.inventory.replace(Inventory::parse(next).unwrap()), "it says the same");
    play.work("node", "");
    assert_eq!((addresses(&play, "n1"), addresses(&play, "n2")), (json!("10.0.0.9"), json!("10.0.0.2")));
    assert!(
        play.node("n1").unwrap()["metadata"]["labels"]["topology.kubernetes.io/zone"].is_null(),
        "labels are for the beginning"
    );
}

#[test]
fn a_node_that_expects_no_provider_keeps_its_addresses() {
    let mut play = Play::new(FILE, vec![node("n1", "True")]);
    play.change("n1", "/spec/taints", json!([]));
    assert_eq!(play.plan("node", "n1"), Plan::nothing(), "its kubelet would write its own again");
    play.change("n1", "/spec", json!({"providerID": "rack://7/1"}));
    play.work("node", "n1");
    assert_eq!(play.node("n1").unwrap()["status"]["addresses"][0]["address"], "10.0.0.1");
}

#[test]
fn a_provided_node_ip_has_to_be_in_the_inventory() {
    let mut play = Play::new(FILE, vec![node("n1", "True")]);
    play.change("n1", "/metadata/annotations", json!({"alpha.kubernetes.io/provided-node-ip": "10.0.0.7"}));
    let why = "failed to get node address from cloud provider that matches ip: 10.0.0.7";
    assert_eq!(
        play.work("node", "n1"),
        [format!("InvalidNodeIP: provided node ip for node \"n1\" is not valid: {why}")]
    );
    assert_eq!(play.node("n1").unwrap()["spec"]["taints"].as_array().unwrap().len(), 2);
    play.change("n1", "/metadata/annotations", json!({"alpha.kubernetes.io/provided-node-ip": "10.0.0.2"}));
    play.work("node", "n1");
    let addresses = json!([{"type": "InternalIP", "address": "10.0.0.2"}, {"type": "ExternalIP", "address": "192.0.2.1"},
        {"type": "Hostname", "address": "n1"}]);
    assert_eq!(play.node("n1").unwrap()["status"]["addresses"], addresses);
}

#[test]
fn nodes_go_with_their_machines_and_no_others() {
    let nodes = vec![node("n1", "Unknown"), node("gone", "Unknown"), node("well", "True"), node("off", "False")];
    let mut play = Play::new(FILE, nodes);
    let reported = play.work("node-lifecycle", "");
    assert_eq!(reported, ["DeletingNode: Deleting node gone because it does not exist in the cloud provider"]);
    assert!(play.node("gone").is_none() && play.node("n1").is_some() && play.node("well").is_some());
    let off = |play: &Play| {
        play.node("off").unwrap()["spec"]["taints"]
            .as_array()
            .unwrap()
            .iter()
            .any(|taint| taint["key"] == "node.cloudprovider.kubernetes.io/shutdown")
    };
    assert!(off(&play));
    play.change("off", "/status/conditions/0/status", json!("True"));
    play.work("node-lifecycle", "");
    assert!(!off(&play), "it is back");
    // An id that is not in the inventory means another machine, whatever the node's name.
    play.change("n1", "/spec", json!({"providerID": "rack://7/another"}));
    play.work("node-lifecycle", "");
    assert!(play.node("n1").is_none());
}

/// A provider that always fails.
struct Silent;

impl Instances for Silent {
    fn instance(&self, _: &str, _: Option<&str>) -> Result<Option<Arc<Instance>>, String> {
        Err("not queried yet".into())
    }
}

#[test]
fn an_unknowing_provider_changes_nothing() {
    let mut play = Play::new(FILE, vec![node("n1", "Unknown")]);
    play.settings.instances = Some(Arc::new(Silent));
    for controller in ["node", "node-lifecycle"] {
        assert_eq!(play.plan(controller, "").actions, []);
    }
    play.settings.instances = None;
    assert_eq!(play.plan("node", "n1"), Plan::nothing());
    // A new node may still report its status.
    let mut play = Play::new("nodes: []", vec![node("n1", "Unknown")]);
    play.cluster.now = start();
    assert_eq!(play.plan("node-lifecycle", "").actions, []);
}

#[test]
fn files_that_cannot_be_are_refused_by_name() {
    let wrong = |file: &str| Inventory::parse(file).unwrap_err().to_string();
    for (file, why) in [
        ("nodes: [{name: A_b}]", "node \"A_b\": name: "),
        ("nodes: [{name: a}, {name: a, providerID: x}]", "node \"a\": it is there twice"),
        (
            "nodes: [{name: a, providerID: x}, {name: b, providerID: x}]",
            "node \"b\": another one has providerID \"x\", too",
        ),
        (
            "nodes: [{name: a, addresses: [{type: InternalIP, address: host}]}]",
            "\"host\" is no address of type InternalIP",
        ),
        ("nodes: [{name: a, addresses: [{type: Other, address: h}]}]", "address type \"Other\" is none of"),
        ("nodes: [{name: a, labels: {node.kubernetes.io/x: y}}]", "not a provider's to give"),
        ("nodes: [{name: a, zone: 'z z'}]", "zone: "),
        ("nodes: [{name: a, color: red}]", "color"),
        ("node: []", "node"),
        ("", "unexpected end"),
    ] {
        assert!(wrong(file).contains(why), "{file}: {}", wrong(file));
    }
    assert!(Inventory::parse("nodes: []").unwrap().is_empty());
    assert_eq!(Inventory::parse(r#"{"nodes": [{"name": "a"}]}"#).unwrap().len(), 1);
}
