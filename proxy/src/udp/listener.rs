//! UDP listeners of Services: one flow for each client address leads to one endpoint, in a pod or outside of the cluster,
//! until it is idle or its endpoint is removed.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use machinery_serve::descriptors::{Class, DescriptorPermit, Descriptors};
use machinery_serve::net::{DatagramPipe, Origin, Peer, Protocol};
use machinery_serve::sockets::{Layer, SocketKey, SocketTable};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::http::forward::{ClientPlace, Way, pick_endpoint};
use crate::routing::table::{Endpoint, PortRoute};
use crate::state::ProxyState;
use crate::state::flow_target::{FlowKey, FlowTarget, Flows, ToEndpoint};
use crate::udp::relay::{BUFFER, connected, receive};

/// Datagrams of one listener that are handled before others get their turn.
const BATCH: usize = 64;
/// Pause after a failed receive, in order not to spin.
const RECEIVE_PAUSE: Duration = Duration::from_millis(50);

/// The way of an endpoint's datagrams to its client.
enum FromEndpoint {
    Socket { socket: Arc<UdpSocket>, _held: DescriptorPermit },
    Pod(mpsc::Receiver<Bytes>),
}

/// A bound socket of the process's table, which the next process may take over.
pub(crate) fn registered(socket: std::net::UdpSocket) -> io::Result<Arc<UdpSocket>> {
    let key = SocketKey { protocol: Protocol::Udp, address: socket.local_addr()?, name: String::new() };
    let socket = Arc::new(UdpSocket::from_std(socket)?);
    SocketTable::process().register(key, &socket);
    Ok(socket)
}

/// A listener's socket, with the clients that it serves.
pub(crate) struct DatagramListener {
    pub(crate) state: Arc<ProxyState>,
    pub(crate) socket: Arc<UdpSocket>,
    pub(crate) address: SocketAddr,
    pub(crate) route: watch::Receiver<Arc<PortRoute>>,
    /// Whether only the route's source ranges are served.
    pub(crate) sources_only: bool,
    pub(crate) stop: CancellationToken,
}

