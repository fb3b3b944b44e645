//! Resource requests: reads body and options, runs the verb of the registry, encodes the response.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use apiserver_schema::apply::Managers;
use axum::body::Body;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use machinery_api::ApiError;
use serde_json::Value;

use super::handle::{RequestContext, RequestHandler};
use super::negotiate::{self, Produces, Transform};
use super::respond;
use super::route::Target;
use super::table::{Include, Tables};
use super::watch;
use crate::fair_queue::{FairQueuePermit, SMALL_BYTES_MAX, budget};
use crate::registry::body::{self as bodies, Body as RequestBody};
use crate::registry::{
    ObjectConversions, PatchType, Registry, RequestObject, RequestScope, ResponseObject, VerbResult, eviction, fields,
    object,
};
use apiserver_auth::{reviews, tokens};
use apiserver_resources::objects::{MetricSelectors, ObjectReader as _};
use apiserver_resources::options::{DeleteOptions, ListOptions, WriteOptions};
use apiserver_resources::{Review, SubresourceKind, Verb, rules};

/// The largest request body (upstream's default).
pub(crate) const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// The maximum time to receive a request body. The request's own timeout starts earlier and is longer.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);
/// The minimum duration of a watch without `timeoutSeconds`; the maximum is twice this (upstream's default).
const WATCH_SECONDS_MIN: u64 = 1800;

impl RequestHandler {
    /// Handles a request for a resource.
    pub(super) async fn serve_resource(
        self: &Arc<Self>,
        ctx: &mut RequestContext<'_>,
        target: Target,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        let headers = ctx.head.headers;
        let what = target.subresource.map(|s| s.what);
        let is_proxied = matches!(what, Some(SubresourceKind::Proxy(_)));
        let patch = if target.verb == Verb::Patch && !is_proxied { Some(patch_type(headers, &target)?) } else { None };
        let produces = match target.verb {
            Verb::List | Verb::Watch => Produces::Lists,
            _ if what.is_some_and(SubresourceKind::is_long_running) => Produces::Text,
            _ => Produces::Objects,
        };
        if !is_proxied {
            negotiate::route_accepts(ctx.head.accept().as_deref(), produces)?;
        }
        let form = ctx.head.form(respond::offers(&target));
        let catalog = ctx.catalog.clone();
        let info = ctx.info;
        let name = if target.is_item { info.parts.get(1).map_or("", String::as_str) } else { "" };
        if target.row.namespaced
            && info.namespace.is_empty()
            && (target.is_item || target.verb != Verb::List && target.verb != Verb::Watch)
        {
            return Err(ApiError::BadRequest("Namespace parameter required.".into()));
        }
        rules::check_segment(name)?;
        ctx.warnings.extend(target.row.deprecated.as_deref().map(str::to_owned));
        let mut call = RequestScope {
            catalog: &catalog,
            row: &target.row,
            subresource: target.subresource,
            namespace: &info.namespace,
            name,
            user: ctx.user,
            now: ctx.head.now,
            warnings: Vec::new(),
            conversions: ObjectConversions::default(),
        };
        match what {
            Some(SubresourceKind::Log) => return Box::pin(self.serve_logs(ctx, &call)).await,
            Some(SubresourceKind::Connect) => {
                self.admit_connect(ctx, &mut call).await?;
                return Box::pin(self.connect(ctx, &call)).await;
            }
            Some(SubresourceKind::Proxy(to)) => {
                self.admit_connect(ctx, &mut call).await?;
                return Box::pin(self.proxy(ctx, &call, to, body)).await;
            }
            _ => {}
        }
        let form = form?;
        if what == Some(SubresourceKind::Metric) {
            return serve_metric(ctx, &call, form).await;
        }
        if let Some(warning) = target.row.custom.as_ref().and_then(|custom| custom.warning.as_deref()) {
            ctx.warnings.push(warning.to_owned());
        }
        if target.verb == Verb::Watch {
            let watch = self.watch(ctx, &call, form).await?;
            return self.upgrade_watch(ctx, watch);
        }
        let answer = self.run_verb(ctx, &mut call, &target, patch, body).await;
        ctx.warnings.append(&mut call.warnings);
        let scales = target.subresource.is_some_and(|s| s.what == SubresourceKind::Scale);
        respond::answer(&ctx.head, form, call.row, scales, answer?)
    }

