//! Requests about resources: bodies and options are read here, and the verb does the rest.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use machinery_api::ApiError;

use super::handle::{RequestContext, RequestHandler, Seat};
use super::negotiate::{self, Produces, Transform};
use super::respond;
use super::route::Target;
use super::table::{Include, Tables};
use super::watch;
use crate::auth::{reviews, tokens};
use crate::registry::body::{self as bodies, Body as RequestBody};
use crate::registry::{Answer, Elsewhere, PatchType, Registry, RequestScope, ResponseObject, Wanted, eviction, object};
use crate::request::deadline::timed_out;
use crate::request::options::{DeleteOptions, ListOptions, WriteOptions};
use crate::turns::{SMALL_BYTES_MAX, Turn, patience};
use apiserver_resources::{SubresourceKind, Verb, rules};

/// The largest request body (upstream's default).
pub(crate) const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// A request's body has this long to arrive; the request's own time begins to run before, and is longer.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);
/// A watch that names no time lasts between this and twice this (upstream's default).
const WATCH_SECONDS_MIN: u64 = 1800;

impl RequestHandler {
    /// Answers a request about a resource.
    pub(super) async fn resource(
        self: &Arc<Self>,
        asking: &mut RequestContext<'_>,
        target: Target,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        let headers = asking.asked.headers;
        let what = target.subresource.map(|s| s.what);
        let passes = matches!(what, Some(SubresourceKind::Proxy(_)));
        let patch = if target.verb == Verb::Patch && !passes { Some(patch_type(headers, &target)?) } else { None };
        let produces = match target.verb {
            Verb::List | Verb::Watch => Produces::Lists,
            _ if what.is_some_and(SubresourceKind::is_long_running) => Produces::Text,
            _ => Produces::Objects,
        };
        if !passes {
            negotiate::route_accepts(asking.asked.accept().as_deref(), produces)?;
        }
        let form = asking.asked.form(respond::offers(&target));
        let catalog = asking.catalog.clone();
        let info = asking.info;
        let name = if target.is_item { info.parts.get(1).map_or("", String::as_str) } else { "" };
        if target.row.namespaced
            && info.namespace.is_empty()
            && (target.is_item || target.verb != Verb::List && target.verb != Verb::Watch)
        {
            return Err(ApiError::BadRequest("Namespace parameter required.".into()));
        }
        rules::check_segment(name)?;
        asking.warnings.extend(target.row.deprecated.as_deref().map(str::to_owned));
        let mut call = RequestScope {
            catalog: &catalog,
            row: &target.row,
            subresource: target.subresource,
            namespace: &info.namespace,
            name,
            user: asking.user,
            now: asking.asked.now,
            warnings: Vec::new(),
            elsewhere: Elsewhere::default(),
        };
        match what {
            Some(SubresourceKind::Log) => return Box::pin(self.logs(asking, &call)).await,
            Some(SubresourceKind::Connect) => {
                self.admit_connect(asking, &mut call).await?;
                return Box::pin(self.connect(asking, &call)).await;
            }
            Some(SubresourceKind::Proxy(to)) => {
                self.admit_connect(asking, &mut call).await?;
                return Box::pin(self.proxy(asking, &call, to, body)).await;
            }
            _ => {}
        }
        let form = form?;
        if what == Some(SubresourceKind::Metric) {
            return metric(asking, &call, form).await;
        }
        if let Some(warning) = target.row.custom.as_ref().and_then(|custom| custom.warning.as_deref()) {
            asking.warnings.push(warning.to_owned());
        }
        if target.verb == Verb::Watch {
            return self.watch(asking, &call, form).await;
        }
        let answer = self.verb(asking, &mut call, &target, patch, body).await;
        asking.warnings.append(&mut call.warnings);
        let scales = target.subresource.is_some_and(|s| s.what == SubresourceKind::Scale);
        respond::answer(&asking.asked, form, call.row, scales, answer?)
    }

