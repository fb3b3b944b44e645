//! Tests of the authenticator and authorizer chains over the whole server: waiting links are awaited and do not block
//! other requests.

use std::sync::Arc;

use axum::body::Body;
use http::Request;
use machinery_env::Env;
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

use super::{Apiserver, ChainExtensions, Config};
use apiserver_auth::tokens::AuthenticatedToken;
use apiserver_auth::{Attributes, AuthenticateToken, Authorize, Decision, MASTERS, MaybeReady, UserInfo};
use apiserver_resources::objects::ObjectReader;
use apiserver_storage::store::memory::MemoryStore;

/// Answers after a permit is added.
struct Slow(Arc<Semaphore>);

impl AuthenticateToken for Slow {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> MaybeReady<'a, Result<Option<AuthenticatedToken>, String>> {
        MaybeReady::Pending(Box::pin(async move {
            self.0.acquire().await.unwrap().forget();
            let Some(name) = token.strip_prefix("slow-") else { return Ok(None) };
            let user = UserInfo { name: name.into(), ..UserInfo::default() };
            Ok(Some(AuthenticatedToken { user, audiences: audiences.to_vec() }))
        }))
    }
}

impl Authorize for Slow {
    fn authorize<'a>(
        &'a self,
        _: &'a dyn ObjectReader,
        user: &'a UserInfo,
        request: &'a Attributes<'_>,
    ) -> MaybeReady<'a, Decision> {
        if user.name != "jo" {
            return MaybeReady::Ready(Decision::no_opinion("not for me"));
        }
        MaybeReady::Pending(Box::pin(async move {
            self.0.acquire().await.unwrap().forget();
            if request.verb == "list" { Decision::allow("") } else { Decision::no_opinion("jo only lists") }
        }))
    }
}

async fn open(let_go: &Arc<Semaphore>) -> Apiserver {
    let (env, _) = Env::seeded(4, "2026-01-01T00:00:00Z".parse().unwrap());
    let slow = Arc::new(Slow(let_go.clone()));
    let chains =
        ChainExtensions { authenticators: vec![slow.clone()], authorizers: vec![slow], ..ChainExtensions::default() };
    Apiserver::open_with(&env, Arc::new(MemoryStore::new(env.clone())), Config::of_tests(), chains).await.unwrap()
}

async fn code(server: &Apiserver, method: &str, token: &str) -> u16 {
    let request = Request::builder().method(method).uri("/api/v1/namespaces/default");
    let mut request = request.header("authorization", format!("Bearer {token}")).body(Body::empty()).unwrap();
    if method == "LIST" {
        *request.method_mut() = http::Method::GET;
        *request.uri_mut() = "/api/v1/pods".parse().unwrap();
    }
    server.service().oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn links_that_wait_are_waited_for() {
    let let_go = Arc::new(Semaphore::new(0));
    let server = open(&let_go).await;
    let waiting = tokio::spawn({
        let server = server.clone();
        async move { code(&server, "LIST", "slow-jo").await }
    });
    tokio::task::yield_now().await;
    // A request that needs neither link completes meanwhile.
    let mut request = Request::get("/api/v1/pods").body(Body::empty()).unwrap();
    request.extensions_mut().insert(UserInfo::component("admin", Some(MASTERS)));
    assert_eq!(server.service().oneshot(request).await.unwrap().status(), 200);
    assert!(!waiting.is_finished());
    let_go.add_permits(2);
    assert_eq!(waiting.await.unwrap(), 200);
    let_go.add_permits(4);
    assert_eq!(code(&server, "GET", "slow-jo").await, 403, "the link denied");
    assert_eq!(code(&server, "LIST", "slow-bo").await, 403);
    assert_eq!(code(&server, "LIST", "nonsense").await, 401, "nobody knows it");
}
