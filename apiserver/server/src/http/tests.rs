//! Tests of the in-flight limit over the whole pipeline: a request holds its permit while it runs, and releases it once,
//! however the request ends.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use machinery_env::Env;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::server::{Apiserver, ChainExtensions, Config};
use apiserver_admission::{Effects, Plugin};
use apiserver_auth::MaybeReady;
use apiserver_auth::{Attributes, Authorize, Decision, UserInfo};
use apiserver_resources::objects::ObjectReader;
use apiserver_storage::store::memory::MemoryStore;

/// The number of yields after which a request counts as blocked.
const SETTLED_AFTER: usize = 64;
/// The free permits of reads and writes, and the incoming bodies, of a server without requests.
const IDLE: (usize, usize, usize) = (400, 200, 0);
/// A user whose requests panic.
const PANICS: &str = "panics";

/// An authorizer and an admission plugin that block each request until a permit is added.
struct Gate {
    authorizer: Semaphore,
    plugin: Semaphore,
}

impl Authorize for Gate {
    fn authorize<'a>(
        &'a self,
        _: &'a dyn ObjectReader,
        user: &'a UserInfo,
        request: &'a Attributes<'_>,
    ) -> MaybeReady<'a, Decision> {
        assert!(user.name != PANICS || request.verb != "list", "the authorizer panics");
        MaybeReady::Pending(Box::pin(async {
            self.authorizer.acquire().await.expect("never closed").forget();
            Decision::allow("")
        }))
    }
}

impl Plugin for Gate {
    fn name(&self) -> &'static str {
        "Gate"
    }

    fn mutate<'a>(
        &'a self,
        context: &'a apiserver_admission::Context<'_>,
        _: &'a mut Value,
        _: &'a mut Effects,
    ) -> apiserver_admission::MaybeReady<'a> {
        assert_ne!(context.request.user.name, PANICS, "the plugin panics");
        MaybeReady::Pending(Box::pin(async {
            self.plugin.acquire().await.expect("never closed").forget();
            Ok(())
        }))
    }
}

struct Server {
    server: Apiserver,
    gate: Arc<Gate>,
}

impl Server {
    async fn open() -> Self {
        let (env, _) = Env::seeded(6, "2026-01-01T00:00:00Z".parse().unwrap());
        let gate = Arc::new(Gate { authorizer: Semaphore::new(0), plugin: Semaphore::new(0) });
        let extensions =
            ChainExtensions { authorizers: vec![gate.clone()], plugins: vec![gate.clone()], ..Default::default() };
        let store = Arc::new(MemoryStore::new(env.clone()));
        let server = Apiserver::open_with(&env, store, Config::of_tests(), extensions).await.unwrap();
        Self { server, gate }
    }

    /// Sends a request in a task of its own, and runs it until it blocks.
    async fn send(&self, user: &str, method: &str, path: &str, body: Body) -> JoinHandle<Response<Body>> {
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let mut request = request.body(body).unwrap();
        request.extensions_mut().insert(UserInfo::component(user, None));
        let sent = tokio::spawn(self.server.handler().clone().handle(request));
        settle().await;
        sent
    }

    fn usage(&self) -> (usize, usize, usize) {
        self.server.handler().in_flight.usage()
    }
}

async fn settle() {
    for _ in 0..SETTLED_AFTER {
        tokio::task::yield_now().await;
    }
}

fn namespace() -> Body {
    Body::from(json!({"metadata": {"name": "n"}}).to_string())
}

/// A body that never arrives.
fn stalled() -> Body {
    Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>())
}

const NAMESPACES: &str = "/api/v1/namespaces";

#[tokio::test]
async fn an_answered_request_releases_its_permit() {
    let server = Server::open().await;
    let read = server.send("jo", "GET", NAMESPACES, Body::empty()).await;
    assert_eq!(server.usage(), (399, 200, 0));
    server.gate.authorizer.add_permits(1);
    assert_eq!(read.await.unwrap().status(), 200);
    assert_eq!(server.usage(), IDLE);
    server.gate.authorizer.add_permits(1);
    let write = server.send("jo", "POST", NAMESPACES, namespace()).await;
    assert_eq!(server.usage(), (400, 199, 0));
    server.gate.plugin.add_permits(1);
    assert_eq!(write.await.unwrap().status(), 201);
    assert_eq!(server.usage(), IDLE);
}

#[tokio::test]
async fn long_running_requests_hold_no_permit() {
    let server = Server::open().await;
    let sessions = [
        server.send("jo", "GET", "/api/v1/namespaces?watch=true", Body::empty()).await,
        server.send("jo", "GET", "/api/v1/namespaces/n/pods/p/exec?command=x", Body::empty()).await,
    ];
    assert!(sessions.iter().all(|session| !session.is_finished()));
    assert_eq!(server.usage(), IDLE, "both wait for the authorizer");
    // An exec is authorized for its own verb and for `create`.
    server.gate.authorizer.add_permits(SETTLED_AFTER);
    server.gate.plugin.add_permits(SETTLED_AFTER);
    let [watch, exec] = sessions;
    let watch = watch.await.unwrap();
    assert_eq!((watch.status().as_u16(), server.usage()), (200, IDLE));
    assert!(exec.await.unwrap().status().is_client_error(), "the pod does not exist");
    drop(watch);
    assert_eq!(server.usage(), IDLE);
}

#[tokio::test]
async fn a_request_whose_client_leaves_releases_its_permit() {
    let server = Server::open().await;
    server.gate.authorizer.add_permits(1);
    let receiving = server.send("jo", "POST", NAMESPACES, stalled()).await;
    assert_eq!(server.usage(), (400, 200, 1), "without its body, a write has no permit");
    receiving.abort();
    assert!(receiving.await.unwrap_err().is_cancelled());
    assert_eq!(server.usage(), IDLE);
    server.gate.authorizer.add_permits(1);
    let write = server.send("jo", "POST", NAMESPACES, namespace()).await;
    let read = server.send("jo", "GET", NAMESPACES, Body::empty()).await;
    assert_eq!(server.usage(), (399, 199, 0));
    for running in [write, read] {
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
    }
    assert_eq!(server.usage(), IDLE);
}

#[tokio::test]
async fn a_request_that_panics_releases_its_permit() {
    let server = Server::open().await;
    let read = server.send(PANICS, "GET", NAMESPACES, Body::empty()).await;
    assert!(read.await.unwrap_err().is_panic());
    server.gate.authorizer.add_permits(1);
    let write = server.send(PANICS, "POST", NAMESPACES, namespace()).await;
    assert!(write.await.unwrap_err().is_panic());
    assert_eq!(server.usage(), IDLE);
}
