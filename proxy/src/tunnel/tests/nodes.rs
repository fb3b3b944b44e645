//! Calls between nodes themselves, and their signatures.

use super::*;
use crate::tunnel::{NodeService, NodeSignature, SignatureError};

/// Answers with the caller's name and what it asks for.
struct Names;

#[async_trait::async_trait]
impl NodeService for Names {
    async fn call(&self, node: &str, request: Request<()>) -> Response<Body> {
        Response::new(full(format!("{node} {} {}", request.method(), request.uri().path())))
    }
}

fn ask(path: &str) -> Request<()> {
    Request::get(format!("http://node{path}")).body(()).unwrap()
}

#[tokio::test]
async fn nodes_serve_calls_of_nodes_only() {
    let ca = Ca::new();
    let (a, b) = (TestNode::start(&ca, "a", 1).await, TestNode::start(&ca, "b", 2).await);
    know_each_other(&[&a, &b]);
    assert!(soon(a.tunnel.call_node("b", ask("/x"))).await.is_none(), "b has no service");
    b.tunnel.set_node_service(Arc::new(Names));
    let answer = soon(a.tunnel.call_node("b", ask("/x"))).await.unwrap();
    assert_eq!(text(answer).await, "a GET /x");
    assert!(soon(a.tunnel.call_node("c", ask("/x"))).await.is_none());
    let stranger = TestNode::start(&ca, "c", 3).await;
    stranger.tunnel.set_nodes(vec![b.config.clone(), stranger.config.clone()]);
    assert!(soon(stranger.tunnel.call_node("b", ask("/x"))).await.is_none(), "b knows no node c");
    let admin = ca.issue("kubernetes-admin", "system:masters", true, 3600);
    let admin = TestNode::with(&ca, admin, "a", 1).await;
    know_each_other(&[&admin, &b]);
    assert!(soon(admin.tunnel.call_node("b", ask("/x"))).await.is_none(), "an API server is no node");
}

#[tokio::test]
async fn the_nodes_of_one_key_are_listed() {
    let ca = Ca::new();
    let a = TestNode::start(&ca, "a", 1).await;
    let offers = |name: &str, number: u8, compiled: Option<&str>| PeerConfig {
        name: name.into(),
        compiled: compiled.map(Into::into),
        pod_cidrs: vec![format!("127.66.{number}.0/24").parse().unwrap()],
        ..a.config.clone()
    };
    a.tunnel.set_nodes(vec![
        offers("a", 1, Some("1/ff")),
        offers("b", 2, Some("1/ff")),
        offers("c", 3, Some("1/fe")),
        offers("d", 4, None),
    ]);
    assert_eq!(a.tunnel.nodes_with_compiled("1/ff"), [Arc::from("b")]);
}

#[tokio::test]
async fn signatures_are_of_one_node_and_one_message() {
    let ca = Ca::new();
    let a = TestNode::start(&ca, "a", 1).await;
    let signs = async |certificate| TestNode::with(&ca, certificate, "b", 2).await.tunnel.sign(b"message").unwrap();
    let signed = signs(ca.node("b")).await;
    let read = NodeSignature::parse(&signed.to_text()).unwrap();
    assert_eq!(read, signed);
    a.tunnel.verify("b", b"message", &read).unwrap();
    assert!(matches!(a.tunnel.verify("b", b"another", &read), Err(SignatureError::Wrong)));
    assert!(matches!(a.tunnel.verify("c", b"message", &read), Err(SignatureError::Certificate(_))));
    for (why, certificate) in [
        ("another CA", Ca::new().node("b")),
        ("expired", ca.issue("system:node:b", "system:nodes", true, -10)),
        ("a serving certificate", ca.issue("system:node:b", "system:nodes", false, 3600)),
        ("not in the group", ca.issue("system:node:b", "developers", true, 3600)),
        ("an API server", ca.issue("kubernetes-admin", "system:masters", true, 3600)),
    ] {
        let signed = signs(certificate).await;
        assert!(matches!(a.tunnel.verify("b", b"message", &signed), Err(SignatureError::Certificate(_))), "{why}");
    }
    let text = signed.to_text();
    let (_, rest) = text.split_once('.').unwrap();
    for other in ["0804", "0401", "ffff"] {
        let changed = NodeSignature::parse(&format!("{other}.{rest}")).unwrap();
        assert!(a.tunnel.verify("b", b"message", &changed).is_err(), "scheme {other}");
    }
    for bad in
        ["", "0403", "0403.", "0403.AA==", "0403..AA==", "403.AA==.AA==", "0403.AA==.!", &"0403.AA==".repeat(9999)]
    {
        assert!(matches!(NodeSignature::parse(bad), Err(SignatureError::Malformed)), "{bad:.40}");
    }
}
