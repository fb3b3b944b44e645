//! Pods with several containers on a node with the simulated runtime.

use std::net::IpAddr;

use http::Request;
use http_body_util::{BodyExt as _, Empty};
use machinery_serve::net::{Body, Origin, Peer, Protocol};
use serde_json::{Value, json};

use super::lifecycle::{Node, is_ready};

/// The status code of a server at a port of a pod.
async fn ask(node: &Node, ip: IpAddr, port: u16) -> Option<u16> {
    let serve = node.network.find(ip, Protocol::Tcp, port)?;
    let origin = Origin { peer: Peer::Node, local: (ip, port).into(), via: None };
    let body: Body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    let answer = serve.http(&origin, Request::get("http://web/").body(body).unwrap()).await.ok()?;
    Some(answer.status().as_u16())
}

fn container(name: &str, image: String, more: Value) -> Value {
    let mut container = json!({"name": name, "image": image});
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    container
}

fn status<'a>(status: &'a Value, list: &str, name: &str) -> &'a Value {
    let all = status[list].as_array().unwrap();
    all.iter().find(|status| status["name"] == name).unwrap()
}

fn ip_of(status: &Value) -> IpAddr {
    status["podIP"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_one_pod_have_ports_logs_and_restarts_of_their_own() {
    let node = Node::start().await;
    let ports = |port: u16| json!({"ports": [{"containerPort": port}]});
    let containers = [
        container("a", node.image("a", "server status=201"), ports(8080)),
        container("b", node.image("b", "server status=202"), ports(8081)),
        container("crash", node.image("crash", "command exit=3 after=10 says=oh"), json!({})),
    ];
    node.run("web", "server", &json!({"containers": containers}));
    let crashed = |of: &Value| {
        let all = of["containerStatuses"].as_array().cloned().unwrap_or_default();
        all.iter().any(|of| of["state"]["waiting"]["reason"] == "CrashLoopBackOff")
            && all.iter().any(|of| of["ready"] == true)
    };
    let now = node.until("web", "crashing beside the others", crashed).await;
    assert_eq!(now["phase"], "Running", "{now}");
    assert!(status(&now, "containerStatuses", "crash")["restartCount"].as_u64() >= Some(1), "{now}");
    for name in ["a", "b"] {
        let own = status(&now, "containerStatuses", name);
        assert_eq!((&own["ready"], &own["restartCount"]), (&json!(true), &json!(0)), "{now}");
    }
    let conditions = now["conditions"].as_array().unwrap();
    let unready = conditions.iter().find(|condition| condition["type"] == "ContainersReady").unwrap();
    assert_eq!(unready["message"], "containers with unready status: [crash]", "{now}");
    let ip = ip_of(&now);
    assert_eq!((ask(&node, ip, 8080).await, ask(&node, ip, 8081).await), (Some(201), Some(202)));
    let log = std::fs::read_to_string(node.dir.path().join("node/logs/uid-web/crash/0.log")).unwrap();
    assert!(log.ends_with(" stdout F oh\n"), "{log}");
    node.delete("web").await;
    assert_eq!((ask(&node, ip, 8080).await, ask(&node, ip, 8081).await), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_listener_on_a_port_ends_like_a_process_that_cannot_bind() {
    let node = Node::start().await;
    let containers = [("a", "server status=201"), ("b", "server status=202")]
        .map(|(name, script)| container(name, node.image(name, script), json!({})));
    node.run("both", "server", &json!({"restartPolicy": "Never", "containers": containers}));
    let ended = |of: &Value| {
        let all = of["containerStatuses"].as_array().cloned().unwrap_or_default();
        all.iter().any(|of| of["state"]["terminated"]["exitCode"] == 1)
    };
    let now = node.until("both", "ended where the port was taken", ended).await;
    let all = now["containerStatuses"].as_array().unwrap();
    let lost = all.iter().find(|of| of["state"]["terminated"]["exitCode"] == 1).unwrap();
    let message = lost["state"]["terminated"]["message"].as_str().unwrap();
    assert_eq!(message, format!("bind: address already in use: {}:80", ip_of(&now)));
    let other = all.iter().find(|of| of["name"] != lost["name"]).unwrap();
    assert_eq!(other["ready"], true, "{now}");
    let log = format!("node/logs/uid-both/{}/0.log", lost["name"].as_str().unwrap());
    let log = std::fs::read_to_string(node.dir.path().join(log)).unwrap();
    assert!(log.contains("stderr F bind: address already in use"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_commands_succeeds_when_all_have() {
    let node = Node::start().await;
    let command = |name: &str, script: &str| container(name, node.image(name, script), json!({}));
    for (pod, exit, phase) in [("good", "command after=30", "Succeeded"), ("bad", "command exit=3 after=30", "Failed")]
    {
        let containers = [command(&format!("{pod}a"), "command after=10"), command(&format!("{pod}b"), exit)];
        node.run(pod, "command", &json!({"restartPolicy": "Never", "containers": containers}));
        node.until(pod, phase, |status| status["phase"] == phase).await;
    }
    assert!(!is_ready(&node.until("good", "done", |_| true).await));
}