    async fn run_verb(
        self: &Arc<Self>,
        ctx: &mut RequestContext<'_>,
        call: &mut RequestScope<'_>,
        target: &Target,
        patch: Option<PatchRequest>,
        body: Body,
    ) -> Result<VerbResult, ApiError> {
        let query = ctx.head.query;
        let headers = ctx.head.headers;
        let registry = &self.deps.registry;
        let what = target.subresource.map(|s| s.what);
        match target.verb {
            Verb::Get if query.flag("export") == Some(true) => {
                let message = "the export parameter, deprecated since v1.14, is no longer supported";
                Err(ApiError::BadRequest(message.into()))
            }
            Verb::Get if what == Some(SubresourceKind::Scale) => {
                registry.get_scale(call, query.text("resourceVersion")).await
            }
            Verb::Get => registry.get(call, query.text("resourceVersion")).await,
            Verb::List => registry.list(call, &ListOptions::read(query)?).await,
            Verb::Watch => Err(ApiError::NoSuchResource),
            Verb::Create => {
                let media = negotiate::body_type(content_type(headers))?;
                let (bytes, queue_permit) = self.read_body(ctx, body, 0).await?;
                let options = WriteOptions::read(query, "CreateOptions")?.with_agent(ctx.head.agent());
                let work = Box::pin(self.create(call, RequestBody { bytes: &bytes, media }, what, &options));
                self.run_fairly(queue_permit, ctx, work).await
            }
            Verb::Update => {
                let media = negotiate::body_type(content_type(headers))?;
                let (bytes, queue_permit) = self.read_body(ctx, body, registry.stored_bytes(call)).await?;
                let options = WriteOptions::read(query, "UpdateOptions")?.with_agent(ctx.head.agent());
                let body = RequestBody { bytes: &bytes, media };
                let work = Box::pin(async {
                    if what == Some(SubresourceKind::Scale) {
                        return registry.put_scale(call, body, &options).await;
                    }
                    let (row, validation) = (call.row, options.field_validation);
                    let object = bodies::object(row, body, validation, &mut call.warnings)?;
                    let again = || bodies::object(row, body, validation, &mut Vec::new());
                    registry.update(call, RequestObject::new(object, &again), &options).await
                });
                self.run_fairly(queue_permit, ctx, work).await
            }
            Verb::Patch => self.patch(ctx, call, patch.unwrap_or(PatchRequest::Apply), body).await,
            Verb::Delete => {
                let options = self.delete_options(ctx, body).await?;
                let work = Box::pin(registry.delete(call, &options));
                self.run_fairly(None, ctx, work).await
            }
            Verb::DeleteCollection => {
                let list = ListOptions::read(query)?;
                Registry::selectors(call, &list)?;
                let options = self.delete_options(ctx, body).await?;
                let work = Box::pin(registry.delete_collection(call, &list, &options));
                self.run_fairly(None, ctx, work).await
            }
        }
    }

    async fn patch(
        self: &Arc<Self>,
        ctx: &mut RequestContext<'_>,
        call: &mut RequestScope<'_>,
        patch: PatchRequest,
        body: Body,
    ) -> Result<VerbResult, ApiError> {
        let registry = &self.deps.registry;
        let query = ctx.head.query;
        let options = match patch {
            PatchRequest::Apply => WriteOptions::read_apply(query)?,
            PatchRequest::Change(_) => WriteOptions::read(query, "PatchOptions")?,
        };
        let options = options.with_agent(ctx.head.agent());
        let (bytes, queue_permit) = self.read_body(ctx, body, registry.stored_bytes(call)).await?;
        let work = Box::pin(async {
            let PatchRequest::Change(kind) = patch else { return registry.apply(call, &bytes, &options).await };
            registry.patch(call, kind, &bytes, &options).await
        });
        self.run_fairly(queue_permit, ctx, work).await
    }

