//! A client of all API servers of a cluster: requests go to one of them until it fails.
//!
//! A server fails by a refused or broken connection, by `503 Service Unavailable`, or by two requests in a row that the
//! caller gave up on. Then its running responses, such as watches, end with an error, and the next server is used.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Request, Response, StatusCode, Uri};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::client::{Body, ClientBuilder};
use machinery_client::{Api, ClientError, ListOptions};
use machinery_env::Env;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower::Service;

/// A request that its caller gives up on after this time is a failure of the server: any usual one takes less.
const SLOW_AFTER: Duration = Duration::from_millis(400);
/// Slow requests in a row that make a server fail.
const SLOW_MAX: usize = 2;
/// The interval of reading the cluster's list of API servers.
const LIST_INTERVAL: Duration = Duration::from_secs(30);
/// The name in the certificate of every API server.
pub(crate) const SERVER_NAME: &str = "kubernetes.default.svc";

/// Makes the client of one server.
type MakeClient = Arc<dyn Fn(&Uri) -> Result<Client, ClientError> + Send + Sync>;

/// A client of the servers in a list, which has at least one and may change.
///
/// # Errors
/// If no client can be made for the first server.
pub(crate) fn failing_over(
    env: &Env,
    mut servers: watch::Receiver<Vec<Uri>>,
    make: MakeClient,
    namespace: &str,
) -> Result<Client, ClientError> {
    let first = servers.borrow_and_update().clone();
    let mut shared = Servers { make, known: Vec::new() };
    if let Some(uri) = first.first() {
        shared.known.push(Arc::new(Server::new(uri, (shared.make)(uri)?)));
    }
    shared.update(&first);
    let service = FailingOver { env: env.clone(), servers, shared, current: Arc::default() };
    Ok(ClientBuilder::new(service, namespace).build())
}

/// One API server.
struct Server {
    uri: Uri,
    client: Client,
    /// Slow requests since the last response.
    slow: AtomicUsize,
    /// Cancelled to end the running responses.
    responses: Mutex<CancellationToken>,
}

impl Server {
    fn new(uri: &Uri, client: Client) -> Self {
        Self { uri: uri.clone(), client, slow: AtomicUsize::new(0), responses: Mutex::default() }
    }

    fn responses(&self) -> CancellationToken {
        self.responses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the running responses.
    fn fail(&self) {
        let ended = std::mem::take(&mut *self.responses.lock().unwrap_or_else(PoisonError::into_inner));
        ended.cancel();
    }
}

fn does_not_answer(server: &Uri) -> tower::BoxError {
    format!("the API server {server} does not answer").into()
}

struct Servers {
    make: MakeClient,
    known: Vec<Arc<Server>>,
}

impl Servers {
    /// Takes the servers of a list; the clients of known ones stay.
    fn update(&mut self, list: &[Uri]) {
        let mut next = Vec::new();
        for uri in list {
            if let Some(known) = self.known.iter().find(|server| server.uri == *uri) {
                next.push(known.clone());
                continue;
            }
            match (self.make)(uri) {
                Ok(client) => next.push(Arc::new(Server::new(uri, client))),
                Err(error) => tracing::warn!(%uri, %error, "an API server is not used"),
            }
        }
        if !next.is_empty() {
            self.known = next;
        }
    }
}

struct FailingOver {
    env: Env,
    servers: watch::Receiver<Vec<Uri>>,
    shared: Servers,
    /// The number of failures: the index of the present server, modulo their number.
    current: Arc<AtomicUsize>,
}

impl Service<Request<Body>> for FailingOver {
    type Response = Response<Severable>;
    type Error = tower::BoxError;
    type Future = BoxFuture<'static, Result<Response<Severable>, tower::BoxError>>;

