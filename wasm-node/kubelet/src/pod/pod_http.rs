//! Requests of the node to its own pods: probes and hooks. They go straight to the pod, over no socket.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use machinery_serve::net::{Body, Origin, Peer, PodNetwork, Protocol, Refused};

use super::settings::{Check, Get, Port};
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
pub(crate) async fn ask(network: &PodNetwork, ip: IpAddr, check: &Check, timeout: Duration) -> Asked {
    match check {
        Check::Http(get) => ask_http(network, ip, get, timeout).await,
        Check::Tcp(port) => ask_tcp(network, ip, port),
    }
}

/// Whether somebody listens: a pod's listener takes every connection at once.
fn ask_tcp(network: &PodNetwork, ip: IpAddr, port: &Port) -> Asked {
    let Some(number) = port.number else { return Asked::Failed(no_port(port)) };
    match network.find(ip, Protocol::Tcp, number) {
        Some(_) => Asked::Passed,
        None => Asked::Failed(format!("dial tcp {}: connect: connection refused", SocketAddr::new(ip, number))),
    }
}

fn no_port(port: &Port) -> String {
    format!("couldn't find port: {}", port.text)
}

async fn ask_http(network: &PodNetwork, ip: IpAddr, get: &Get, timeout: Duration) -> Asked {
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
    let Some(port) = get.port.number else { return Err(no_port(&get.port)) };
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use machinery_serve::net::{Listen, Serve};

    use super::*;

    struct Silent;

    #[async_trait::async_trait]
    impl Serve for Silent {
        async fn http(
            &self,
            _: &Origin,
            request: Request<Body>,
        ) -> Result<http::Response<Body>, Refused<Request<Body>>> {
            Err(Refused::gone(request))
        }
    }

    #[tokio::test]
    async fn a_tcp_probe_sees_who_listens() {
        let (network, ip) = (PodNetwork::default(), IpAddr::from([127, 66, 0, 9]));
        let _listens = network.attach(Listen::tcp(ip, 80), Arc::new(Silent)).unwrap();
        let port = |number: Option<u16>| Check::Tcp(Port { number, text: "web".into() });
        let failed = async |number| match ask(&network, ip, &port(number), Duration::from_secs(1)).await {
            Asked::Failed(why) => Some(why),
            Asked::Passed | Asked::NoRoom => None,
        };
        assert_eq!(failed(Some(80)).await, None);
        assert_eq!(failed(Some(81)).await.unwrap(), "dial tcp 127.66.0.9:81: connect: connection refused");
        assert_eq!(failed(None).await.unwrap(), "couldn't find port: web");
    }
}