    async fn create(
        self: &Arc<Self>,
        call: &mut RequestScope<'_>,
        body: RequestBody<'_>,
        what: Option<SubresourceKind>,
        options: &WriteOptions,
    ) -> Result<VerbResult, ApiError> {
        let validation = options.field_validation;
        let registry = &self.deps.registry;
        let kind = call.subresource.and_then(|subresource| subresource.body).unwrap_or_default();
        match what {
            Some(SubresourceKind::Binding) => {
                let binding = bodies::of_kind(call.catalog, kind, body, validation, &mut call.warnings)?;
                let catalog = call.catalog;
                let again = || bodies::of_kind(catalog, kind, body, validation, &mut Vec::new());
                registry.bind(call, RequestObject::new(binding, &again), options).await
            }
            Some(SubresourceKind::Eviction) => {
                let wanted = eviction::read(body, options, &mut call.warnings)?;
                registry.evict(call, wanted, options).await
            }
            Some(SubresourceKind::Token) => {
                let kind = ("authentication.k8s.io", "v1", "TokenRequest");
                let mut wanted = bodies::of_type(kind, body, validation, &mut call.warnings)?;
                object::match_namespace(&mut wanted, call.namespace)?;
                self.complete_token_request(call, &mut wanted);
                registry.admit_virtual(call, &mut wanted, options).await?;
                let (env, key) = (&self.deps.env, self.deps.authenticator.key());
                let answer = tokens::issue(key, env, &*registry.objects, call.namespace, call.name, &wanted)?;
                Ok(VerbResult::Object(201, ResponseObject::Value(answer)))
            }
            Some(_) => Err(ApiError::NoSuchResource),
            None if call.row.prefix.is_none() => {
                let mut object = bodies::object(call.row, body, validation, &mut call.warnings)?;
                object::metadata_mut(&mut object).remove("managedFields");
                if !call.row.namespaced {
                    object::match_namespace(&mut object, "")?;
                }
                if let Some((row, what)) = &call.row.forwards_to {
                    let name = object::text(&object, "name").to_owned();
                    let subresource = row.subresources.iter().find(|s| s.what == *what).copied();
                    let mut bind = RequestScope { row, subresource, name: &name, ..call.fork() };
                    let of = call.row;
                    let again = || bodies::object(of, body, validation, &mut Vec::new());
                    let answer = registry.bind(&mut bind, RequestObject::new(object, &again), options).await;
                    call.warnings.append(&mut bind.warnings);
                    return answer;
                }
                self.review(call, object, options).await
            }
            None => {
                let row = call.row;
                let object = bodies::object(row, body, validation, &mut call.warnings)?;
                let again = || bodies::object(row, body, validation, &mut Vec::new());
                registry.create(call, RequestObject::new(object, &again), options).await
            }
        }
    }

    /// The answer to a review.
    async fn review(
        &self,
        call: &mut RequestScope<'_>,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<VerbResult, ApiError> {
        // Reviews of the client's own identity return a new object without managed fields.
        let managers = match call.row.review {
            Some(Review::SelfSubject | Review::SelfRules) => Managers::default(),
            _ => fields::managers_of_virtual(call, options, &object),
        };
        self.deps.registry.admit_virtual(call, &mut object, options).await?;
        let context = reviews::Context {
            authorizer: &self.deps.authorizer,
            authenticator: &self.deps.authenticator,
            objects: &*self.deps.registry.objects,
            user: call.user,
            namespace: call.namespace,
            now: call.now,
        };
        let answer = reviews::evaluate(&context, call.row, &object).await?;
        Ok(VerbResult::Object(201, ResponseObject::Value(fields::with_managed_fields(answer, &managers))))
    }

