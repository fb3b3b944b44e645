//! Calls between pods, to Services and to names outside, and listeners of the host.

use std::sync::Mutex;

use super::*;
use crate::routing::table::{Change, Listen, Table};
use ::http::StatusCode;
use http_body_util::{BodyExt as _, Empty, Full};
use machinery_serve::net::{Attached, Listen as At, Origin};
use serde_json::json;
use tokio_util::sync::CancellationToken;

pub(crate) struct FixedReply(pub(crate) &'static str);

#[async_trait::async_trait]
impl Serve for FixedReply {
    async fn http(&self, from: &Origin, request: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        if self.0 == "gone" {
            return Err(CallRejected::gone(request));
        }
        if self.0 == "busy" {
            return Err(CallRejected::busy(request));
        }
        let mut response = Response::new(Full::from(self.0).map_err(|never| match never {}).boxed_unsync());
        let via = from.via.as_ref().map_or_else(String::new, |via| format!("{}:{}", via.service, via.port));
        response.headers_mut().insert("x-via", via.parse().unwrap());
        response.headers_mut().insert("x-local", from.local.to_string().parse().unwrap());
        if let Some(status) = request.headers().get("x-status") {
            *response.status_mut() = StatusCode::from_bytes(status.as_bytes()).unwrap();
        }
        let from = match &from.peer {
            Peer::Pod(caller) => caller.pod.to_string(),
            Peer::Host(address) => address.ip().to_string(),
            Peer::Node => "node".to_owned(),
        };
        response.headers_mut().insert("x-from", from.parse().unwrap());
        Ok(response)
    }
}

pub(crate) fn attach(plane: &DataPlane, ip: &str, says: &'static str) -> Attached {
    plane.state.network.attach(At::tcp(ip.parse().unwrap(), 8080), Arc::new(FixedReply(says))).unwrap()
}

/// A data plane with the table that feeds its routes.
pub(crate) struct PlaneWithTable {
    plane: DataPlane,
    table: Mutex<Table>,
}

impl std::ops::Deref for PlaneWithTable {
    type Target = DataPlane;

    fn deref(&self) -> &DataPlane {
        &self.plane
    }
}

impl PlaneWithTable {
    /// Replaces the address of the API server.
    pub(crate) fn set_api_server(&mut self, at: SocketAddr) {
        Arc::get_mut(&mut self.plane.state).unwrap().config.api_server = Some(at);
    }

    /// Replaces the host's name servers.
    pub(crate) fn set_names(&mut self, names: crate::egress::external::ExternalResolver) {
        Arc::get_mut(&mut self.plane.state).unwrap().egress.set_names(names);
    }

    pub(crate) fn service(&self, key: &ObjectKey, service: Option<serde_json::Value>) {
        let service = service.map(|service| serde_json::from_value(service).unwrap());
        let change = self.table.lock().unwrap().service(key, service);
        self.state.install(&change);
    }

    pub(crate) fn slice(&self, key: &ObjectKey, slice: Option<serde_json::Value>) -> Vec<Change> {
        let slice = slice.map(|slice| serde_json::from_value(slice).unwrap());
        let changes = self.table.lock().unwrap().slice(key, slice);
        changes.iter().for_each(|change| self.state.install(change));
        changes
    }
}

pub(crate) fn plane() -> PlaneWithTable {
    let config = Config {
        bind: "127.0.0.1".parse().unwrap(),
        cluster_ip_listeners: true,
        load_balancer_pool: "127.59.0.0/24".parse().unwrap(),
        is_pool_shared: false,
        cluster_cidrs: vec!["127.64.0.0/14".parse().unwrap()],
        cluster_ca_pem: None,
        cluster_dns: Some("127.64.0.10".parse().unwrap()),
        api_server: None,
        node: "coracle-1".into(),
        nodes: ["coracle-1".to_owned()].into(),
        checkpoint: None,
    };
    let plane = DataPlane::new(Env::real(), config, PodNetwork::default()).unwrap();
    PlaneWithTable { plane, table: Mutex::default() }
}

pub(crate) fn add_service(plane: &PlaneWithTable, name: &str, spec: serde_json::Value, address: &str) -> Vec<Change> {
    let key = ObjectKey::new("shop", name);
    plane.service(&key, Some(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})));
    let slice = json!({"metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": [{"addresses": [address]}]});
    plane.slice(&key, Some(slice))
}

pub(crate) fn caller() -> Caller {
    Caller {
        node: "coracle-1".into(),
        namespace: "shop".into(),
        pod: "frontend-1".into(),
        ip: Some("127.66.0.9".parse().unwrap()),
        names: Arc::default(),
    }
}

pub(crate) fn get(uri: &str) -> Request<Body> {
    Request::get(uri).body(Empty::new().map_err(|never| match never {}).boxed_unsync()).unwrap()
}