    /// Each server's client has a queue of its own.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if self.servers.has_changed().unwrap_or(false) {
            let list = self.servers.borrow_and_update().clone();
            self.shared.update(&list);
        }
        let turn = self.current.load(Ordering::Acquire);
        let server = self.shared.known[turn % self.shared.known.len()].clone();
        let mut attempt = Attempt {
            began: self.env.elapsed(),
            env: self.env.clone(),
            server: server.clone(),
            current: self.current.clone(),
            turn,
            is_over: false,
        };
        Box::pin(async move {
            let responses = server.responses();
            let sent = server.client.send(request);
            let result = tokio::select! {
                result = sent => result,
                () = responses.cancelled() => {
                    attempt.end();
                    return Err(does_not_answer(&server.uri));
                }
            };
            attempt.end();
            let response = result.inspect_err(|_| attempt.fail())?;
            if response.status() == StatusCode::SERVICE_UNAVAILABLE {
                attempt.fail();
            }
            server.slow.store(0, Ordering::Release);
            let cut = Box::pin(responses.cancelled_owned());
            Ok(response.map(|body| Severable { body, cut, uri: server.uri.clone() }))
        })
    }
}

/// A request that may show that its server has failed.
struct Attempt {
    began: Duration,
    env: Env,
    server: Arc<Server>,
    current: Arc<AtomicUsize>,
    turn: usize,
    is_over: bool,
}

impl Attempt {
    /// The request has a result: its caller hasn't given up on it.
    fn end(&mut self) {
        self.is_over = true;
    }

