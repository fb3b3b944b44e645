//! The data plane's API: `Dial` leads guests' calls to pods, to endpoints, or to external destinations.

mod look_up;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::http::{Request, Response, Version};
use machinery_api::ObjectKey;
use machinery_env::Env;
use machinery_serve::framing;
use machinery_serve::net::{
    Body, BoxError, CallRejected, Caller, DatagramPipe, Dial, DialError, Peer, PodNetwork, Protocol, ResolvedName,
    Serve, ServicePort, Stream, open_pipe,
};
use machinery_serve::trace::{self, Span};

use crate::connection::open::open_stream;
use crate::http::activator;
use crate::http::forward::{Exchange, hand_over, refused};
use crate::http::spans;
use crate::names::resolve::{self, NameQuery, Target};
use crate::routing::destination::Resolved;
use crate::routing::table::{Endpoint, PortRoute, ServiceRoutes};
pub use crate::state::Config;
use crate::state::ProxyState;
use crate::state::metrics::Metrics;
use crate::streams::open::{not_opened, origin_of};

/// Maximum chained `ExternalName` Services: a longer chain is likely a loop.
const ALIASES_MAX: usize = 8;

/// One per process, also with several node agents in it.
#[derive(Debug, Clone)]
pub struct DataPlane {
    pub(crate) state: Arc<ProxyState>,
}

impl DataPlane {
    /// A data plane with an empty table.
    ///
    /// # Errors
    /// The CA is no PEM certificate.
    pub fn new(env: Env, config: Config, network: PodNetwork) -> Result<Self, crate::egress::BadCertificate> {
        Ok(Self { state: Arc::new(ProxyState::new(env, config, network)?) })
    }

    /// Queues requests without an endpoint until [`DataPlane::release_requests`], as the pods of this machine start again.
    pub fn hold_requests(&self) {
        self.state.activation.set_resuming(true);
    }

    /// Ends [`DataPlane::hold_requests`]: requests without an endpoint fail, unless their workload scales from zero.
    pub fn release_requests(&self) {
        self.state.activation.set_resuming(false);
    }

    /// Keeps the routes as they are, as the next process follows the API. Listeners without a reachable endpoint accept no
    /// more: their clients wait for the next process. Returns when nothing is written any more and those listeners have
    /// completed their requests, or after `time_max`. Called again when the agents of the nodes have ended.
    pub async fn freeze(&self, time_max: Duration) {
        if self.state.env.timeout(time_max, self.state.freeze.request()).await.is_err() {
            tracing::debug!("requests to programs of pods are cut");
        }
    }

    /// Counters of this data plane.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.state.metrics
    }
}

impl ProxyState {
    /// Resolves a name for a caller. With several candidates, external DNS decides which of them exists.
    pub(crate) async fn target(&self, caller: &Caller, host: &str) -> Result<Target, DialError> {
        let own_is_cluster = caller.names.servers.first().is_some_and(|ip| self.is_cluster(*ip));
        let query = NameQuery { namespace: &caller.namespace, names: &caller.names, own_is_cluster };
        let mut targets = resolve::targets(host, query, |key, name| self.routes.exists(key, name));
        let last = targets.pop().unwrap_or(Target::Unknown);
        for target in targets {
            let Target::Outside(name) = &target else { return Ok(self.follow_aliases(target)) };
            match self.egress.exists(caller, name).await {
                Ok(true) => return Ok(target),
                Ok(false) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.follow_aliases(last))
    }

    /// The destination of a Service of type `ExternalName`; any other is returned as it is. A chain of aliases that is too
    /// long leads nowhere.
    fn follow_aliases(&self, mut target: Target) -> Target {
        for _ in 0..ALIASES_MAX {
            let Target::Service(key) = &target else { return target };
            let name = self.routes.of(key).and_then(|routes| routes.published.external_name.clone());
            let Some(name) = name else { return target };
            target = resolve::absolute(&name, |key, name| self.routes.exists(key, name));
        }
        Target::Unknown
    }

    async fn resolve(
        &self,
        caller: &Caller,
        host: &str,
        (protocol, port): (Protocol, u16),
    ) -> Result<Resolved, DialError> {
        let target = self.target(caller, host).await?;
        let routes = &self.routes;
        Ok(match target {
            Target::Own => Resolved::Own,
            Target::Unknown => Resolved::Unknown,
            Target::Outside(name) => Resolved::Outside(name),
            Target::Ip(ip) => match routes.at(ip) {
                Some(routes) if routes.balancer.contains(&ip) => {
                    match routes.port(protocol, port).filter(|route| route.admits(caller.ip)) {
                        Some(route) => Resolved::Route(route.clone()),
                        None => Resolved::Refused,
                    }
                }
                Some(routes) => routes.leads_to(protocol, port),
                None => Resolved::Address(ip),
            },
            Target::Endpoint(key, name) => match routes.of(&key) {
                Some(routes) => routes.route_to_endpoints(key, (protocol, port), |endpoint| endpoint.hostname == name),
                None => Resolved::Unknown,
            },
            Target::Service(key) => match routes.of(&key) {
                Some(routes) if routes.headless => routes.route_to_endpoints(key, (protocol, port), |_| true),
                Some(routes) => routes.leads_to(protocol, port),
                None => Resolved::Unknown,
            },
        })
    }
}

impl ServiceRoutes {
    fn leads_to(&self, protocol: Protocol, port: u16) -> Resolved {
        self.port(protocol, port).map_or(Resolved::Refused, |route| Resolved::Route(route.clone()))
    }

