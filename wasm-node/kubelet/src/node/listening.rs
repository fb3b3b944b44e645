//! Commands that listen, on a node with the simulated runtime.

use std::net::IpAddr;
use std::sync::Arc;

use http::{Request, Response};
use machinery_serve::net::{Body, CallRejected, Listen, Origin, Serve};
use serde_json::{Value, json};

use super::lifecycle::{Node, is_ready};

struct Silent;

#[async_trait::async_trait]
impl Serve for Silent {
    async fn http(&self, _: &Origin, _: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        Err(CallRejected::Closed)
    }
}

fn spec(node: &Node, name: &str, ports: Value) -> Value {
    json!({"containers": [{"name": "c", "image": node.image(name, "command"), "ports": ports}]})
}

#[tokio::test(start_paused = true)]
async fn a_command_that_does_not_listen_on_its_port_has_one_event_and_stays_ready() {
    let node = Node::with("127.66.0.0/24", machinery_env::TokioClock::env(7).0).await;
    let port = json!([{"containerPort": 6379}]);
    node.run("good", "command", &spec(&node, "good", port.clone()));
    node.run("portless", "command", &spec(&node, "portless", json!([{"containerPort": 53, "protocol": "UDP"}])));
    let ip: IpAddr = node.until("good", "ready", is_ready).await["podIP"].as_str().unwrap().parse().unwrap();
    let _listener = node.network.attach(Listen::tcp(ip, 6379), Arc::new(Silent)).unwrap();
    node.until("portless", "ready", is_ready).await;
    node.run("kv", "command", &spec(&node, "kv", port));
    node.until("kv", "ready", is_ready).await;
    let warned = |notes: &[Value]| {
        let notes = notes.iter().filter(|note| note["reason"] == "NotListening");
        notes.map(|note| (note["involvedObject"].clone(), note["message"].clone())).collect::<Vec<_>>()
    };
    let warnings = node.api.until("warned", |cluster| Some(warned(&cluster.notes)).filter(|notes| !notes.is_empty()));
    let (about, message) = warnings.await.remove(0);
    assert_eq!((&about["name"], &about["fieldPath"]), (&json!("kv"), &json!("spec.containers{c}")));
    assert!(message.as_str().unwrap().starts_with("Container c doesn't listen on its TCP port 6379, 10 s after"));
    node.shared.parts.env.sleep(std::time::Duration::from_secs(60)).await;
    assert_eq!(node.api.with(|cluster| warned(&cluster.notes).len()), 1);
    assert!(node.until("kv", "ready", is_ready).await["phase"] == "Running");
}