impl DatagramListener {
    /// Binds a listener's socket.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<(Arc<UdpSocket>, DescriptorPermit)> {
        let held = Descriptors::process().take(Class::Listeners)?;
        Ok((registered(SocketTable::process().bind_udp("", address)?)?, held))
    }

    /// Serves datagrams until `stop`, which ends the flows, too.
    pub(crate) async fn serve(self, _held: DescriptorPermit) {
        let (this, table) = (Arc::new(self), SocketTable::process());
        if this.stop.run_until_cancelled(table.admitted()).await.is_none() {
            return;
        }
        loop {
            let ready = tokio::select! {
                () = this.stop.cancelled() => return,
                // The next process receives; answers to what this one has received are still sent.
                () = table.retired(Layer::Pods) => return this.stop.cancelled().await,
                ready = this.socket.readable() => ready,
            };
            let batch = ready.and_then(|()| this.receive_batch());
            if let Err(error) = batch {
                tracing::debug!(address = %this.address, %error, "receiving datagrams failed");
                this.state.env.sleep(RECEIVE_PAUSE).await;
            }
            tokio::task::yield_now().await;
        }
    }

    fn receive_batch(self: &Arc<Self>) -> io::Result<()> {
        for _ in 0..BATCH {
            let received: io::Result<()> = BUFFER.with_borrow_mut(|buffer| {
                let (length, client) = self.socket.try_recv_from(buffer)?;
                self.forward(&buffer[..length], client);
                Ok(())
            });
            match received {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Forwards a client's datagram by its flow, or by a new one.
    fn forward(self: &Arc<Self>, datagram: &[u8], client: SocketAddr) {
        let now = self.state.env.elapsed();
        let known = self.flows().client_sent((self.address, client), now).map(|flow| flow.to.clone());
        if let Some(to) = known.or_else(|| self.open(client, now)) {
            to.send(datagram);
        }
    }

    fn flows(&self) -> std::sync::MutexGuard<'_, Flows> {
        self.state.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a flow to an endpoint; `None` if there is none for this client.
    fn open(self: &Arc<Self>, client: SocketAddr, now: Duration) -> Option<ToEndpoint> {
        let state = &self.state;
        let route = self.route.borrow().clone();
        if self.sources_only && !route.admits(Some(client.ip())) {
            return None;
        }
        let place = ClientPlace { ip: Some(client.ip().to_canonical()), node: None };
        let way = |endpoint: &Endpoint| Way::to(state, &route, Protocol::Udp, endpoint.address());
        let Some((endpoint, way)) = pick_endpoint(state, &route, place, way) else {
            state.metrics.no_endpoint.inc();
            return None;
        };
        let opened = connect(&route, (endpoint.address(), way), client);
        let (to, from) = opened
            .inspect_err(|error| tracing::debug!(%client, ip = %endpoint.ip, %error, "no flow to an endpoint"))
            .ok()?;
        state.metrics.socket_hops.inc();
        let stop = self.stop.child_token();
        let key = (self.address, client);
        let target = FlowTarget { to: to.clone(), stop: stop.clone() };
        let (number, evicted) = self.flows().add(key, client.ip().to_canonical(), now, target);
        if let Some(evicted) = evicted {
            evicted.stop.cancel();
        }
        let flow = FlowTask { listener: self.clone(), key, number, endpoint, stop };
        tokio::spawn(flow.run(from, self.route.clone()));
        Some(to)
    }
}

/// Opens the two directions of a flow to an endpoint.
fn connect(
    route: &PortRoute,
    (at, way): (SocketAddr, Way),
    client: SocketAddr,
) -> io::Result<(ToEndpoint, FromEndpoint)> {
    if let Way::Pod(serve) = way {
        let origin = Origin { peer: Peer::Host(client), local: at, via: route.via.clone() };
        let pipe = serve.datagrams(&origin).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        let DatagramPipe { send, receive } = pipe;
        return Ok((ToEndpoint::Pod(send), FromEndpoint::Pod(receive)));
    }
    let held = Descriptors::process().take(Class::Backends)?;
    let socket = Arc::new(connected(at)?);
    Ok((ToEndpoint::Socket(socket.clone()), FromEndpoint::Socket { socket, _held: held }))
}

/// The task of one flow: the endpoint's datagrams, and the flow's end.
struct FlowTask {
    listener: Arc<DatagramListener>,
    key: FlowKey,
    number: u64,
    endpoint: Arc<Endpoint>,
    stop: CancellationToken,
}

impl FlowTask {
    async fn run(self, mut from: FromEndpoint, mut route: watch::Receiver<Arc<PortRoute>>) {
        let _open = self.endpoint.in_flight.start();
        loop {
            let Some(ends_at) = self.listener.flows().ends_at(self.key, self.number) else { break };
            let left = ends_at.saturating_sub(self.listener.state.env.elapsed());
            if left.is_zero() {
                break;
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                changed = route.changed() => {
                    let now = route.borrow_and_update().clone();
                    if changed.is_err() || !self.is_endpoint_of(&now) {
                        break;
                    }
                }
                received = self.receive(&mut from) => if !received { break },
                () = self.listener.state.env.sleep(left) => {}
            }
        }
        self.listener.flows().remove(self.key, self.number);
    }

    /// Passes a datagram of the endpoint on; returns whether there may be more.
    async fn receive(&self, from: &mut FromEndpoint) -> bool {
        match from {
            FromEndpoint::Socket { socket, .. } => receive(socket, |datagram| self.deliver(datagram)).await.is_ok(),
            FromEndpoint::Pod(pod) => match pod.recv().await {
                Some(datagram) => {
                    self.deliver(&datagram);
                    true
                }
                None => false,
            },
        }
    }

    fn deliver(&self, datagram: &[u8]) {
        let listener = &self.listener;
        listener.flows().endpoint_sent(self.key, self.number, listener.state.env.elapsed());
        // A client that doesn't read loses datagrams, as on a network.
        let _ = listener.socket.try_send_to(datagram, self.key.1);
    }

    fn is_endpoint_of(&self, route: &PortRoute) -> bool {
        let mut all = route.ready.iter().chain(&route.draining);
        all.any(|one| one.ip == self.endpoint.ip && one.port == self.endpoint.port)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use machinery_api::ObjectKey;
    use machinery_serve::net::{
        Attached, Body, CallRejected, Caller, Dial as _, DialError, Listen as At, RemotePods, Scope, Serve, Target,
    };
    use serde_json::{Value, json};

    use super::*;
    use crate::listen::Listeners;
    use crate::plane::tests::{PlaneWithTable, caller, plane};
    use crate::routing::table::Change;

    /// A pod that answers each datagram with its own name before it.
    struct Echo(&'static str);

    #[async_trait::async_trait]
    impl Serve for Echo {
        async fn http(
            &self,
            _: &Origin,
            request: ::http::Request<Body>,
        ) -> Result<::http::Response<Body>, CallRejected<::http::Request<Body>>> {
            Err(CallRejected::gone(request))
        }

        fn datagrams(&self, _: &Origin) -> Result<DatagramPipe, CallRejected<()>> {
            let (near, mut far) = DatagramPipe::pair();
            let name = self.0;
            tokio::spawn(async move {
                while let Some(datagram) = far.receive.recv().await {
                    let _ = far.send.try_send([name.as_bytes(), &datagram].concat().into());
                }
            });
            Ok(near)
        }
    }

    fn attach(plane: &PlaneWithTable, ip: &str, says: &'static str) -> Attached {
        let at = At { ip: ip.parse().unwrap(), scope: Scope::Any, protocol: Protocol::Udp, port: 5353 };
        plane.state.network.attach(at, Arc::new(Echo(says))).unwrap()
    }

    /// A plane whose UDP Service has a free node port, its listeners, and the port.
    struct Served {
        plane: PlaneWithTable,
        listeners: Listeners,
        port: u16,
        stop: CancellationToken,
    }

    impl Served {
        fn start(extra: Value) -> Self {
            let plane = plane();
            let stop = CancellationToken::new();
            let listeners = Listeners::new(plane.state.clone(), stop.clone());
            let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut spec = json!({"clusterIP": "127.64.0.20",
                "ports": [{"name": "dns", "port": 53, "protocol": "UDP", "nodePort": port}]});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let service = json!({"metadata": {"name": "echo", "namespace": "shop"}, "spec": spec});
            plane.service(&ObjectKey::new("shop", "echo"), Some(service));
            Self { plane, listeners, port, stop }
        }

        fn endpoints(&mut self, ips: &[&str]) {
            let endpoints: Vec<Value> = ips.iter().map(|ip| json!({"addresses": [ip]})).collect();
            self.set_endpoints(&endpoints);
        }

        fn set_endpoints(&mut self, endpoints: &[Value]) {
            let slice = json!({"metadata": {"name": "echo", "namespace": "shop",
                "labels": {"kubernetes.io/service-name": "echo"}}, "addressType": "IPv4",
                "ports": [{"name": "dns", "port": 5353, "protocol": "UDP"}], "endpoints": endpoints});
            for change in self.plane.slice(&ObjectKey::new("shop", "echo"), Some(slice)) {
                let mut set = change.set;
                set.retain(|listen, _| {
                    matches!(listen, crate::routing::table::Listen::Datagrams(crate::routing::table::Entrance::Node(_)))
                });
                assert!(self.listeners.apply(Change { set, ..Change::default() }).is_empty());
            }
        }

        async fn client(&self) -> UdpSocket {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(("127.0.0.1", self.port)).await.unwrap();
            socket
        }

        async fn ask(&self, client: &UdpSocket, text: &str) -> String {
            let mut buffer = [0; 2_048];
            client.send(text.as_bytes()).await.unwrap();
            let answer = self.plane.state.env.timeout(Duration::from_secs(30), client.recv(&mut buffer));
            let length = answer.await.expect("an answer").unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        }

        fn flows(&self) -> usize {
            self.plane.state.flows.lock().unwrap().count()
        }

        async fn until(&self, is_true: impl Fn(&Self) -> bool) {
            let waits = async {
                while !is_true(self) {
                    tokio::task::yield_now().await;
                }
            };
            self.plane.state.env.timeout(Duration::from_secs(30), waits).await.expect("in time");
        }
    }

    #[tokio::test]
    async fn a_client_stays_with_its_endpoint_until_that_is_removed() {
        let mut served = Served::start(json!({}));
        served.endpoints(&["127.66.0.2", "127.66.0.3"]);
        let _pods = [attach(&served.plane, "127.66.0.2", "a:"), attach(&served.plane, "127.66.0.3", "b:")];
        let client = served.client().await;
        let first = served.ask(&client, "one").await;
        for n in 0..20 {
            let text = format!("{n}");
            assert_eq!(served.ask(&client, &text).await, format!("{}{n}", &first[..2]));
        }
        assert_eq!(served.flows(), 1);
        let (removed, left) = if first.starts_with('a') { ("127.66.0.3", "b:") } else { ("127.66.0.2", "a:") };
        served.endpoints(&[removed]);
        served.until(|served| served.flows() == 0).await;
        assert_eq!(served.ask(&client, "two").await, format!("{left}two"));
        served.stop.cancel();
        served.until(|served| served.flows() == 0).await;
    }

    #[tokio::test]
    async fn session_affinity_is_by_address() {
        let mut served = Served::start(json!({"sessionAffinity": "ClientIP"}));
        served.endpoints(&["127.66.0.2", "127.66.0.3", "127.66.0.4"]);
        let _pods = ["127.66.0.2", "127.66.0.3", "127.66.0.4"].map(|ip| {
            attach(
                &served.plane,
                ip,
                if ip.ends_with('2') {
                    "a"
                } else if ip.ends_with('3') {
                    "b"
                } else {
                    "c"
                },
            )
        });
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let client = served.client().await;
            names.insert(served.ask(&client, "").await);
        }
        assert_eq!((names.len(), served.flows()), (1, 20), "{names:?}");
        served.stop.cancel();
    }

    #[tokio::test]
    async fn an_endpoint_outside_is_reached_over_a_socket() {
        let outside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = outside.local_addr().unwrap();
        let echo = tokio::spawn(async move {
            let mut buffer = [0; 2_048];
            while let Ok((length, from)) = outside.recv_from(&mut buffer).await {
                let _ = outside.send_to(&buffer[..length], from).await;
            }
        });
        let mut plane = plane();
        // The only way to an endpoint on the loopback.
        plane.set_api_server(at);
        let endpoint = crate::routing::table::tests::endpoint(&at.ip().to_string(), at.port());
        let via = machinery_serve::net::ServicePort { service: ObjectKey::new("default", "kubernetes"), port: 53 };
        let route = Arc::new(PortRoute { via: Some(Arc::new(via)), ready: vec![endpoint], ..PortRoute::default() });
        let stop = CancellationToken::new();
        let mut listeners = Listeners::new(plane.state.clone(), stop.clone());
        let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let entrance = crate::routing::table::Listen::Datagrams(crate::routing::table::Entrance::Node(port));
        assert!(listeners.apply(Change { set: [(entrance, route)].into(), ..Change::default() }).is_empty());
        let served = Served { plane, listeners, port, stop };
        let client = served.client().await;
        for text in ["one", "two", ""] {
            assert_eq!(served.ask(&client, text).await, text);
        }
        assert_eq!(served.flows(), 1);
        served.stop.cancel();
        echo.abort();
    }

    #[tokio::test]
    async fn guests_reach_pods_by_datagrams() {
        let mut served = Served::start(json!({}));
        served.endpoints(&["127.66.0.2"]);
        let _pod = attach(&served.plane, "127.66.0.2", "a:");
        let to = |host: &str, port| Target { host: host.to_owned(), port };
        for (host, port) in [("echo", 53), ("127.64.0.20", 53), ("127.66.0.2", 5353)] {
            let mut pipe = served.plane.datagrams(&caller(), &to(host, port)).await.unwrap();
            pipe.send.send(Bytes::from_static(b"hi")).await.unwrap();
            assert_eq!(&pipe.receive.recv().await.unwrap()[..], b"a:hi", "{host}");
        }
        for (host, port) in [("echo", 54), ("127.66.0.2", 8080), ("127.255.0.1", 53), ("127.0.0.1", 53)] {
            assert!(served.plane.datagrams(&caller(), &to(host, port)).await.is_err(), "{host}:{port}");
        }
        assert!(served.plane.stream(&caller(), &to("echo", 53)).await.is_err(), "TCP is another port");
        served.stop.cancel();
    }

    /// The pods of another node.
    struct Elsewhere(IpAddr);

    impl RemotePods for Elsewhere {
        fn find(&self, ip: IpAddr, protocol: Protocol, _: u16) -> Option<Arc<dyn Serve>> {
            (ip == self.0 && protocol == Protocol::Udp).then(|| Arc::new(Echo("far:")) as Arc<dyn Serve>)
        }
    }

    #[tokio::test]
    async fn datagrams_reach_pods_of_other_nodes() {
        let mut served = Served::start(json!({}));
        let far = Arc::new(Elsewhere("127.66.1.2".parse().unwrap()));
        assert!(served.plane.state.network.set_remote(far).is_ok());
        served.endpoints(&["127.66.1.2"]);
        for (host, port) in [("echo", 53), ("127.66.1.2", 5353)] {
            let to = Target { host: host.to_owned(), port };
            let mut pipe = served.plane.datagrams(&caller(), &to).await.unwrap();
            pipe.send.send(Bytes::from_static(b"hi")).await.unwrap();
            assert_eq!(&pipe.receive.recv().await.unwrap()[..], b"far:hi", "{host}");
        }
        let client = served.client().await;
        assert_eq!(served.ask(&client, "one").await, "far:one", "a process of the host");
        served.stop.cancel();
    }

    #[tokio::test]
    async fn a_local_traffic_policy_leaves_the_endpoints_of_the_callers_node() {
        let mut served = Served::start(json!({"internalTrafficPolicy": "Local"}));
        let _pods = [attach(&served.plane, "127.66.0.2", "near:"), attach(&served.plane, "127.66.0.3", "far:")];
        let one = |ip: &str, node: &str| json!({"addresses": [ip], "nodeName": node});
        served.set_endpoints(&[one("127.66.0.2", "coracle-1"), one("127.66.0.3", "coracle-2")]);
        let to = Target { host: "echo".to_owned(), port: 53 };
        for _ in 0..20 {
            let mut pipe = served.plane.datagrams(&caller(), &to).await.unwrap();
            pipe.send.send(Bytes::from_static(b"hi")).await.unwrap();
            assert_eq!(&pipe.receive.recv().await.unwrap()[..], b"near:hi");
        }
        let elsewhere = Caller { node: "coracle-3".into(), ..caller() };
        let refused = served.plane.datagrams(&elsewhere, &to).await;
        assert!(matches!(refused, Err(DialError::NoEndpoint(_))), "no endpoint of that node");
        served.stop.cancel();
    }
}