    /// Routes a name straight to endpoints; `port` is the endpoints' own.
    fn route_to_endpoints(
        &self,
        key: ObjectKey,
        (protocol, port): (Protocol, u16),
        wanted: impl Fn(&Endpoint) -> bool,
    ) -> Resolved {
        let of_protocol = self.ports.iter().filter(|((of, _), _)| *of == protocol);
        let all = of_protocol.flat_map(|(_, route)| route.usable());
        let ready: Vec<_> = all.filter(|endpoint| endpoint.port == port && wanted(endpoint)).cloned().collect();
        let via = Some(Arc::new(ServicePort { service: key, port }));
        let app_protocol = self.ports.values().next().map(|route| route.app_protocol).unwrap_or_default();
        let hinted = ready.iter().any(|endpoint| !endpoint.hints.is_empty());
        Resolved::Route(Arc::new(PortRoute { via, app_protocol, hinted, ready, ..PortRoute::default() }))
    }
}

#[async_trait::async_trait]
impl Dial for DataPlane {
    async fn http(&self, caller: &Caller, mut request: Request<Body>) -> Result<Response<Body>, DialError> {
        let state = &self.state;
        state.metrics.guest_requests.inc();
        // A guest has no connection of its own: its hop-by-hop headers are dropped.
        framing::strip_hop_by_hop(request.headers_mut());
        if !trace::is_enabled() {
            return state.send_for_guest(caller, request, &Span::NONE).await;
        }
        let span = spans::of_guest(caller, &mut request);
        let answer = span.within(Box::pin(state.send_for_guest(caller, request, &span))).await;
        let answer = answer.inspect_err(|error| span.fail(error.to_string()))?;
        Ok(spans::answered(span, answer, 400))
    }

    async fn stream(&self, caller: &Caller, to: &machinery_serve::net::Target) -> Result<Stream, DialError> {
        let state = &self.state;
        let named = || format!("{}:{}", to.host, to.port);
        match state.resolve(caller, &to.host, (Protocol::Tcp, to.port)).await? {
            Resolved::Unknown => Err(DialError::NameNotFound(to.host.clone())),
            Resolved::Refused => Err(refused(named())),
            Resolved::Own => match state.own_listener(caller, (Protocol::Tcp, to.port)) {
                Some((serve, at)) => {
                    let opened = open_pipe(serve, origin_of(caller, at, None));
                    opened.map_err(|rejected| not_opened(&rejected, at))
                }
                None => Err(refused(named())),
            },
            Resolved::Address(ip) => {
                let at = SocketAddr::new(ip, to.port);
                match state.network.find(ip, Protocol::Tcp, to.port) {
                    Some(serve) => {
                        let opened = open_stream(serve, origin_of(caller, at, None)).await;
                        opened.map_err(|rejected| not_opened(&rejected, at))
                    }
                    None if state.is_cluster(ip) => Err(refused(at)),
                    None if state.egress.is_forbidden(ip) => Err(DialError::Denied(named())),
                    None => state.egress.stream(caller, vec![at], &to.host).await,
                }
            }
            Resolved::Outside(name) => {
                let ips = state.egress.resolve(caller, &name).await?;
                let addresses = ips.into_iter().map(|ip| SocketAddr::new(ip, to.port)).collect();
                state.egress.stream(caller, addresses, &name).await
            }
            Resolved::Route(route) => state.stream_to_endpoint(caller, &route, to).await,
        }
    }

