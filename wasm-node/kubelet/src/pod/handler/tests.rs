//! Probes and hooks against a fake pod, and against other hosts.

use std::net::Ipv4Addr;
use std::sync::Mutex;

use ::http::{HeaderMap, Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use machinery_serve::net::http::request_over_pipe;
use machinery_serve::net::{Attached, Body, CallRejected, Listen, Origin, Serve, Stream};

use jiff::Timestamp;
use machinery_env::Env;

use super::*;
use crate::mailbox::mailbox;
use crate::pod::lifecycle::check::{HttpGet, ProbeSpec};
use crate::pod::lifecycle::state::ProbeKind;
use crate::pod::probe::{self, ProbeTarget};
use crate::pod::worker::Task;

/// Responds by path: `/STATUS`, `/to/LOCATION`, `/hang`, and gRPC.
#[derive(Default)]
struct Pod(Mutex<Vec<HeaderMap>>);

#[async_trait::async_trait]
impl Serve for Pod {
    async fn http(&self, _: &Origin, request: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        self.0.lock().unwrap().push(request.headers().clone());
        let path = request.uri().path().to_owned();
        if path == "/gone" {
            return Err(CallRejected::gone(request));
        }
        if path == "/hang" {
            std::future::pending::<()>().await;
        }
        let mut response = Response::new(Full::new(Bytes::from("says")).map_err(|never| match never {}).boxed_unsync());
        if let Some(location) = path.strip_prefix("/to/") {
            *response.status_mut() = ::http::StatusCode::FOUND;
            response.headers_mut().insert("location", location.parse().unwrap());
        } else if let Ok(status) = path[1..].parse::<u16>() {
            *response.status_mut() = ::http::StatusCode::from_u16(status).unwrap();
        } else if path.starts_with("/grpc") {
            let outcome = request.into_body().collect().await.unwrap().to_bytes();
            let serving = if outcome.ends_with(b"sick") { 2 } else { 1 };
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let body = Full::new(Bytes::from(vec![0, 0, 0, 0, 2, 8, serving]));
            let body = body.with_trailers(async move { Some(Ok(trailers)) });
            response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
            response.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());
        }
        Ok(response)
    }
}

/// The same pod as a server of bytes.
struct ByteServer {
    pod: Arc<Pod>,
    /// Whether it ever accepts a connection.
    accepts: bool,
    this: std::sync::Weak<Self>,
}

impl ByteServer {
    fn new(pod: Arc<Pod>, accepts: bool) -> Arc<Self> {
        Arc::new_cyclic(|this| Self { pod, accepts, this: this.clone() })
    }
}

#[async_trait::async_trait]
impl Serve for ByteServer {
    fn speaks_http(&self) -> bool {
        false
    }

    async fn http(&self, from: &Origin, request: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        request_over_pipe(self.this.upgrade().unwrap(), from, request).await
    }

    async fn stream(self: Arc<Self>, from: Origin, stream: Stream) -> Result<(), CallRejected<Stream>> {
        if !self.accepts {
            std::future::pending::<()>().await;
        }
        self.pod.clone().stream(from, stream).await
    }
}

/// A data plane that connects every name but one to a pod.
struct Plane(Arc<Pod>);

#[async_trait::async_trait]
impl Dial for Plane {
    async fn http(&self, _: &Caller, _: Request<Body>) -> Result<Response<Body>, DialError> {
        Err(DialError::Denied("http".into()))
    }

    async fn stream(&self, caller: &Caller, to: &Target) -> Result<Stream, DialError> {
        assert_eq!((&*caller.pod, &*caller.namespace), ("p", "n"));
        if to.host == "169.254.169.254" {
            return Err(DialError::Denied(to.host.clone()));
        }
        let (near, far) = Stream::pipe();
        let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), to.port);
        let origin = Origin { peer: machinery_serve::net::Peer::Node, local: at, via: None };
        tokio::spawn(self.0.clone().stream(origin, far));
        Ok(near)
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn handlers() -> (HandlerRunner, Arc<Pod>, Attached) {
    let (network, ip, pod) = (PodNetwork::default(), IpAddr::from([127, 66, 0, 9]), Arc::new(Pod::default()));
    let attached = network.attach(Listen::tcp(ip, 80), pod.clone()).unwrap();
    let caller =
        Caller { node: "m".into(), namespace: "n".into(), pod: "p".into(), ip: Some(ip), names: Arc::default() };
    let handlers = HandlerRunner {
        env: Env::real(),
        network,
        dial: Arc::new(Plane(pod.clone())),
        sandboxes: Arc::default(),
        caller,
        ip,
        uid: "u".into(),
        container: "c".into(),
        pod: "p_n(u)".into(),
    };
    (handlers, pod, attached)
}