    /// Sets the metadata of a request for a token to those of its account, for admission; given ones are checked later.
    fn complete_token_request(&self, call: &RequestScope<'_>, wanted: &mut Value) {
        let Some(account) =
            self.deps.registry.objects.get(&call.row.group, &call.row.plural, call.namespace, call.name)
        else {
            return;
        };
        let metadata = object::metadata_mut(wanted);
        for key in ["name", "namespace", "uid"] {
            if metadata.get(key).and_then(Value::as_str).is_none_or(str::is_empty) {
                metadata.insert(key.into(), account["metadata"][key].clone());
            }
        }
        metadata.insert("creationTimestamp".into(), object::time(call.now).into());
    }

    async fn delete_options(&self, ctx: &mut RequestContext<'_>, body: Body) -> Result<DeleteOptions, ApiError> {
        let headers = ctx.head.headers;
        let (bytes, queue_permit) = self.read_body(ctx, body, 0).await?;
        if bytes.is_empty() {
            return DeleteOptions::read(ctx.head.query);
        }
        let media = negotiate::body_type(content_type(headers))?;
        let work = Box::pin(async { bodies::delete_options(RequestBody { bytes: &bytes, media }) });
        DeleteOptions::from_body(&self.run_fairly(queue_permit, ctx, work).await?)
    }

    /// Reads a whole body within the size and time limits, so that a mutating request acquires its in-flight permit. If
    /// body and stored object together are large, it also acquires a fair-queue permit.
    async fn read_body(
        &self,
        ctx: &mut RequestContext<'_>,
        body: Body,
        stored_bytes: usize,
    ) -> Result<(Bytes, Option<FairQueuePermit>), ApiError> {
        let headers = ctx.head.headers;
        let announced = headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > BODY_BYTES_MAX) {
            return Err(too_large());
        }
        let mut incoming = match body.is_end_stream() {
            true => None,
            false => ctx.permit.begin_body(&ctx.user.name)?,
        };
        let collected = self.deps.env.timeout(BODY_TIME_MAX, async {
            let mut body = Limited::new(body, BODY_BYTES_MAX);
            let mut body_bytes: Vec<Bytes> = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| {
                    if error.is::<LengthLimitError>() {
                        return too_large();
                    }
                    ApiError::BadRequest(format!("the body could not be read: {error}"))
                })?;
                let Ok(data) = frame.into_data() else { continue };
                if let Some(incoming) = &mut incoming {
                    incoming.grow(data.len())?;
                }
                body_bytes.push(data);
            }
            Ok(match body_bytes.len() {
                1 => body_bytes.remove(0),
                _ => body_bytes.concat().into(),
            })
        });
        let body_bytes = collected.await.unwrap_or_else(|_| {
            // This is the client's failure, so it is not one of the 5xx codes of a request that itself times out.
            let message = format!("the body did not arrive within {} s", BODY_TIME_MAX.as_secs());
            Err(ApiError::RequestTimeout(message))
        })?;
        // A request that waits in the fair queue counts as one with an incoming body, and holds no in-flight permit
        // meanwhile.
        let queue_permit = match body_bytes.len() + stored_bytes > SMALL_BYTES_MAX {
            true => self.fair_queue.acquire(&ctx.user.name).await,
            false => None,
        };
        ctx.permit.end_body(incoming)?;
        Ok((body_bytes, queue_permit))
    }

    /// Runs small work inline within its evaluation budget, and large work on the blocking pool with its fair-queue
    /// permit. The work is boxed: each function that takes a future by value holds it twice, and every request would
    /// pay for the sum.
    pub(super) async fn run_fairly<T>(
        &self,
        queue_permit: Option<FairQueuePermit>,
        ctx: &RequestContext<'_>,
        work: Pin<Box<impl Future<Output = Result<T, ApiError>>>>,
    ) -> Result<T, ApiError> {
        let time_max = self.time_left(ctx.deadline);
        match queue_permit {
            None => budget::scope(&self.fair_queue, &ctx.user.name, time_max, work).await,
            Some(queue_permit) => {
                queue_permit.run(time_max, work).await.unwrap_or_else(|_| Err(ApiError::request_timed_out()))
            }
        }
    }

    async fn watch(
        self: &Arc<Self>,
        ctx: &RequestContext<'_>,
        call: &RequestScope<'_>,
        form: negotiate::Form,
    ) -> Result<Response<Body>, ApiError> {
        let options = ListOptions::read(ctx.head.query)?;
        let tables = match form.transform {
            Some(Transform::Table(version)) => {
                let include = Include::read(ctx.head.query)?;
                Some(Tables { row: call.row.clone(), version, include, now: ctx.head.now, scales: false })
            }
            _ => None,
        };
        let seconds = match options.timeout_seconds {
            Some(seconds) if seconds > 0 => seconds.cast_unsigned(),
            Some(seconds) if seconds < 0 => 0,
            _ => WATCH_SECONDS_MIN + self.deps.env.below(WATCH_SECONDS_MIN),
        };
        match self.deps.registry.watch(call, &options).await? {
            Ok(start) => {
                let watch_form = watch::watch_form(call.row, form, tables, ctx.head.managed);
                let lasts = Duration::from_secs(seconds);
                let is_external = ctx.connection.session.peer.is_some();
                let stop = if is_external { self.connections_stop.clone() } else { self.stop.clone() };
                let env = self.deps.env.clone();
                let versions = self.deps.registry.versions.clone();
                Ok(watch::stream(watch_form, start, options.bookmarks, lasts, stop, env, versions))
            }
            Err(error) => Ok(watch::error_stream(form, &error)),
        }
    }
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(CONTENT_TYPE).map(|v| std::str::from_utf8(v.as_bytes()).unwrap_or("?"))
}

