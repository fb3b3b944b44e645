//! The data plane's state: the table, the counters, and the way to the pods of this process and to the outside.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use ::http::{Request, Response};
use ipnet::IpNet;
use machinery::api::ObjectKey;
use machinery::env::Env;
use machinery::net::{Body, Caller, Dial, DialError, PodNetwork};
use tokio::sync::Semaphore;

use crate::balance::Affinity;
use crate::http::forward::{self, Exchange};
use crate::metrics::Metrics;
use crate::outside::Outside;
use crate::resolve::{self, Target};
use crate::table::{Endpoint, PortRoute, ServiceRoutes, Table};

/// Connections of host processes that are open at once, over all listeners: far over what one machine's tests and
/// developers open, and a bound on what they cost (some 100 KiB each at worst).
const CONNECTIONS_MAX: usize = 8_192;

/// What a data plane is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where NodePorts listen.
    pub bind: IpAddr,
    /// Whether the host's own addresses can carry ClusterIPs (contract.md §3: blocks of 127.0.0.0/8 on Linux).
    pub cluster_ip_listeners: bool,
    /// The cluster's own blocks: Services' and pods'.
    pub cluster_cidrs: Vec<IpNet>,
    /// The cluster's CA as PEM: what guests' HTTPS calls to cluster names are verified with.
    pub cluster_ca_pem: Option<String>,
    /// This node's name, for events.
    pub node: String,
}

/// One per process, also with several node agents in it.
#[derive(Debug, Clone)]
pub struct DataPlane {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) env: Env,
    pub(crate) config: Config,
    pub(crate) network: PodNetwork,
    pub(crate) table: RwLock<Table>,
    pub(crate) metrics: Metrics,
    pub(crate) outside: Outside,
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) affinity: Mutex<std::collections::HashMap<(String, u16), Affinity>>,
}

impl DataPlane {
    /// A data plane with an empty table.
    ///
    /// # Errors
    /// The CA is no PEM certificate.
    pub fn new(env: Env, config: Config, network: PodNetwork) -> Result<Self, crate::outside::BadCertificate> {
        let outside = Outside::new(config.cluster_ca_pem.as_deref())?;
        Ok(Self {
            inner: Arc::new(Inner {
                env,
                config,
                network,
                table: RwLock::default(),
                metrics: Metrics::default(),
                outside,
                connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
                affinity: Mutex::default(),
            }),
        })
    }

    /// What this data plane counts.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }
}

impl Inner {
    /// Whether an address belongs to the cluster: never dialled as one of the host's or of the outside.
    pub(crate) fn is_cluster(&self, ip: IpAddr) -> bool {
        self.config.cluster_cidrs.iter().any(|cidr| cidr.contains(&ip))
    }

    /// Whether requests, not connections, are balanced (contract.md §4).
    pub(crate) fn is_http(&self, route: &PortRoute) -> bool {
        let endpoints = route.usable();
        route.http || endpoints.is_empty() || endpoints.iter().any(|endpoint| self.is_cluster(endpoint.ip))
    }

    /// Whether the data plane may open a socket to an endpoint. The host's loopback is for the apiserver's own
    /// `kubernetes` endpoints only; an address of the cluster is reached through its pod or not at all.
    pub(crate) fn may_dial(&self, route: &PortRoute, ip: IpAddr) -> bool {
        if self.is_cluster(ip) {
            return false;
        }
        let kubernetes =
            route.service.as_ref().is_some_and(|key| key.namespace == "default" && key.name == "kubernetes");
        kubernetes || !crate::outside::is_special(ip)
    }