fn port(number: u16) -> Port {
    Port { number: Some(number), text: number.to_string() }
}

fn get(host: Option<&str>, path: &str) -> HttpGet {
    HttpGet { host: host.map(str::to_owned), https: false, port: port(80), path: path.into(), headers: Vec::new() }
}

fn described(outcome: ProbeOutcome) -> String {
    match outcome {
        ProbeOutcome::Result(ProbeResult::Passed) => "passed".into(),
        ProbeOutcome::Result(ProbeResult::Warned(what)) => format!("warned: {what}"),
        ProbeOutcome::Result(ProbeResult::Failed(why)) => format!("failed: {why}"),
        ProbeOutcome::Result(ProbeResult::Errored(why)) => format!("errored: {why}"),
        ProbeOutcome::NoCapacity => "no capacity".into(),
    }
}

#[tokio::test]
async fn a_tcp_probe_finds_a_listener() {
    let (handlers, _, _attached) = handlers();
    let ask = async |host: Option<&str>, port| {
        described(handlers.probe(&Check::Tcp { host: host.map(str::to_owned), port }, SECOND).await)
    };
    assert_eq!(ask(None, port(80)).await, "passed");
    assert_eq!(ask(None, port(81)).await, "failed: dial tcp 127.66.0.9:81: connect: connection refused");
    let unnamed = Port { number: None, text: "web".into() };
    assert_eq!(ask(None, unnamed).await, "errored: couldn't find port: web");
    assert_eq!(ask(Some("other"), port(5)).await, "passed");
    let denied = ask(Some("169.254.169.254"), port(80)).await;
    assert!(denied.starts_with("failed: dial tcp 169.254.169.254: connect: connections to"), "{denied}");
}