    async fn verb(
        self: &Arc<Self>,
        asking: &mut RequestContext<'_>,
        call: &mut RequestScope<'_>,
        target: &Target,
        patch: Option<Patching>,
        body: Body,
    ) -> Result<Answer, ApiError> {
        let query = asking.asked.query;
        let headers = asking.asked.headers;
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
                let (bytes, turn) = self.read(asking, body, 0).await?;
                let options = WriteOptions::read(query, "CreateOptions")?.of_agent(asking.asked.agent());
                let work = Box::pin(self.create(call, RequestBody { bytes: &bytes, media }, what, &options));
                self.in_turn(turn, asking, work).await
            }
            Verb::Update => {
                let media = negotiate::body_type(content_type(headers))?;
                let (bytes, turn) = self.read(asking, body, registry.stored_bytes(call)).await?;
                let options = WriteOptions::read(query, "UpdateOptions")?.of_agent(asking.asked.agent());
                let body = RequestBody { bytes: &bytes, media };
                let work = Box::pin(async {
                    if what == Some(SubresourceKind::Scale) {
                        return registry.put_scale(call, body, &options).await;
                    }
                    let (row, validation) = (call.row, options.field_validation);
                    let object = bodies::object(row, body, validation, &mut call.warnings)?;
                    let again = || bodies::object(row, body, validation, &mut Vec::new());
                    registry.update(call, Wanted::new(object, &again), &options).await
                });
                self.in_turn(turn, asking, work).await
            }
            Verb::Patch => self.patch(asking, call, patch.unwrap_or(Patching::Apply), body).await,
            Verb::Delete => {
                let options = self.delete_options(asking, body).await?;
                let work = Box::pin(registry.delete(call, &options));
                self.in_turn(None, asking, work).await
            }
            Verb::DeleteCollection => {
                let list = ListOptions::read(query)?;
                Registry::selectors(call, &list)?;
                let options = self.delete_options(asking, body).await?;
                let work = Box::pin(registry.delete_collection(call, &list, &options));
                self.in_turn(None, asking, work).await
            }
        }
    }

    async fn patch(
        self: &Arc<Self>,
        asking: &mut RequestContext<'_>,
        call: &mut RequestScope<'_>,
        patch: Patching,
        body: Body,
    ) -> Result<Answer, ApiError> {
        let registry = &self.deps.registry;
        let query = asking.asked.query;
        let options = match patch {
            Patching::Apply => WriteOptions::read_apply(query)?,
            Patching::Change(_) => WriteOptions::read(query, "PatchOptions")?,
        };
        let options = options.of_agent(asking.asked.agent());
        let (bytes, turn) = self.read(asking, body, registry.stored_bytes(call)).await?;
        let work = Box::pin(async {
            let Patching::Change(kind) = patch else { return registry.apply(call, &bytes, &options).await };
            if call.subresource.is_some_and(|s| s.what == SubresourceKind::Scale) {
                return registry.patch_scale(call, kind, &bytes, &options).await;
            }
            registry.patch(call, kind, &bytes, &options).await
        });
        self.in_turn(turn, asking, work).await
    }

    async fn create(
        self: &Arc<Self>,
        call: &mut RequestScope<'_>,
        body: RequestBody<'_>,
        what: Option<SubresourceKind>,
        options: &WriteOptions,
    ) -> Result<Answer, ApiError> {
        let validation = options.field_validation;
        let registry = &self.deps.registry;
        let kind = call.subresource.and_then(|subresource| subresource.body).unwrap_or_default();
        match what {
            Some(SubresourceKind::Binding) => {
                let binding = bodies::of_kind(call.catalog, kind, body, validation, &mut call.warnings)?;
                let catalog = call.catalog;
                let again = || bodies::of_kind(catalog, kind, body, validation, &mut Vec::new());
                registry.bind(call, Wanted::new(binding, &again), options).await
            }
            Some(SubresourceKind::Eviction) => {
                let wanted = eviction::read(body, options, &mut call.warnings)?;
                registry.evict(call, wanted, options).await
            }
            Some(SubresourceKind::Token) => {
                let kind = ("authentication.k8s.io", "v1", "TokenRequest");
                let mut wanted = bodies::of_type(kind, body, validation, &mut call.warnings)?;
                object::match_namespace(&mut wanted, call.namespace)?;
                registry.admit_virtual(call, &mut wanted, options).await?;
                let (env, key) = (&self.deps.env, self.deps.authenticator.key());
                let answer = tokens::request(key, env, &*registry.objects, call.namespace, call.name, &wanted)?;
                Ok(Answer::Object(201, ResponseObject::Value(answer)))
            }
            Some(_) => Err(ApiError::NoSuchResource),
            None if call.row.prefix.is_none() => {
                let mut object = bodies::object(call.row, body, validation, &mut call.warnings)?;
                object::metadata_mut(&mut object).remove("managedFields");
                if !call.row.namespaced {
                    object::match_namespace(&mut object, "")?;
                }
                if let Some((row, what)) = &call.row.stands_for {
                    let name = object::text(&object, "name").to_owned();
                    let subresource = row.subresources.iter().find(|s| s.what == *what).copied();
                    let mut bind = RequestScope { row, subresource, name: &name, ..call.again() };
                    let of = call.row;
                    let again = || bodies::object(of, body, validation, &mut Vec::new());
                    let answer = registry.bind(&mut bind, Wanted::new(object, &again), options).await;
                    call.warnings.append(&mut bind.warnings);
                    return answer;
                }
                registry.admit_virtual(call, &mut object, options).await?;
                let context = reviews::Context {
                    authorizer: &self.deps.authorizer,
                    authenticator: &self.deps.authenticator,
                    objects: &*registry.objects,
                    user: call.user,
                    namespace: call.namespace,
                    now: call.now,
                };
                Ok(Answer::Object(201, ResponseObject::Value(reviews::answer(&context, call.row, &object).await?)))
            }
            None => {
                let row = call.row;
                let object = bodies::object(row, body, validation, &mut call.warnings)?;
                let again = || bodies::object(row, body, validation, &mut Vec::new());
                registry.create(call, Wanted::new(object, &again), options).await
            }
        }
    }

    async fn delete_options(&self, asking: &mut RequestContext<'_>, body: Body) -> Result<DeleteOptions, ApiError> {
        let headers = asking.asked.headers;
        let (bytes, turn) = self.read(asking, body, 0).await?;
        if bytes.is_empty() {
            return DeleteOptions::read(asking.asked.query);
        }
        let media = negotiate::body_type(content_type(headers))?;
        let work = Box::pin(async { bodies::delete_options(RequestBody { bytes: &bytes, media }) });
        DeleteOptions::from_body(&self.in_turn(turn, asking, work).await?)
    }

    /// A whole body, within the limits; what follows has a seat, and a turn if it is large together with what is stored.
    async fn read(
        &self,
        asking: &mut RequestContext<'_>,
        body: Body,
        stored_bytes: usize,
    ) -> Result<(Bytes, Option<Turn>), ApiError> {
        let headers = asking.asked.headers;
        let announced = headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > BODY_BYTES_MAX) {
            return Err(too_large());
        }
        let bounded = matches!(asking.seat, Seat::Later);
        let refused = || ApiError::TooManyRequests("too many request bodies at once".into(), 1);
        let mut arriving = match bounded && !body.is_end_stream() {
            true => Some(self.seats.body(&asking.user.name).ok_or_else(refused)?),
            false => None,
        };
        let collected = tokio::time::timeout(BODY_TIME_MAX, async {
            let mut body = Limited::new(body, BODY_BYTES_MAX);
            let mut whole: Vec<Bytes> = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| {
                    if error.is::<LengthLimitError>() {
                        return too_large();
                    }
                    ApiError::BadRequest(format!("the body could not be read: {error}"))
                })?;
                let Ok(data) = frame.into_data() else { continue };
                if let Some(arriving) = &mut arriving
                    && !arriving.grow(data.len())
                {
                    return Err(refused());
                }
                whole.push(data);
            }
            Ok(match whole.len() {
                1 => whole.remove(0),
                _ => whole.concat().into(),
            })
        });
        let whole = collected.await.unwrap_or_else(|_| {
            // The client's failure, so none of the 5xx that a request gets which takes too long itself.
            let message = format!("the body did not arrive within {} s", BODY_TIME_MAX.as_secs());
            Err(ApiError::RequestTimeout(message))
        })?;
        // Who waits for a turn counts as one whose body is on its way, and keeps no seat from others.
        let turn = match whole.len() + stored_bytes > SMALL_BYTES_MAX {
            true => self.turns.turn(&asking.user.name).await,
            false => None,
        };
        drop(arriving);
        if bounded {
            asking.seat = self.seats.take(true).map_or(Seat::Refused, Seat::Taken);
            if matches!(asking.seat, Seat::Refused) {
                return Err(refused());
            }
        }
        Ok((whole, turn))
    }

    /// Does it here as long as that is quick, or in its turn elsewhere. The work lies in a box: each function that takes a
    /// future by value holds it twice, and every request would carry the sum from hand to hand.
    pub(super) async fn in_turn<T>(
        &self,
        turn: Option<Turn>,
        asking: &RequestContext<'_>,
        work: Pin<Box<impl Future<Output = Result<T, ApiError>>>>,
    ) -> Result<T, ApiError> {
        let time_max = self.time_left(asking.deadline);
        match turn {
            None => patience::small(&self.turns, &asking.user.name, time_max, work).await,
            Some(turn) => turn.run(time_max, work).await.unwrap_or_else(|_| Err(timed_out())),
        }
    }

    async fn watch(
        self: &Arc<Self>,
        asking: &RequestContext<'_>,
        call: &RequestScope<'_>,
        form: negotiate::Form,
    ) -> Result<Response<Body>, ApiError> {
        let options = ListOptions::read(asking.asked.query)?;
        let tables = match form.transform {
            Some(Transform::Table(version)) => {
                let include = Include::read(asking.asked.query)?;
                Some(Tables { row: call.row.clone(), version, include, now: asking.asked.now, scales: false })
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
                let lens = watch::lens(call.row, form, tables, asking.asked.managed);
                let lasts = Duration::from_secs(seconds);
                let (stop, env) = (self.stop.clone(), self.deps.env.clone());
                let versions = self.deps.registry.versions.clone();
                Ok(watch::stream(lens, start, options.bookmarks, lasts, stop, env, versions))
            }
            Err(error) => Ok(watch::refused(form, &error)),
        }
    }
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(CONTENT_TYPE).map(|v| std::str::from_utf8(v.as_bytes()).unwrap_or("?"))
}