    fn with_table<T>(&self, read: impl FnOnce(&Table) -> T) -> T {
        read(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn resolve(&self, host: &str, port: u16, namespace: &str) -> Resolved {
        self.with_table(|table| match resolve::target(host, namespace, |key| table.routes(key).is_some()) {
            Target::Own => Resolved::Own,
            Target::Unknown => Resolved::Unknown,
            Target::Outside(name) => Resolved::Outside(name),
            Target::Ip(ip) => match table.by_ip(ip) {
                Some(routes) => {
                    routes.ports.get(&port).map_or(Resolved::Refused, |route| Resolved::Route(route.clone()))
                }
                None => Resolved::Address(ip),
            },
            Target::Endpoint(key, name) => match table.routes(&key) {
                Some(routes) => routes.straight_to(key, port, |endpoint| endpoint.hostname.as_deref() == Some(&name)),
                None => Resolved::Unknown,
            },
            Target::Service(key) => match table.routes(&key) {
                Some(routes) if routes.headless => routes.straight_to(key, port, |_| true),
                Some(routes) => {
                    routes.ports.get(&port).map_or(Resolved::Refused, |route| Resolved::Route(route.clone()))
                }
                None => Resolved::Unknown,
            },
        })
    }
}

impl ServiceRoutes {
    /// A name that leads to endpoints themselves: the port is theirs.
    fn straight_to(&self, key: ObjectKey, port: u16, wanted: impl Fn(&Endpoint) -> bool) -> Resolved {
        let all = self.ports.values().flat_map(|route| route.usable());
        let ready: Vec<_> = all.filter(|endpoint| endpoint.port == port && wanted(endpoint)).cloned().collect();
        Resolved::Route(Arc::new(PortRoute { service: Some(key), port, ready, ..PortRoute::default() }))
    }
}

enum Resolved {
    Own,
    Unknown,
    Refused,
    Outside(String),
    Address(IpAddr),
    Route(Arc<PortRoute>),
}

fn refused(address: impl ToString) -> DialError {
    DialError::Connection { address: address.to_string(), source: "connection refused".into() }
}

#[async_trait::async_trait]
impl Dial for DataPlane {
    async fn http(&self, caller: &Caller, request: Request<Body>) -> Result<Response<Body>, DialError> {
        let inner = &self.inner;
        inner.metrics.guest_requests.inc();
        let https = request.uri().scheme_str() == Some("https");
        let Some(host) = request.uri().host().map(str::to_owned) else {
            return Err(DialError::NameNotFound(String::new()));
        };
        let port = request.uri().port_u16().unwrap_or(if https { 443 } else { 80 });
        match inner.resolve(&host, port, &caller.namespace) {
            Resolved::Unknown => Err(DialError::NameNotFound(host)),
            Resolved::Refused => Err(refused(format!("{host}:{port}"))),
            Resolved::Own => match caller.ip.and_then(|ip| inner.network.find(ip, port)) {
                Some(serve) => Ok(serve.http(request).await),
                None => Err(refused(format!("{host}:{port}"))),
            },
            Resolved::Address(ip) => match inner.network.find(ip, port) {
                Some(serve) => Ok(serve.http(request).await),
                None if inner.is_cluster(ip) => Err(refused(SocketAddr::new(ip, port))),
                None => {
                    inner.metrics.socket_hops.inc();
                    inner.outside.http_to(ip, port, &host, https, request).await
                }
            },
            Resolved::Outside(name) => {
                inner.metrics.socket_hops.inc();
                inner.outside.http(&name, port, https, request).await
            }
            Resolved::Route(route) => {
                let exchange = Exchange { client: caller.ip, node: Some(&caller.node), name: &host, https };
                forward::send(inner, &route, &exchange, request).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Listen;
    use ::http::StatusCode;
    use http_body_util::{BodyExt as _, Empty, Full};
    use machinery::net::Serve;
    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    struct Says(&'static str);

    #[async_trait::async_trait]
    impl Serve for Says {
        async fn http(&self, _: Request<Body>) -> Response<Body> {
            Response::new(Full::from(self.0).map_err(|never| match never {}).boxed_unsync())
        }
    }

    fn plane() -> DataPlane {
        let config = Config {
            bind: "127.0.0.1".parse().unwrap(),
            cluster_ip_listeners: true,
            cluster_cidrs: vec!["127.64.0.0/14".parse().unwrap()],
            cluster_ca_pem: None,
            node: "coracle-1".into(),
        };
        DataPlane::new(Env::real(), config, PodNetwork::default()).unwrap()
    }

    fn add_service(plane: &DataPlane, name: &str, spec: serde_json::Value, address: &str) -> Vec<crate::table::Change> {
        let key = ObjectKey::new("shop", name);
        let service =
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})).unwrap();
        let slice = serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": [{"addresses": [address]}]}),
        )
        .unwrap();
        let mut table = plane.inner.table.write().unwrap();
        table.service(&key, Some(service));
        table.slice(&key, Some(slice))
    }

    fn caller() -> Caller {
        Caller {
            node: "coracle-1".into(),
            namespace: "shop".into(),
            pod: "frontend-1".into(),
            ip: Some("127.66.0.9".parse().unwrap()),
        }
    }

    fn get(uri: &str) -> Request<Body> {
        Request::get(uri).body(Empty::new().map_err(|never| match never {}).boxed_unsync()).unwrap()
    }

    async fn text(response: Response<Body>) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_request_between_pods_crosses_no_socket_and_is_not_parsed_again() {
        let plane = plane();
        add_service(&plane, "catalog", json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80}]}), "127.66.0.2");
        plane.inner.network.attach("127.66.0.2".parse().unwrap(), 8080, Arc::new(Says("three boats")));
        for uri in [
            "http://catalog/",
            "http://catalog.shop.svc.cluster.local/",
            "http://127.64.0.10/",
            "http://127.66.0.2:8080/",
        ] {
            assert_eq!(text(plane.http(&caller(), get(uri)).await.unwrap()).await, "three boats", "{uri}");
        }
        let metrics = plane.metrics();
        assert_eq!((metrics.guest_requests.get(), metrics.socket_hops.get(), metrics.requests_parsed.get()), (4, 0, 0));
    }

    #[tokio::test]
    async fn what_is_not_there_is_refused_precisely() {
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
        plane.inner.network.attach("127.66.0.2".parse().unwrap(), 8080, Arc::new(Says("three boats")));
        let mut change = changes.remove(0);
        change.set.retain(|listen, _| matches!(listen, Listen::Node(_)));
        let stop = CancellationToken::new();
        let mut listeners = crate::listen::Listeners::new(plane.inner.clone(), stop.clone());
        assert!(listeners.apply(change).is_empty());
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", free)).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("/").header("host", "x").body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!((plane.metrics().requests_parsed.get(), plane.metrics().socket_hops.get()), (1, 1));
        plane.inner.network.detach("127.66.0.2".parse().unwrap(), 8080);
        let request = Request::get("/").header("host", "x").body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["coracle-reason"], "no-endpoint");
        stop.cancel();
    }

    #[tokio::test]
    async fn a_taken_port_is_told_once() {
        let plane = plane();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let spec = json!({"clusterIP": "None", "ports": [{"port": 80, "nodePort": port}]});
        let change = add_service(&plane, "catalog", spec, "127.66.0.2").remove(0);
        let mut listeners = crate::listen::Listeners::new(plane.inner.clone(), CancellationToken::new());
        assert_eq!(listeners.apply(change).len(), 1);
        let again = plane.inner.table.write().unwrap().slice(&ObjectKey::new("shop", "catalog"), None).remove(0);
        assert!(listeners.apply(again).is_empty());
    }
}
