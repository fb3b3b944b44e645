//! A request's way: who asks, whether they may, what serves it, and what every answer carries.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use futures::FutureExt as _;
use http::header::{CACHE_CONTROL, HeaderValue, WARNING};
use http::{Request, Response};
use machinery_api::ApiError;
use machinery_api::selector::FieldSelector;
use machinery_env::Env;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::connect::{ClientConnection, SessionPlace};
use super::deadline;
use super::health::{Check, Slis};
use super::info::RequestInfo;
use super::metrics::{Metrics, Of};
use super::respond::{self, RequestHead};
use super::route::{self, NoRoute, Route, Target};
use super::seats::Seats;
use super::warnings;
use crate::auth::tls::Peer;
use crate::auth::{ANONYMOUS, Attributes, Authenticator, Authorizer, Credentials, MASTERS, UserInfo, impersonate};
use crate::catalog::Catalog;
use crate::registry::Registry;
use crate::request::deadline::{timed_out, within};
use crate::request::query::Query;
use crate::turns::Turns;

/// What requests are answered with, made before the first comes.
pub struct HandlerDeps {
    /// Clock and ids.
    pub env: Env,
    /// What requests about resources do.
    pub registry: Registry,
    /// Who asks.
    pub authenticator: Arc<Authenticator>,
    /// Whether they may.
    pub authorizer: Arc<Authorizer>,
    /// Counters.
    pub metrics: Metrics,
    /// Reaches nodes for logs.
    pub kubelets: super::kubelets::Kubelets,
    /// Where clients reach the server (`host:port`).
    pub address: String,
}

/// All that answers requests.
pub struct RequestHandler {
    /// What it was made of.
    pub deps: HandlerDeps,
    /// Ends watches.
    pub stop: CancellationToken,
    /// The default objects are there.
    pub bootstrapped: AtomicBool,
    impersonator: impersonate::Impersonator,
    pub(super) seats: Seats,
    pub(super) turns: Arc<Turns>,
    pub(super) slis: Slis,
    pub(super) passed: Arc<super::proxy::Shares>,
}

/// One request on its way.
pub(super) struct RequestContext<'a> {
    pub(super) asked: RequestHead<'a>,
    pub(super) info: &'a RequestInfo,
    /// What is served, for as long as the request lasts.
    pub(super) catalog: &'a Arc<Catalog>,
    pub(super) user: &'a UserInfo,
    pub(super) warnings: Vec<String>,
    pub(super) connection: ClientConnection,
    pub(super) seat: Seat,
    /// By when it has to be done, on the scale of [`Env::elapsed`].
    pub(super) deadline: Duration,
}

/// How a request stands to the bound on those that run at once.
pub(super) enum Seat {
    /// It needs none.
    Exempt,
    /// It takes one when its body is there.
    Later,
    /// It has one.
    Taken(#[expect(dead_code, reason = "held until the request is done")] OwnedSemaphorePermit),
    /// There was none.
    Refused,
}

impl RequestHandler {
    /// One that has answered nothing yet.
    #[must_use]
    pub fn new(deps: HandlerDeps) -> Self {
        Self {
            deps,
            stop: CancellationToken::new(),
            bootstrapped: AtomicBool::new(false),
            impersonator: impersonate::Impersonator::default(),
            seats: Seats::new(),
            turns: Arc::new(Turns::new()),
            slis: Slis::default(),
            passed: Arc::default(),
        }
    }