pub(crate) async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn a_request_between_pods_crosses_no_socket_and_is_not_parsed_again() {
    let plane = plane();
    add_service(&plane, "catalog", json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80}]}), "127.66.0.2");
    let _pod = attach(&plane, "127.66.0.2", "three boats");
    for uri in
        ["http://catalog/", "http://catalog.shop.svc.cluster.local/", "http://127.64.0.10/", "http://127.66.0.2:8080/"]
    {
        assert_eq!(text(plane.http(&caller(), get(uri)).await.unwrap()).await, "three boats", "{uri}");
    }
    let metrics = plane.metrics();
    assert_eq!((metrics.guest_requests.get(), metrics.socket_hops.get(), metrics.requests_parsed.get()), (4, 0, 0));
}

#[tokio::test]
async fn a_response_between_pods_has_a_body_only_where_its_status_allows_one() {
    let plane = plane();
    let _pod = attach(&plane, "127.66.0.2", "three boats");
    for (method, status, body) in [
        ("GET", "200", "three boats"),
        ("GET", "204", ""),
        ("PUT", "304", ""),
        ("HEAD", "200", ""),
        ("GET", "404", "three boats"),
    ] {
        let mut request = get("http://127.66.0.2:8080/");
        *request.method_mut() = method.parse().unwrap();
        request.headers_mut().insert("x-status", status.parse().unwrap());
        let response = plane.http(&caller(), request).await.unwrap();
        assert_eq!(response.status().as_str(), status);
        assert_eq!(text(response).await, body, "{method} {status}");
    }
}

#[tokio::test]
async fn missing_targets_are_rejected_precisely() {
    let plane = plane();
    add_service(&plane, "catalog", json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80}]}), "127.66.0.2");
    let error = async |uri: &str| plane.http(&caller(), get(uri)).await.map(|_| ()).unwrap_err();
    assert!(matches!(error("http://catalog/").await, DialError::NoEndpoint(_)), "the pod is not there");
    assert!(matches!(error("http://catalog:81/").await, DialError::Connection { .. }));
    assert!(matches!(error("http://nope.shop.svc.cluster.local/").await, DialError::NameNotFound(_)));
    assert!(matches!(error("http://127.255.0.1/").await, DialError::Denied(_)), "the host's loopback");
    assert!(matches!(error("http://169.254.169.254/").await, DialError::Denied(_)));
    assert!(
        matches!(error("http://127.0.0.1:6443/").await, DialError::Connection { .. }),
        "a pod's loopback is its own"
    );
}

#[tokio::test]
async fn a_process_of_the_host_is_served_on_a_node_port_over_one_socket() {
    let plane = plane();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let spec = json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80, "nodePort": free}]});
    let mut changes = add_service(&plane, "catalog", spec, "127.66.0.2");
    let pod = attach(&plane, "127.66.0.2", "three boats");
    let mut change = changes.remove(0);
    change.set.retain(|listen, _| matches!(listen, Listen::Node(_)));
    let stop = CancellationToken::new();
    let mut listeners = crate::listen::Listeners::new(plane.state.clone(), stop.clone());
    assert!(listeners.apply(change).is_empty());
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", free)).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/").header("host", "x").body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!((plane.metrics().requests_parsed.get(), plane.metrics().socket_hops.get()), (1, 1));
    drop(pod);
    let request = Request::get("/").header("host", "x").body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["coracle-reason"], "no-endpoint");
    stop.cancel();
}

pub(crate) fn add_endpoints(plane: &PlaneWithTable, name: &str, addresses: &[&str]) {
    let endpoints: Vec<_> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    let slice = json!({"metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": endpoints});
    plane.slice(&ObjectKey::new("shop", name), Some(slice));
}

#[tokio::test]
async fn a_request_that_one_pod_does_not_take_goes_to_the_next() {
    let plane = plane();
    let spec = json!({"clusterIP": "127.64.0.10", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
    add_service(&plane, "catalog", spec, "127.66.0.2");
    add_endpoints(&plane, "catalog", &["127.66.0.2", "127.66.0.3", "127.66.0.4", "127.66.0.5"]);
    let _stopping: Vec<_> = ["127.66.0.2", "127.66.0.3"].map(|ip| attach(&plane, ip, "gone")).into();
    let _busy = attach(&plane, "127.66.0.4", "busy");
    let ready = attach(&plane, "127.66.0.5", "three boats");
    for _ in 0..20 {
        let body = Full::from("an order").map_err(|never| match never {}).boxed_unsync();
        let order = Request::post("http://catalog/").body(body).unwrap();
        assert_eq!(text(plane.http(&caller(), order).await.unwrap()).await, "three boats");
    }
    drop(ready);
    let overload = plane.http(&caller(), get("http://catalog/")).await.unwrap();
    assert_eq!(
        (overload.status().as_u16(), &overload.headers()["coracle-reason"]),
        (503, &"overload".parse().unwrap())
    );
    assert_eq!(plane.metrics().no_endpoint.get(), 0);
}

#[tokio::test]
async fn a_call_carries_its_caller_and_service() {
    let plane = plane();
    add_service(&plane, "catalog", json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80}]}), "127.66.0.2");
    let _pod = attach(&plane, "127.66.0.2", "three boats");
    let seen = async |uri: &str| {
        let head = plane.http(&caller(), get(uri)).await.unwrap().into_parts().0;
        ["x-from", "x-via", "x-local"].map(|name| head.headers[name].to_str().unwrap().to_owned())
    };
    assert_eq!(seen("http://catalog/").await, ["frontend-1", "shop/catalog:80", "127.66.0.2:8080"]);
    assert_eq!(seen("http://127.66.0.2:8080/").await, ["frontend-1", "", "127.66.0.2:8080"]);
}