/// What a PATCH asks for.
#[derive(Debug, Clone, Copy)]
enum Patching {
    /// A change of what is there.
    Change(PatchType),
    /// A configuration to be applied.
    Apply,
}

/// The patches of custom resources: no Go struct stands behind one, which says how its lists merge.
const CUSTOM_PATCHES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

fn patch_type(headers: &HeaderMap, target: &Target) -> Result<Patching, ApiError> {
    let kind = content_type(headers).unwrap_or("").split(';').next().unwrap_or("");
    if target.row.custom.is_some() && !CUSTOM_PATCHES.contains(&kind) {
        return Err(ApiError::UnsupportedMediaType(CUSTOM_PATCHES.map(str::to_owned).into()));
    }
    match kind {
        "application/apply-patch+yaml" => Ok(Patching::Apply),
        kind => PatchType::of(kind).map(Patching::Change).ok_or(ApiError::UnsupportedPatchType),
    }
}

fn too_large() -> ApiError {
    ApiError::TooLarge(format!("Request entity too large: limit is {BODY_BYTES_MAX}"))
}

/// A metric, of what the path names.
async fn metric(
    asking: &RequestContext<'_>,
    call: &RequestScope<'_>,
    form: negotiate::Form,
) -> Result<Response<Body>, ApiError> {
    let source = call.row.source.as_ref().ok_or(ApiError::NoSuchResource)?;
    let name = call.subresource.map_or("", |subresource| subresource.name);
    let values = source.metric((call.namespace, call.name), name, asking.asked.query.text("labelSelector")).await?;
    Ok(respond::value(200, form, &values))
}