    async fn datagrams(&self, caller: &Caller, to: &machinery_serve::net::Target) -> Result<DatagramPipe, DialError> {
        let destination = self.state.resolve(caller, &to.host, (Protocol::Udp, to.port)).await?;
        self.state.dial_datagrams(caller, to, destination).await
    }

    async fn resolve(&self, caller: &Caller, name: &str) -> Result<ResolvedName, DialError> {
        self.state.look_up(caller, name).await
    }

    async fn start_tls(&self, server: &str, stream: Stream) -> Result<Stream, BoxError> {
        self.state.egress.start_tls(server, stream).await
    }

    fn name_server(&self, caller: &Caller) -> Option<IpAddr> {
        self.state.name_server(caller)
    }
}

/// A name in the form of certificates: lower case, without the final dot.
pub(crate) fn plain_name(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

impl ProxyState {
    /// Leads a guest's request to its destination.
    async fn send_for_guest(
        &self,
        caller: &Caller,
        request: Request<Body>,
        span: &Span,
    ) -> Result<Response<Body>, DialError> {
        let https = request.uri().scheme_str() == Some("https");
        let Some(host) = request.uri().host().map(str::to_owned) else {
            return Err(DialError::NameNotFound(String::new()));
        };
        let port = request.uri().port_u16().unwrap_or(if https { 443 } else { 80 });
        match self.resolve(caller, &host, (Protocol::Tcp, port)).await? {
            Resolved::Unknown => Err(DialError::NameNotFound(host)),
            Resolved::Refused => Err(refused(format!("{host}:{port}"))),
            Resolved::Own => match self.own_listener(caller, (Protocol::Tcp, port)) {
                Some((serve, at)) => self.send_to_pod(&serve, caller, at, request).await,
                None => Err(refused(format!("{host}:{port}"))),
            },
            Resolved::Address(ip) => match self.network.find(ip, Protocol::Tcp, port) {
                Some(serve) => self.send_to_pod(&serve, caller, SocketAddr::new(ip, port), request).await,
                None if self.is_cluster(ip) => Err(refused(SocketAddr::new(ip, port))),
                None => {
                    self.metrics.socket_hops.inc();
                    self.egress.http_to(caller, SocketAddr::new(ip, port), &host, https, request).await
                }
            },
            Resolved::Outside(name) => {
                self.metrics.socket_hops.inc();
                self.egress.http(caller, (&name, &plain_name(&host)), port, https, request).await
            }
            Resolved::Route(route) => {
                let exchange = Exchange { from: Peer::Pod(caller.clone()), name: &host, https, span };
                if let Some(via) = &route.via {
                    span.set_text("coracle.service", || via.service.to_string());
                }
                activator::send(self, &route, &exchange, request).await
            }
        }
    }

    /// Sends a request to a pod by its address: no other endpoint can take it.
    async fn send_to_pod(
        &self,
        serve: &Arc<dyn Serve>,
        caller: &Caller,
        at: SocketAddr,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, DialError> {
        let origin = origin_of(caller, at, None);
        *request.version_mut() = Version::HTTP_11;
        match hand_over(serve, &origin, request, &self.read_ahead).await {
            Ok(response) => Ok(response),
            Err(CallRejected::Denied(policy)) => Err(DialError::Denied(format!("{at} (policy {policy})"))),
            Err(busy @ CallRejected::Busy(_)) => Ok(machinery_serve::net::http::refusal(&busy)),
            Err(CallRejected::Gone(_) | CallRejected::Closed) => Err(refused(at)),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