    /// Answers a request; never fails, and never leaves one without upstream's headers.
    pub async fn handle(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        let began = self.deps.env.elapsed();
        let now = self.deps.env.now();
        let (mut parts, body) = request.into_parts();
        let upgrade = parts.extensions.remove();
        let query = Query::parse(parts.uri.query().unwrap_or(""));
        let info = RequestInfo::read(parts.method.as_str(), parts.uri.path(), &query);
        let managed = parts.extensions.get::<UserInfo>().is_none();
        let asked = RequestHead {
            method: &parts.method,
            uri: &parts.uri,
            headers: &parts.headers,
            query: &query,
            now,
            managed,
        };
        let audit_id = parts
            .headers
            .get("audit-id")
            .filter(|id| id.len() <= 64 && !id.is_empty())
            .cloned()
            .unwrap_or_else(|| HeaderValue::try_from(self.deps.env.uid()).unwrap_or(HeaderValue::from_static("")));
        let method = parts.method.as_str();
        let catalog = self.deps.registry.served.load();
        let found = route::find(method, &info, &catalog);
        let target = match &found {
            Ok(Route::Resource(target)) => Some(target.clone()),
            _ => None,
        };
        let of = Of::new(&info, target.as_ref(), query.get("dryRun").is_some());
        let long = is_long(&info, target.as_ref());
        let under_way = long.then(|| self.deps.metrics.long_running(&of));
        let place = SessionPlace { peer: parts.extensions.get().cloned(), under_way };
        let (mut response, warned) = match in_time(self.identify(&parts, &info)).await {
            Err(error) => (respond::error(&asked, &error), Vec::new()),
            Ok(user) => {
                let mut asking = RequestContext {
                    asked,
                    info: &info,
                    catalog: &catalog,
                    user: &user,
                    warnings: Vec::new(),
                    connection: ClientConnection { upgrade, place },
                    seat: Seat::Exempt,
                    deadline: began + deadline::REQUEST_TIMEOUT,
                };
                let response = self.limited(&mut asking, method, found, long, body).await;
                // A session has it taken along.
                let under_way = asking.connection.place.under_way.take();
                let response = match under_way {
                    Some(under_way) => response.map(|body| under_way.until_read(body)),
                    None => response,
                };
                (response, asking.warnings)
            }
        };
        let headers = response.headers_mut();
        headers.insert("audit-id", audit_id);
        if !headers.contains_key(CACHE_CONTROL) {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        }
        for value in warnings::headers(&warned) {
            headers.append(WARNING, value);
        }
        self.deps.metrics.done(&of, response.status().as_u16(), self.deps.env.elapsed().saturating_sub(began));
        response
    }

    /// Who asks, after impersonation.
    async fn identify(&self, parts: &http::request::Parts, info: &RequestInfo) -> Result<UserInfo, ApiError> {
        let objects = &*self.deps.registry.objects;
        let user =
            self.deps.authenticator.authenticate(objects, &Credentials::of(&parts.headers, &parts.extensions)).await?;
        if user.name != ANONYMOUS
            && let Some(peer) = parts.extensions.get::<Peer>()
        {
            peer.identify();
        }
        match impersonate::wanted(&parts.headers)? {
            None => Ok(user),
            Some(wanted) => {
                let fields = exact_fields(info);
                let attributes = attributes(info, &fields);
                let of = self.impersonator.impersonate(&self.deps.authorizer, objects, &user, &wanted, &attributes);
                Box::pin(of).await
            }
        }
    }

    async fn limited(
        self: &Arc<Self>,
        asking: &mut RequestContext<'_>,
        method: &str,
        found: Result<Route, NoRoute>,
        long: bool,
        body: Body,
    ) -> Response<Body> {
        let mutating = !matches!(asking.info.verb.as_str(), "get" | "list" | "watch");
        asking.seat = if long || asking.user.is_in(MASTERS) {
            Seat::Exempt
        } else if mutating {
            Seat::Later
        } else {
            match self.seats.take(mutating) {
                Some(seat) => Seat::Taken(seat),
                None => return too_many(),
            }
        };
        if let Err(error) = in_time(self.permit(asking)).await {
            let mut response = respond::error(&asking.asked, &error);
            response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
            return response;
        }
        let timeout = match deadline::of(asking.asked.query) {
            Ok(timeout) => timeout,
            Err(error) if !long => return respond::error(&asking.asked, &error),
            Err(_) => deadline::REQUEST_TIMEOUT,
        };
        if long {
            return Box::pin(self.answer(asking, method, found, body)).await;
        }
        asking.deadline = self.deps.env.elapsed() + timeout;
        let under_way = self.deps.metrics.running(mutating);
        let done = within(timeout, Box::pin(self.answer(asking, method, found, body))).await;
        drop(under_way);
        if matches!(asking.seat, Seat::Refused) {
            return too_many();
        }
        asking.seat = Seat::Exempt;
        done.unwrap_or_else(|_| respond::error(&asking.asked, &timed_out()))
    }

