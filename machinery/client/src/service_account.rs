//! A client that acts as a service account, with tokens of the TokenRequest API: requested before the first request, and
//! again after 80% of a token's life. As upstream's controllers with `--use-service-account-credentials`
//! (`k8s.io/controller-manager/pkg/clientbuilder`).

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response, StatusCode};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Client;
use kube::client::{Body, ClientBuilder};
use machinery_api::ObjectKey;
use machinery_env::Env;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tower::{BoxError, Service};

use crate::Kind;
use crate::request::{ApiClient, status_code};

/// Life of a requested token in seconds (upstream's).
const LIFE_S: u64 = 3600;
/// Percentage of its life after which a token is replaced (upstream's).
const RENEWED_AT_PERCENT: u32 = 80;

/// A client that acts as the service account `account`, which is created if it is missing. `issuer` may create service
/// accounts and their tokens; `plain` has no credentials.
pub fn as_service_account(env: &Env, issuer: Client, plain: Client, account: ObjectKey) -> Client {
    let namespace = account.namespace.to_string();
    let tokens = Tokens { env: env.clone(), issuer: issuer.into(), account, newest: Mutex::default() };
    ClientBuilder::new(Bearer { plain, tokens: Arc::new(tokens) }, namespace).build()
}

/// A token until its replacement.
struct Token {
    header: HeaderValue,
    /// On the process's clock.
    renewed_at: Duration,
}

struct Tokens {
    env: Env,
    issuer: ApiClient,
    account: ObjectKey,
    /// Locked during a request for a token: other requests of the account need its result.
    newest: Mutex<Option<Token>>,
}

impl Tokens {
    /// The `Authorization` of the account.
    async fn header(&self) -> Result<HeaderValue, BoxError> {
        let mut newest = self.newest.lock().await;
        match &*newest {
            Some(token) if self.env.elapsed() < token.renewed_at => return Ok(token.header.clone()),
            _ => {}
        }
        let token = self.request().await;
        let token = token.map_err(|error| format!("no token of the service account {}: {error}", self.account))?;
        Ok(newest.insert(token).header.clone())
    }

    /// A new token; creates the account if it is missing.
    async fn request(&self) -> Result<Token, BoxError> {
        let (kind, requested_at) = (Kind::of::<ServiceAccount>(), self.env.elapsed());
        let wanted = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": LIFE_S}});
        let ask = async || self.issuer.post::<Value>(&kind, &self.account, "token", &wanted).await;
        let answer = match ask().await {
            Err(error) if status_code(&error) == StatusCode::NOT_FOUND.as_u16() => {
                let (namespace, name) = (&*self.account.namespace, &*self.account.name);
                let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": namespace, "name": name}});
                match self.issuer.create::<Value>(&kind, namespace, &account).await {
                    // Another process was faster.
                    Err(error) if status_code(&error) != StatusCode::CONFLICT.as_u16() => return Err(error.into()),
                    _ => ask().await?,
                }
            }
            answer => answer?,
        };
        let token = answer["status"]["token"].as_str().ok_or("the answer has no token")?;
        let mut header = HeaderValue::try_from(format!("Bearer {token}"))?;
        header.set_sensitive(true);
        // Servers may give a shorter life.
        let ends =
            answer["status"]["expirationTimestamp"].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
        let left_s = ends.and_then(|end| u64::try_from(end.as_second() - self.env.now().as_second()).ok());
        let life = Duration::from_secs(left_s.unwrap_or(LIFE_S).min(LIFE_S));
        Ok(Token { header, renewed_at: requested_at + life * RENEWED_AT_PERCENT / 100 })
    }

    /// Forgets a token that the API server has refused.
    async fn forget(&self, refused: &HeaderValue) {
        let mut newest = self.newest.lock().await;
        if newest.as_ref().is_some_and(|token| token.header == *refused) {
            *newest = None;
        }
    }
}

/// Adds the newest token to each request.
struct Bearer {
    plain: Client,
    tokens: Arc<Tokens>,
}