#[tokio::test]
async fn a_stream_to_a_pod_is_served_as_a_socket_would_be() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let plane = plane();
    add_service(&plane, "catalog", json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80}]}), "127.66.0.2");
    let _pod = attach(&plane, "127.66.0.2", "three boats");
    let to = |host: &str, port| machinery_serve::net::Target { host: host.to_owned(), port };
    let mut stream = plane.stream(&caller(), &to("catalog", 80)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    // A half-closed stream still gets its response.
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("three boats"), "{answer}");
    for (host, port) in [("127.0.0.1", 6443), ("127.255.0.1", 22), ("nope.shop.svc.cluster.local", 80)] {
        assert!(plane.stream(&caller(), &to(host, port)).await.is_err(), "{host}");
    }
    assert_eq!(plane.metrics().socket_hops.get(), 0);
}

#[tokio::test]
async fn look_ups_and_calls_agree() {
    let plane = plane();
    add_service(&plane, "catalog", json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80}]}), "127.66.0.2");
    add_service(&plane, "crew", json!({"clusterIP": "None", "ports": [{"port": 80}]}), "127.66.0.3");
    for (name, found, ip) in [
        ("catalog", "catalog.shop.svc.cluster.local", "127.64.0.10"),
        ("Catalog.shop", "catalog.shop.svc.cluster.local", "127.64.0.10"),
        ("crew", "crew.shop.svc.cluster.local", "127.66.0.3"),
        ("127-66-0-3.crew", "127-66-0-3.crew.shop.svc.cluster.local", "127.66.0.3"),
        ("localhost", "localhost", "127.0.0.1"),
        ("alias", "alias", "192.0.2.7"),
        ("127.64.0.10", "catalog.shop.svc.cluster.local", ""),
        ("127.66.0.3", "127-66-0-3.crew.shop.svc.cluster.local", ""),
    ] {
        let mut caller = caller();
        Arc::make_mut(&mut caller.names).hosts = [("alias".into(), "192.0.2.7".parse().unwrap())].into();
        let answer = Dial::resolve(&*plane, &caller, name).await.unwrap();
        let addresses = ip.parse::<IpAddr>().into_iter().collect();
        assert_eq!(answer, ResolvedName { name: found.into(), addresses }, "{name}");
    }
    let mut dns_only = caller();
    Arc::make_mut(&mut dns_only.names).hosts = [("catalog".into(), "192.0.2.7".parse().unwrap())].into();
    Arc::make_mut(&mut dns_only.names).dns_only = true;
    let answer = Dial::resolve(&*plane, &dns_only, "catalog").await.unwrap();
    assert_eq!(answer.name, "catalog.shop.svc.cluster.local", "the hosts file is not read");
    for unknown in ["nope.shop.svc.cluster.local", "192.0.2.7", "127.66.0.2"] {
        let answer = Dial::resolve(&*plane, &caller(), unknown).await;
        assert!(matches!(answer, Err(DialError::NameNotFound(_))), "{unknown}: {answer:?}");
    }
    assert_eq!(plane.name_server(&caller()), Some("127.64.0.10".parse().unwrap()));
}