    /// What is left of a request's time. Work that waited for its turn has no more than that: where it runs, nobody else can
    /// look at a clock.
    pub(super) fn time_left(&self, deadline: Duration) -> Duration {
        deadline.saturating_sub(self.deps.env.elapsed())
    }

    async fn permit(&self, asking: &RequestContext<'_>) -> Result<(), ApiError> {
        let fields = exact_fields(asking.info);
        self.deps.authorizer.check(&*self.deps.registry.objects, asking.user, &attributes(asking.info, &fields)).await
    }

    async fn answer(
        self: &Arc<Self>,
        asking: &mut RequestContext<'_>,
        method: &str,
        found: Result<Route, NoRoute>,
        body: Body,
    ) -> Response<Body> {
        let route = match found {
            Ok(route) => route,
            Err(NoRoute::Text) => return respond::page_not_found(),
            Err(NoRoute::Error(error)) => return respond::error(&asking.asked, &error),
        };
        let done = match route {
            Route::Resource(target) => self.resource(asking, target, body).await,
            page => self.page(asking, method, page),
        };
        done.unwrap_or_else(|error| respond::error(&asking.asked, &error))
    }

    /// The checks of a health root.
    pub(super) fn checks(&self, root: &str) -> Vec<Check> {
        let mut checks = vec![
            ("ping", true),
            ("log", true),
            ("etcd", true),
            ("poststarthook/rbac/bootstrap-roles", self.bootstrapped.load(Ordering::Acquire)),
        ];
        if root == "/readyz" {
            checks.push(("informer-sync", true));
            checks.push(("shutdown", !self.stop.is_cancelled()));
        }
        checks
    }
}

/// Whether a request lasts until its client goes: it has neither a seat nor a deadline.
fn is_long(info: &RequestInfo, target: Option<&Target>) -> bool {
    let subresource = target.and_then(|target| target.subresource);
    info.verb == "watch" || subresource.is_some_and(|sub| sub.what.is_long_running())
}

/// Who asks and whether they may is known within a request's time, too. What doesn't wait sets no timer. (No `async fn`, which
/// would hold the answer twice: as its argument and as what it waits for.)
fn in_time<T>(answer: impl Future<Output = Result<T, ApiError>>) -> impl Future<Output = Result<T, ApiError>> {
    tokio::time::timeout(deadline::REQUEST_TIMEOUT, answer).map(|done| done.unwrap_or_else(|_| Err(timed_out())))
}

fn too_many() -> Response<Body> {
    let mut response = respond::text(429, "Too many requests, please try again later.\n".into());
    response.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// What a request is about, for authorizers.
pub(super) fn attributes<'a>(info: &'a RequestInfo, fields: &'a [(String, String)]) -> Attributes<'a> {
    Attributes {
        verb: &info.verb,
        group: &info.group,
        version: &info.version,
        resource: &info.resource,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: &info.name,
        path: &info.path,
        is_resource: info.is_resource,
        fields,
    }
}

pub(super) fn exact_fields(info: &RequestInfo) -> Vec<(String, String)> {
    if info.field_selector.is_empty() {
        return Vec::new();
    }
    let fields = FieldSelector::parse(&info.field_selector).unwrap_or_default();
    fields.requirements.into_iter().filter(|one| one.equal).map(|one| (one.field, one.value)).collect()
}