    /// Goes on to the next server, unless another request did.
    fn fail(&self) {
        let next = self.turn.wrapping_add(1);
        if self.current.compare_exchange(self.turn, next, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            tracing::info!(server = %self.server.uri, "the API server fails; the next one is used");
            self.server.fail();
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let given_up = !self.is_over && self.env.elapsed().saturating_sub(self.began) >= SLOW_AFTER;
        if given_up && self.server.slow.fetch_add(1, Ordering::AcqRel) + 1 >= SLOW_MAX {
            self.server.slow.store(0, Ordering::Release);
            self.fail();
        }
    }
}

/// A response's body, which ends with an error when its server fails.
pub(crate) struct Severable {
    body: Body,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    uri: Uri,
}

impl HttpBody for Severable {
    type Data = bytes::Bytes;
    type Error = tower::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, tower::BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        match this.cut.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err(does_not_answer(&this.uri)))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Follows the API servers of a cluster of Coracle's: the endpoints of Service `default/kubernetes`. The first one, by which
/// the node has joined, stays.
pub(crate) async fn follow(env: &Env, client: &Client, first: &Uri, servers: &watch::Sender<Vec<Uri>>) {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let of_kubernetes =
        ListOptions { labels: "kubernetes.io/service-name=kubernetes".into(), ..ListOptions::default() };
    loop {
        match slices.list(&of_kubernetes).await {
            Ok(found) => {
                let list = with_endpoints(first, &found.items);
                servers.send_if_modified(|known| {
                    let changed = *known != list;
                    *known = list;
                    changed
                });
            }
            Err(error) => tracing::debug!(%error, "the list of API servers can't be read"),
        }
        env.sleep(LIST_INTERVAL).await;
    }
}

/// The first server, and the others in order.
fn with_endpoints(first: &Uri, slices: &[EndpointSlice]) -> Vec<Uri> {
    let mut found: Vec<Uri> = slices
        .iter()
        .flat_map(|slice| {
            let port = slice.ports.iter().flatten().find_map(|port| port.port).unwrap_or(443);
            let addresses = slice.endpoints.iter().flatten().flat_map(|endpoint| &endpoint.addresses);
            addresses.map(move |address| match address.contains(':') {
                true => format!("https://[{address}]:{port}"),
                false => format!("https://{address}:{port}"),
            })
        })
        .filter_map(|text| text.parse().ok())
        .filter(|uri: &Uri| uri.authority() != first.authority())
        .collect();
    found.sort_by_key(ToString::to_string);
    found.dedup();
    found.insert(0, first.clone());
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Answers with a server's name and a body that never ends, fails, or hangs.
    fn client(name: &'static str, behaviour: Arc<Mutex<&'static str>>) -> Client {
        let service = tower::service_fn(move |_: Request<Body>| {
            let behaviour = behaviour.clone();
            async move {
                let now = *behaviour.lock().unwrap();
                match now {
                    "fails" => return Err(tower::BoxError::from("refused")),
                    "hangs" => std::future::pending::<()>().await,
                    _ => {}
                }
                let body =
                    futures::stream::once(
                        async move { Ok::<_, std::io::Error>(Frame::data(bytes::Bytes::from(name))) },
                    );
                let endless = futures::StreamExt::chain(body, futures::stream::pending());
                Ok(Response::new(http_body_util::StreamBody::new(endless)))
            }
        });
        ClientBuilder::new(service, "default").build()
    }

    struct World {
        client: Client,
        env: Env,
        one: Arc<Mutex<&'static str>>,
        servers: watch::Sender<Vec<Uri>>,
    }

    fn world() -> World {
        let (one, two) = (Arc::new(Mutex::new("")), Arc::new(Mutex::new("")));
        let uris = ["https://one:1", "https://two:2"].map(|uri| uri.parse::<Uri>().unwrap());
        let (servers, list) = watch::channel(uris.to_vec());
        let behaviour = one.clone();
        let make: MakeClient = Arc::new(move |uri| {
            Ok(match uri.host() {
                Some("one") => client("one", behaviour.clone()),
                _ => client("two", two.clone()),
            })
        });
        let env = Env::real();
        World { client: failing_over(&env, list, make, "default").unwrap(), env, one, servers }
    }

    impl World {
        async fn ask(&self) -> Result<(String, Body), kube::Error> {
            let request = Request::get("/").body(Body::empty()).unwrap();
            let mut body = self.client.send(request).await?.into_body();
            let frame = http_body_util::BodyExt::frame(&mut body).await.unwrap()?;
            Ok((String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap(), body))
        }
    }

    #[tokio::test]
    async fn a_server_that_refuses_is_left_and_its_watches_end() {
        let world = world();
        let (name, mut watch) = world.ask().await.unwrap();
        assert_eq!(name, "one");
        *world.one.lock().unwrap() = "fails";
        assert!(world.ask().await.is_err());
        assert!(
            http_body_util::BodyExt::frame(&mut watch).await.unwrap().is_err(),
            "a watch at the failed server ends"
        );
        assert_eq!(world.ask().await.unwrap().0, "two");
    }

    #[tokio::test]
    async fn a_server_that_hangs_is_left_after_two_requests() {
        let world = world();
        *world.one.lock().unwrap() = "hangs";
        for _ in 0..SLOW_MAX {
            assert!(world.env.timeout(SLOW_AFTER * 2, world.ask()).await.is_err());
        }
        assert_eq!(world.ask().await.unwrap().0, "two");
        // A request that is given up early says nothing.
        assert!(world.env.timeout(Duration::ZERO, std::future::pending::<()>()).await.is_err());
        world.servers.send_replace(vec!["https://one:1".parse().unwrap()]);
        *world.one.lock().unwrap() = "";
        assert_eq!(world.ask().await.unwrap().0, "one", "a server that left the list is not used");
    }

    #[test]
    fn the_list_begins_with_the_server_of_the_join() {
        let slice = json!({"metadata": {"name": "kubernetes"}, "addressType": "IPv4", "ports": [{"name": "https", "port": 6443}],
            "endpoints": [{"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.3"]}]});
        let slices = [serde_json::from_value(slice).unwrap()];
        let list = with_endpoints(&"https://10.0.0.2:6443".parse().unwrap(), &slices);
        let list: Vec<String> = list.iter().map(ToString::to_string).collect();
        assert_eq!(list, ["https://10.0.0.2:6443/", "https://10.0.0.1:6443/", "https://10.0.0.3:6443/"]);
        assert_eq!(with_endpoints(&"https://a:1".parse().unwrap(), &[]).len(), 1);
    }
}