#[tokio::test(start_paused = true)]
async fn the_first_probe_waits_for_no_timer_and_the_next_ones_for_the_period() {
    // Timers have millisecond resolution: the offset makes a zero-length timer visible.
    tokio::time::advance(Duration::from_micros(100)).await;
    let (handlers, _, _attached) = handlers();
    let (env, _) = Env::seeded(1, Timestamp::UNIX_EPOCH);
    let of = ProbeTarget { container: 0, attempt: 0, kind: ProbeKind::Readiness, since: env.now() };
    let check = Check::Tcp { host: None, port: port(80) };
    let spec = ProbeSpec { check, initial_delay: Duration::ZERO, period: SECOND, timeout: SECOND };
    let (sender, mut messages) = mailbox(8);
    let began = Env::real().instant();
    let _probes = Task(tokio::spawn(probe::run(env, handlers, spec, of, sender)));
    for after in [Duration::ZERO, SECOND, 2 * SECOND] {
        messages.recv().await;
        let late = Env::real().instant() - began - after;
        assert!(late.is_zero() || !after.is_zero() && late <= Duration::from_millis(1), "{after:?}: {late:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_http_probe_reads_the_answer_as_upstream() {
    let (handlers, pod, _attached) = handlers();
    for host in [None, Some("127.66.0.9"), Some("web.shop")] {
        let ask = async |path: &str| described(handlers.probe(&Check::Http(get(host, path)), SECOND).await);
        assert_eq!(ask("/").await, "passed");
        assert_eq!(ask("/404").await, "failed: HTTP probe failed with statuscode: 404");
        assert_eq!(ask("/300").await, "warned: Probe terminated redirects, Response body: says");
        assert_eq!(ask("/to//200").await, "passed");
        assert_eq!(ask("/to//500").await, "failed: HTTP probe failed with statuscode: 500");
        assert!(ask("/to/http://elsewhere/").await.starts_with("warned: Probe terminated redirects"));
        assert!(ask("/to//to//to//to//to//to//to//to//to//to//200").await.ends_with(": stopped after 10 redirects"));
    }
    let outcome = pod.0.lock().unwrap().first().cloned().unwrap();
    assert_eq!(
        ["user-agent", "accept", "host"].map(|name| outcome[name].to_str().unwrap()),
        ["kube-probe/1.36", "*/*", "127.66.0.9:80"]
    );
    let slow = described(handlers.probe(&Check::Http(get(None, "/hang")), SECOND).await);
    assert_eq!(
        slow,
        "failed: Get \"http://127.66.0.9:80/hang\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
    );
    let gone = described(handlers.probe(&Check::Http(get(None, "/gone")), SECOND).await);
    assert_eq!(gone, "failed: Get \"http://127.66.0.9:80/gone\": dial tcp 127.66.0.9:80: connect: connection refused");
}

#[tokio::test]
async fn tls_to_a_plain_server_fails_a_probe_and_a_hook_falls_back() {
    let (handlers, pod, _attached) = handlers();
    for (host, name) in [(None, "127.66.0.9:80"), (Some("web.shop"), "web.shop:80")] {
        let https = HttpGet { https: true, ..get(host, "/") };
        let outcome = described(handlers.probe(&Check::Http(https.clone()), 10 * SECOND).await);
        assert_eq!(
            outcome,
            format!("failed: Get \"https://{name}/\": http: server gave HTTP response to HTTPS client")
        );
        let outcome = handlers.hook(&HookSpec::Http(https)).await;
        assert_eq!(outcome, HookOutcome { fell_back: Some(name.into()), failure: None });
    }
    let agents = pod.0.lock().unwrap();
    assert!(agents.iter().all(|headers| headers["user-agent"] == "kube-lifecycle/1.36"));
}

#[tokio::test]
async fn a_hook_fails_in_upstreams_words() {
    let (handlers, ..) = handlers();
    for (hook, words) in [
        (
            HookSpec::Http(HttpGet { port: port(81), ..get(None, "/x") }),
            "HTTP lifecycle hook (/x) for Container \"c\" in Pod \"p_n(u)\" failed - error: Get \"http://127.66.0.9:81/x\": dial tcp 127.66.0.9:81: connect: connection refused",
        ),
        (
            HookSpec::Exec(vec!["sh".into(), "-c".into(), "false".into()]),
            "Exec lifecycle hook ([sh -c false]) for Container \"c\" in Pod \"p_n(u)\" failed - error: failed to exec in container: container is not running, message: \"\"",
        ),
        (HookSpec::Invalid, "Cannot run handler: invalid handler: tcpSocket"),
    ] {
        assert_eq!(handlers.hook(&hook).await.failure.unwrap(), words);
    }
}

#[tokio::test]
async fn a_grpc_probe_checks_the_health_of_a_service() {
    let (handlers, _, _attached) = handlers();
    let ask = async |port, service: &str| {
        described(handlers.probe(&Check::Grpc { port, service: service.into() }, SECOND).await)
    };
    assert_eq!(ask(80, "").await, "passed");
    assert_eq!(ask(80, "sick").await, "failed: service unhealthy (responded with \"NOT_SERVING\")");
    assert_eq!(
        ask(81, "").await,
        "failed: timeout: failed to connect service \"127.66.0.9:81\" within 1s: context deadline exceeded"
    );
}

#[tokio::test(start_paused = true)]
async fn probes_and_hooks_reach_a_server_of_bytes() {
    let (handlers, pod, _attached) = handlers();
    let attach = |port, accepts| {
        handlers.network.attach(Listen::tcp(handlers.ip, port), ByteServer::new(pod.clone(), accepts)).unwrap()
    };
    let _attached = [attach(90, true), attach(91, false)];
    let http = async |number, path: &str| {
        described(handlers.probe(&Check::Http(HttpGet { port: port(number), ..get(None, path) }), SECOND).await)
    };
    assert_eq!(http(90, "/").await, "passed");
    assert_eq!(http(90, "/404").await, "failed: HTTP probe failed with statuscode: 404");
    assert_eq!(http(90, "/to//200").await, "passed");
    assert_eq!(pod.0.lock().unwrap()[0]["host"], "127.66.0.9:90");
    assert_eq!(
        http(91, "/").await,
        "failed: Get \"http://127.66.0.9:91/\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
    );
    let grpc = async |port, service: &str| {
        described(handlers.probe(&Check::Grpc { port, service: service.into() }, SECOND).await)
    };
    assert_eq!(grpc(90, "").await, "passed");
    assert_eq!(grpc(90, "sick").await, "failed: service unhealthy (responded with \"NOT_SERVING\")");
    assert_eq!(grpc(91, "").await, "failed: timeout: health rpc did not complete within 1s");
    for number in [90, 91] {
        let tcp = Check::Tcp { host: None, port: port(number) };
        assert_eq!(described(handlers.probe(&tcp, SECOND).await), "passed");
    }
    let https = HttpGet { https: true, port: port(90), ..get(None, "/") };
    let outcome = described(handlers.probe(&Check::Http(https.clone()), SECOND).await);
    assert_eq!(outcome, "failed: Get \"https://127.66.0.9:90/\": http: server gave HTTP response to HTTPS client");
    let outcome = handlers.hook(&HookSpec::Http(https)).await;
    assert_eq!(outcome, HookOutcome { fell_back: Some("127.66.0.9:90".into()), failure: None });
}
