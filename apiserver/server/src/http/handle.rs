//! The request pipeline: authenticate, apply the in-flight limit, authorize, dispatch, and add the headers that every
//! response carries.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::header::{CACHE_CONTROL, HeaderMap, HeaderValue, WARNING};
use http::{Method, Request, Response};
use machinery_api::ApiError;
use machinery_api::error::GroupResource;
use machinery_api::selector::FieldSelector;
use machinery_env::Env;
use machinery_serve::browsers;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::connect::{ClientConnection, SessionGuards};
use super::deadline;
use super::health::{Check, Slis};
use super::in_flight::{InFlightClass, InFlightLimits, InFlightPermit};
use super::info::RequestInfo;
use super::metrics::{Metrics, RequestLabels};
use super::respond::{self, RequestHead};
use super::route::{self, NoRoute, Route, Target};
use super::spans;
use super::static_files::StaticFiles;
use super::user_limits::UserLimits;
use super::warnings;
use crate::fair_queue::FairQueue;
use crate::registry::Registry;
use crate::tls::{self, Peer};
use apiserver_auth::tls::PeerCertificate;
use apiserver_auth::{ANONYMOUS, Attributes, Authenticator, Authorizer, MASTERS, UserInfo, impersonate};
use apiserver_catalog::Catalog;
use apiserver_resources::query::Query;
use apiserver_storage::store::Revision;

/// The 403 of a request that a browser sends for a page of another site.
const FOREIGN_PAGE: &str = "a page of another site must not use the browser's client certificate: open the API with \
                            \"coracle dashboard\", or send a bearer token from a browser without one";

/// The dependencies of a [`RequestHandler`].
pub struct HandlerDeps {
    /// Clock and ids.
    pub env: Env,
    /// Implements the verbs.
    pub registry: Registry,
    /// Authenticates requests.
    pub authenticator: Arc<Authenticator>,
    /// Authorizes requests.
    pub authorizer: Arc<Authorizer>,
    /// Request metrics.
    pub metrics: Metrics,
    /// The client for kubelets (logs, sessions, proxy).
    pub kubelets: super::kubelets::Kubelets,
    /// The address of the server for clients (`host:port`).
    pub address: String,
    /// Files beside the API.
    pub files: Option<Arc<StaticFiles>>,
}

/// Handles all requests.
pub struct RequestHandler {
    pub deps: HandlerDeps,
    /// Ends long-running requests when cancelled.
    pub stop: CancellationToken,
    /// Ends the watches of clients outside this process, before [`Self::stop`].
    pub(crate) connections_stop: CancellationToken,
    /// Whether the default objects have been created.
    pub bootstrapped: AtomicBool,
    /// The revision up to which the CustomResourceDefinitions are served.
    pub(crate) definitions_served: watch::Sender<Revision>,
    impersonator: impersonate::Impersonator,
    pub(super) in_flight: InFlightLimits,
    pub(super) fair_queue: Arc<FairQueue>,
    pub(super) slis: Slis,
    pub(super) proxied: Arc<UserLimits>,
    pub(super) sessions: Arc<UserLimits>,
}

/// The state of one request while it is handled.
pub(super) struct RequestContext<'a> {
    pub(super) head: RequestHead<'a>,
    pub(super) info: &'a RequestInfo,
    /// The catalog that was served when the request arrived, kept for its whole duration.
    pub(super) catalog: &'a Arc<Catalog>,
    pub(super) user: &'a UserInfo,
    pub(super) warnings: Vec<String>,
    pub(super) connection: ClientConnection,
    /// The request's permit under the in-flight limit, released with the context.
    pub(super) permit: InFlightPermit<'a>,
    /// When the request times out, on the scale of [`Env::elapsed`].
    pub(super) deadline: Duration,
}

impl RequestHandler {
    #[must_use]
    pub fn new(deps: HandlerDeps) -> Self {
        let stop = CancellationToken::new();
        Self {
            connections_stop: stop.child_token(),
            fair_queue: Arc::new(FairQueue::new(deps.env.clone())),
            deps,
            stop,
            bootstrapped: AtomicBool::new(false),
            definitions_served: watch::Sender::new(0),
            impersonator: impersonate::Impersonator::default(),
            in_flight: InFlightLimits::new(),
            slis: Slis::default(),
            proxied: UserLimits::of_proxied(),
            sessions: UserLimits::of_sessions(),
        }
    }

    /// Handles a request. Always returns a response, with upstream's headers.
    ///
    /// Boxed, as all public futures of this crate that contain most of it: an `async fn` is compiled again in each crate that
    /// polls it.
    pub fn handle(self: Arc<Self>, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        Box::pin(self.respond(request))
    }