#[tokio::test]
async fn an_external_name_leads_where_its_target_does() {
    let mut plane = plane();
    plane.set_names(crate::egress::external::tests::tarpit().await);
    add_service(&plane, "catalog", json!({"clusterIP": "127.64.0.20", "ports": [{"port": 80}]}), "127.66.0.2");
    let _pod = attach(&plane, "127.66.0.2", "three boats");
    let alias = |name: &str, to: &str| {
        let spec = json!({"type": "ExternalName", "externalName": to});
        plane.service(
            &ObjectKey::new("shop", name),
            Some(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})),
        );
    };
    alias("inside", "catalog.shop.svc.cluster.local");
    alias("twice", "Inside.shop.svc.cluster.local.");
    alias("loop", "loop.shop.svc.cluster.local");
    alias("db", "good.example.com");
    alias("evil", "goodbad.example.com");
    alias("number", "192.0.2.1");
    for uri in ["http://inside/", "http://twice.shop/"] {
        assert_eq!(text(plane.http(&caller(), get(uri)).await.unwrap()).await, "three boats", "{uri}");
    }
    let error = async |uri: &str| plane.http(&caller(), get(uri)).await.map(|_| ()).unwrap_err();
    assert!(matches!(error("http://loop/").await, DialError::NameNotFound(_)));
    assert!(matches!(error("http://number/").await, DialError::Connection { .. }));
    assert!(matches!(error("http://evil/").await, DialError::Denied(_)), "a name that leads into the cluster");
    let found = Dial::resolve(&*plane, &caller(), "db").await.unwrap();
    let expected = ResolvedName { name: "good.example.com".into(), addresses: vec!["192.0.2.1".parse().unwrap()] };
    assert_eq!(found, expected);
}

#[tokio::test]
async fn near_endpoints_are_preferred_while_they_serve() {
    let plane = plane();
    let spec = json!({"clusterIP": "127.64.0.20", "trafficDistribution": "PreferSameNode", "ports": [{"port": 80}]});
    let key = ObjectKey::new("shop", "catalog");
    plane.service(&key, Some(json!({"metadata": {"name": "catalog", "namespace": "shop"}, "spec": spec})));
    let slice = json!({"metadata": {"name": "catalog", "namespace": "shop",
        "labels": {"kubernetes.io/service-name": "catalog"}}, "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080}], "endpoints": [
            {"addresses": ["127.66.0.2"], "hints": {"forNodes": [{"name": "coracle-1"}]}},
            {"addresses": ["127.66.0.3"], "hints": {"forNodes": [{"name": "coracle-2"}]}},
            {"addresses": ["127.66.0.4"], "hints": {"forNodes": [{"name": "coracle-3"}]}}]});
    plane.slice(&key, Some(slice));
    let near = attach(&plane, "127.66.0.2", "near");
    let _far = [attach(&plane, "127.66.0.3", "far"), attach(&plane, "127.66.0.4", "far")];
    for _ in 0..20 {
        assert_eq!(text(plane.http(&caller(), get("http://catalog/")).await.unwrap()).await, "near");
    }
    drop(near);
    assert_eq!(text(plane.http(&caller(), get("http://catalog/")).await.unwrap()).await, "far");
}

#[tokio::test]
async fn service_kubernetes_leads_to_the_api_server_only() {
    let mut plane = plane();
    let api: SocketAddr = "127.0.0.1:6443".parse().unwrap();
    Arc::get_mut(&mut plane.plane.state).unwrap().config.api_server = Some(api);
    let route = |namespace: &str, name: &str| PortRoute {
        via: Some(Arc::new(ServicePort { service: ObjectKey::new(namespace, name), port: 443 })),
        ..PortRoute::default()
    };
    let kubernetes = route("default", "kubernetes");
    assert!(plane.state.may_dial(&kubernetes, api));
    for other in ["127.0.0.1:5000", "127.0.0.2:6443", "169.254.169.254:80", "[::1]:6443", "127.64.0.1:443"] {
        assert!(!plane.state.may_dial(&kubernetes, other.parse().unwrap()), "{other}");
    }
    assert!(plane.state.may_dial(&kubernetes, "192.0.2.1:6443".parse().unwrap()), "an API server elsewhere");
    assert!(!plane.state.may_dial(&route("shop", "kubernetes"), api));
}

#[tokio::test]
async fn a_listener_serves_and_names_no_endpoint() {
    let plane = plane();
    let stop = CancellationToken::new();
    let mut listeners = crate::listen::Listeners::new(plane.state.clone(), stop.clone());
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let route = Arc::new(PortRoute::default());
    let set = [(Listen::Node(free), route)].into();
    assert!(listeners.apply(Change { set, ..Default::default() }).is_empty());
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", free)).await.unwrap();
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.0 503"), "{}", String::from_utf8_lossy(&answer));
    stop.cancel();
}

#[tokio::test]
async fn a_port_in_use_is_reported_once() {
    let plane = plane();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let spec = json!({"clusterIP": "None", "ports": [{"port": 80, "nodePort": port}]});
    let change = add_service(&plane, "catalog", spec, "127.66.0.2").remove(0);
    let mut listeners = crate::listen::Listeners::new(plane.state.clone(), CancellationToken::new());
    assert_eq!(listeners.apply(change).len(), 1);
    let again = plane.slice(&ObjectKey::new("shop", "catalog"), None).remove(0);
    assert!(listeners.apply(again).is_empty());
}