impl Service<Request<Body>> for Bearer {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    /// The client has a queue of its own.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let (plain, tokens) = (self.plain.clone(), self.tokens.clone());
        Box::pin(async move {
            let header = tokens.header().await?;
            request.headers_mut().insert(AUTHORIZATION, header.clone());
            let response = plain.send(request).await?;
            if response.status() == StatusCode::UNAUTHORIZED {
                tokens.forget(&header).await;
            }
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as StdMutex;

    use http_body_util::Full;
    use machinery_env::TokioClock;

    use super::*;
    use crate::in_process;

    /// What the API server got: the issuer's requests as method and path, and the tokens of the account's requests.
    #[derive(Default)]
    struct Requests {
        issued: Vec<String>,
        tokens: Vec<String>,
        accepts: bool,
        has_account: bool,
    }

    /// An API server that gives tokens `t1`, `t2`, … of `life_s`.
    fn clients(env: &Env, seen: &Arc<StdMutex<Requests>>, life_s: i64) -> Client {
        let answer = |status: u16, body: Value| {
            Ok::<_, std::convert::Infallible>(
                Response::builder().status(status).body(Full::new(bytes::Bytes::from(body.to_string()))).unwrap(),
            )
        };
        let missing = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "m", "reason": "NotFound", "code": 404});
        let (state, clock) = (seen.clone(), env.clone());
        let issues = tower::service_fn(move |request: Request<Body>| {
            let (state, clock, missing) = (state.clone(), clock.clone(), missing.clone());
            async move {
                let mut seen = state.lock().unwrap();
                seen.issued.push(format!("{} {}", request.method(), request.uri().path()));
                if !request.uri().path().ends_with("/token") {
                    seen.has_account = true;
                    return answer(201, json!({}));
                }
                if !seen.has_account {
                    return answer(404, missing);
                }
                let number = seen.issued.iter().filter(|line| line.ends_with("/token")).count();
                let end = jiff::Timestamp::from_second(clock.now().as_second() + life_s).unwrap();
                answer(201, json!({"status": {"token": format!("t{number}"), "expirationTimestamp": end.to_string()}}))
            }
        });
        let state = seen.clone();
        let plain = tower::service_fn(move |request: Request<Body>| {
            let mut seen = state.lock().unwrap();
            let token = request.headers()[AUTHORIZATION].to_str().unwrap().to_owned();
            seen.tokens.push(token);
            let status = if seen.accepts { 200 } else { 401 };
            let body =
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "m", "code": status});
            async move { answer(status, body) }
        });
        let (issuer, plain) = (in_process(env, issues, |request| request), in_process(env, plain, |request| request));
        as_service_account(env, issuer, plain, ObjectKey::new("kube-system", "job-controller"))
    }

    async fn get(client: &Client) -> bool {
        client.request::<Value>(Request::get("/api").body(Vec::new()).unwrap()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_are_requested_once_and_replaced_in_time() {
        let (env, seen) =
            (TokioClock::env(1).0, Arc::new(StdMutex::new(Requests { accepts: true, ..Requests::default() })));
        let client = clients(&env, &seen, 1000);
        let (first, second) = tokio::join!(get(&client), get(&client));
        assert!(first && second);
        let account = "/api/v1/namespaces/kube-system/serviceaccounts";
        let token = format!("POST {account}/job-controller/token");
        assert_eq!(seen.lock().unwrap().issued, [token.clone(), format!("POST {account}"), token]);
        for (after_s, wanted) in [(799, "Bearer t2"), (2, "Bearer t3")] {
            env.sleep(Duration::from_secs(after_s)).await;
            assert!(get(&client).await);
            assert_eq!(seen.lock().unwrap().tokens.last().unwrap(), wanted);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_token_is_not_used_again() {
        let (env, seen) =
            (TokioClock::env(1).0, Arc::new(StdMutex::new(Requests { has_account: true, ..Requests::default() })));
        let client = clients(&env, &seen, 3600);
        assert!(!get(&client).await);
        seen.lock().unwrap().accepts = true;
        assert!(get(&client).await);
        assert_eq!(seen.lock().unwrap().tokens, ["Bearer t1", "Bearer t2"]);
    }
}