    async fn respond(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        let started = self.deps.env.elapsed();
        let now = self.deps.env.now();
        let (mut parts, body) = request.into_parts();
        let upgrade = parts.extensions.remove();
        let query = Query::parse(parts.uri.query().unwrap_or(""));
        let info = RequestInfo::read(parts.method.as_str(), parts.uri.path(), &query);
        let managed = parts.extensions.get::<UserInfo>().is_none();
        let head = RequestHead {
            method: &parts.method,
            uri: &parts.uri,
            headers: &parts.headers,
            query: &query,
            now,
            managed,
        };
        let audit_id = self.audit_id(&parts.headers);
        let method = parts.method.as_str();
        let mut catalog = self.deps.registry.served.load();
        let mut route = self.route(method, &info, &catalog);
        if self.definitions_arrived(&route).await {
            catalog = self.deps.registry.served.load();
            route = self.route(method, &info, &catalog);
        }
        let target = match &route {
            Ok(Route::Resource(target)) => Some(target.clone()),
            _ => None,
        };
        let labels = RequestLabels::new(&info, target.as_ref(), query.get("dryRun").is_some());
        let long_running = is_long_running(&info, target.as_ref());
        let gauge_guard = long_running.then(|| self.deps.metrics.long_running(&labels));
        let session = SessionGuards { peer: parts.extensions.get().cloned(), gauge_guard, permit: None };
        let (mut response, warned) = match with_timeout(&self.deps.env, self.authenticate(&parts, &info)).await {
            Err(error) => (respond::error(&head, &error), Vec::new()),
            Ok(user) => {
                let class = in_flight_class(&info, &user, long_running);
                let span = spans::of_request(&parts, &info, (&user, &audit_id), (now, long_running));
                let mut ctx = RequestContext {
                    head,
                    info: &info,
                    catalog: &catalog,
                    user: &user,
                    warnings: Vec::new(),
                    connection: ClientConnection { upgrade, session },
                    permit: self.in_flight.admit(class),
                    deadline: started + deadline::REQUEST_TIMEOUT,
                };
                let response = span.within(self.with_max_in_flight(&mut ctx, method, route, long_running, body)).await;
                spans::answered(&span, &parts, &user, &response);
                // A session has taken the gauge with it.
                let gauge_guard = ctx.connection.session.gauge_guard.take();
                let response = match gauge_guard {
                    Some(gauge_guard) => response.map(|body| gauge_guard.hold_until_read(body)),
                    None => response,
                };
                (response, ctx.warnings)
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
        self.deps.metrics.observe(&labels, response.status().as_u16(), self.deps.env.elapsed().saturating_sub(started));
        response
    }

    /// The route of a request: to a file beside the API, else to the API.
    fn route(&self, method: &str, info: &RequestInfo, catalog: &Catalog) -> Result<Route, NoRoute> {
        match &self.deps.files {
            Some(files) if files.covers(&info.path) => Ok(Route::File),
            _ => route::find(method, info, catalog),
        }
    }

    /// The client's audit ID if it fits a record, else a new one.
    fn audit_id(&self, headers: &HeaderMap) -> HeaderValue {
        headers
            .get("audit-id")
            .filter(|id| id.len() <= 64 && !id.is_empty())
            .cloned()
            .unwrap_or_else(|| HeaderValue::try_from(self.deps.env.uid()).unwrap_or(HeaderValue::from_static("")))
    }

    /// Authenticates the request, then applies impersonation.
    async fn authenticate(&self, parts: &http::request::Parts, info: &RequestInfo) -> Result<UserInfo, ApiError> {
        let objects = &*self.deps.registry.objects;
        let offered = tls::websocket_token(&parts.headers);
        let credentials = tls::credentials(&parts.headers, &parts.extensions, offered.as_ref());
        let has_certificate = matches!(credentials.certificate, Some(PeerCertificate::Verified(..)));
        // OPTIONS acts on nothing.
        let acts = parts.method != Method::OPTIONS;
        if has_certificate && acts && !browsers::may_use_certificate(&parts.headers, &parts.uri) {
            return Err(ApiError::Forbidden(GroupResource::default(), String::new(), FOREIGN_PAGE.to_owned()));
        }
        let user = self.deps.authenticator.authenticate(objects, &credentials).await?;
        if user.name != ANONYMOUS
            && let Some(peer) = parts.extensions.get::<Peer>()
        {
            peer.mark_authenticated();
        }
        match impersonate::requested_user(&parts.headers)? {
            None => Ok(user),
            Some(wanted) => {
                let fields = exact_fields(info);
                let attributes = attributes(info, &fields);
                let of = self.impersonator.impersonate(&self.deps.authorizer, objects, &user, &wanted, &attributes);
                Box::pin(of).await
            }
        }
    }

    async fn with_max_in_flight(
        self: &Arc<Self>,
        ctx: &mut RequestContext<'_>,
        method: &str,
        route: Result<Route, NoRoute>,
        long_running: bool,
        body: Body,
    ) -> Response<Body> {
        if ctx.permit.is_rejected() {
            return too_many_requests();
        }
        if let Err(error) = with_timeout(&self.deps.env, self.authorize(ctx)).await {
            let mut response = respond::error(&ctx.head, &error);
            response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
            return response;
        }
        let timeout = match deadline::of(ctx.head.query) {
            Ok(timeout) => timeout,
            Err(error) if !long_running => return respond::error(&ctx.head, &error),
            Err(_) => deadline::REQUEST_TIMEOUT,
        };
        if long_running {
            return Box::pin(self.dispatch(ctx, method, route, body)).await;
        }
        ctx.deadline = self.deps.env.elapsed() + timeout;
        let gauge_guard = self.deps.metrics.in_flight(is_mutating(ctx.info));
        let done = self.deps.env.within(timeout, Box::pin(self.dispatch(ctx, method, route, body))).await;
        drop(gauge_guard);
        if ctx.permit.is_rejected() {
            return too_many_requests();
        }
        done.unwrap_or_else(|_| respond::error(&ctx.head, &ApiError::request_timed_out()))
    }

    /// The time until the deadline. Work that waited in the fair queue gets no more: it blocks its thread, so no other
    /// timer of the request fires.
    pub(super) fn time_left(&self, deadline: Duration) -> Duration {
        deadline.saturating_sub(self.deps.env.elapsed())
    }

    async fn authorize(&self, ctx: &RequestContext<'_>) -> Result<(), ApiError> {
        let fields = exact_fields(ctx.info);
        self.deps.authorizer.check(&*self.deps.registry.objects, ctx.user, &attributes(ctx.info, &fields)).await
    }

    async fn dispatch(
        self: &Arc<Self>,
        ctx: &mut RequestContext<'_>,
        method: &str,
        route: Result<Route, NoRoute>,
        body: Body,
    ) -> Response<Body> {
        let route = match route {
            Ok(route) => route,
            Err(NoRoute::PlainNotFound) => return respond::page_not_found(),
            Err(NoRoute::Error(error)) => return respond::error(&ctx.head, &error),
        };
        let done = match route {
            Route::Resource(target) => self.serve_resource(ctx, target, body).await,
            Route::File => Ok(self.serve_file(ctx)),
            page => self.serve_page(ctx, method, page),
        };
        done.unwrap_or_else(|error| respond::error(&ctx.head, &error))
    }

    /// The checks of a health endpoint.
    pub(super) fn checks(&self, root: &str) -> Vec<Check> {
        let mut checks = vec![
            ("ping", true),
            ("log", true),
            ("etcd", self.deps.registry.cache.is_reachable()),
            ("poststarthook/rbac/bootstrap-roles", self.bootstrapped.load(Ordering::Acquire)),
        ];
        if root == "/readyz" {
            checks.push(("informer-sync", true));
            checks.push(("shutdown", !self.stop.is_cancelled()));
        }
        checks
    }
}

/// Whether a request is long-running: it is exempt from the in-flight limit and has no deadline.
fn is_long_running(info: &RequestInfo, target: Option<&Target>) -> bool {
    let subresource = target.and_then(|target| target.subresource);
    info.verb == "watch" || subresource.is_some_and(|sub| sub.what.is_long_running())
}

/// Whether a request counts as mutating: by its verb, as upstream.
fn is_mutating(info: &RequestInfo) -> bool {
    !matches!(info.verb.as_str(), "get" | "list" | "watch")
}

/// How a request counts under the in-flight limit.
fn in_flight_class(info: &RequestInfo, user: &UserInfo, long_running: bool) -> InFlightClass {
    match is_mutating(info) {
        _ if long_running || user.is_in(MASTERS) => InFlightClass::Exempt,
        true => InFlightClass::Mutating,
        false => InFlightClass::ReadOnly,
    }
}

/// Bounds authentication and authorization by the request timeout; a future that completes at once sets no timer. (Not
/// an `async fn`, which would hold the future twice: as argument and as awaited value.)
fn with_timeout<T, F>(env: &Env, answer: F) -> impl Future<Output = F::Output> + use<T, F>
where
    F: Future<Output = Result<T, ApiError>>,
{
    env.timeout(deadline::REQUEST_TIMEOUT, answer)
        .map(|done| done.unwrap_or_else(|_| Err(ApiError::request_timed_out())))
}

fn too_many_requests() -> Response<Body> {
    let mut response = respond::text(429, "Too many requests, please try again later.\n".into());
    response.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The attributes for authorizers.
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
        labels: &info.label_selector,
    }
}

pub(super) fn exact_fields(info: &RequestInfo) -> Vec<(String, String)> {
    if info.field_selector.is_empty() {
        return Vec::new();
    }
    let fields = FieldSelector::parse(&info.field_selector).unwrap_or_default();
    fields.requirements.into_iter().filter(|one| one.equal).map(|one| (one.field, one.value)).collect()
}
