//! HTTP requests of the node to its own pods: probes and hooks. They go straight to the pod, over no socket.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use machinery_serve::net::{Body, Origin, Peer, PodNetwork, Protocol, Refused};

use super::settings::Get;
use runtime_api::NodeCall;

/// What is read of an answer, so that a guest can finish what it sends (upstream's bound).
const BODY_BYTES_MAX: usize = 10 << 10;

/// How a probe went.
pub(crate) enum Asked {
    /// The guest answered well.
    Passed,
    /// An error, also the guest's own: what is wrong, in upstream's words.
    Failed(String),
    /// No instance could be made beside those that live: the guest was not asked, so nothing is known.
    NoRoom,
}

/// Asks for a probe.
pub(crate) async fn ask(network: &PodNetwork, ip: IpAddr, get: &Get, timeout: Duration) -> Asked {
    let own = NodeCall::default();
    match send(network, ip, get, timeout, own.clone()).await {
        Ok(status) if (200..400).contains(&status) => Asked::Passed,
        Ok(status) => Asked::Failed(format!("HTTP probe failed with statuscode: {status}")),
        Err(_) if own.waits() => Asked::NoRoom,
        Err(error) => Asked::Failed(error),
    }
}

/// Asks for a hook, whatever the guest answers: its status.
pub(crate) async fn call(network: &PodNetwork, ip: IpAddr, get: &Get, timeout: Duration) -> Result<u16, String> {
    send(network, ip, get, timeout, NodeCall::default()).await
}

async fn send(network: &PodNetwork, ip: IpAddr, get: &Get, timeout: Duration, own: NodeCall) -> Result<u16, String> {
    let Some(port) = get.port else { return Err(format!("couldn't find port: {}", get.port_text)) };
    let host = if ip.is_ipv6() { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
    let url = format!("http://{host}{}", get.path);
    let refused = || format!("Get {url:?}: dial tcp {host}: connect: connection refused");
    let serve = network.find(ip, Protocol::Tcp, port).ok_or_else(refused)?;
    let mut request = Request::get(&url).extension(own);
    let has = |name: &str| get.headers.iter().any(|(own, _)| own.eq_ignore_ascii_case(name));
    for (name, value) in [("user-agent", "kube-probe/1.36"), ("accept", "*/*"), ("host", host.as_str())] {
        if !has(name) {
            request = request.header(name, value);
        }
    }
    for (name, value) in &get.headers {
        // As upstream: an empty Accept or User-Agent leaves the header out.
        if !value.is_empty() {
            request = request.header(name, value);
        }
    }
    let body: Body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    let request = request.body(body).map_err(|error| format!("Get {url:?}: {error}"))?;
    let exchange = async {
        let origin = Origin { peer: Peer::Node, local: SocketAddr::new(ip, port), via: None };
        let response = match serve.http(&origin, request).await {
            Ok(response) => response,
            Err(Refused::Busy(_)) => return Ok(StatusCode::SERVICE_UNAVAILABLE.as_u16()),
            Err(Refused::Gone(_) | Refused::Denied(_) | Refused::Closed) => return Err(refused()),
        };
        let status = response.status();
        let mut body = response.into_body();
        let mut read = 0;
        while read < BODY_BYTES_MAX {
            match body.frame().await {
                Some(Ok(frame)) => read += frame.data_ref().map_or(0, bytes::Bytes::len),
                Some(Err(error)) => return Err(format!("Get {url:?}: {error}")),
                None => break,
            }
        }
        Ok(status.as_u16())
    };
    match tokio::time::timeout(timeout, exchange).await {
        Ok(result) => result,
        Err(_) => {
            Err(format!("Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"))
        }
    }
}