/// What a PATCH does.
#[derive(Debug, Clone, Copy)]
enum PatchRequest {
    /// Modifies the existing object.
    Change(PatchType),
    /// Applies a configuration (server-side apply).
    Apply,
}

/// The patch types of custom resources. They have no Go struct, which would define the merge strategy of their lists.
const CUSTOM_PATCHES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

fn patch_type(headers: &HeaderMap, target: &Target) -> Result<PatchRequest, ApiError> {
    let kind = content_type(headers).unwrap_or("").split(';').next().unwrap_or("");
    if target.row.custom.is_some() && !CUSTOM_PATCHES.contains(&kind) {
        return Err(ApiError::UnsupportedMediaType(CUSTOM_PATCHES.map(str::to_owned).into()));
    }
    match kind {
        "application/apply-patch+yaml" => Ok(PatchRequest::Apply),
        kind => PatchType::of(kind).map(PatchRequest::Change).ok_or(ApiError::UnsupportedPatchType),
    }
}

fn too_large() -> ApiError {
    ApiError::TooLarge(format!("Request entity too large: limit is {BODY_BYTES_MAX}"))
}

/// Serves a metric of the object that the path names.
async fn serve_metric(
    ctx: &RequestContext<'_>,
    call: &RequestScope<'_>,
    form: negotiate::Form,
) -> Result<Response<Body>, ApiError> {
    let source = call.row.source.as_ref().ok_or(ApiError::NoSuchResource)?;
    let name = call.subresource.map_or("", |subresource| subresource.name);
    let query = &ctx.head.query;
    let selectors = MetricSelectors { objects: query.text("labelSelector"), metric: query.text("metricLabelSelector") };
    let values = source.metric((call.namespace, call.name), name, selectors).await?;
    Ok(respond::value(200, form, &values))
}
