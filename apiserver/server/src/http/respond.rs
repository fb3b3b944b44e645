//! Builds responses from results: negotiates the form (JSON, YAML, protobuf, table), and compresses large bodies.

use std::io::Write;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER, VARY};
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use jiff::Timestamp;
use machinery_api::ApiError;
use machinery_api::error::Status;
use serde::Serialize;
use serde_json::{Value, json};

use super::large::{self, Pieces};
use super::negotiate::{Form, Media, MetaVersion, Offers, Transform, negotiate};
use super::protobuf;
use super::route::Target;
use super::table::{Include, Tables, write_partial};
use crate::registry::{List, ResponseObject, VerbResult, fields, object};
use apiserver_resources::cells::NAME_AND_AGE;
use apiserver_resources::query::Query;
use apiserver_resources::{ResourceInfo, SubresourceKind, Verb};
use apiserver_schema::internal_group;
use apiserver_storage::cache::{Cached, write_record};

/// The minimum size of a compressed response (upstream's limit).
const GZIP_BYTES_MIN: usize = 128 * 1024;

/// The parts of a request that shape its response.
pub struct RequestHead<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// The request's target.
    pub uri: &'a Uri,
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// The request's query.
    pub query: &'a Query,
    /// The time of the request.
    pub now: Timestamp,
    /// Whether responses show `managedFields`: to all clients except the components of this process, which don't use
    /// them.
    pub managed: bool,
}

impl RequestHead<'_> {
    /// The Accept header, all lines joined.
    #[must_use]
    pub fn accept(&self) -> Option<String> {
        let lines: Vec<&str> =
            self.headers.get_all(http::header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
        if lines.is_empty() { None } else { Some(lines.join(",")) }
    }

    /// The User-Agent header, or empty.
    #[must_use]
    pub fn agent(&self) -> &str {
        self.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("")
    }

    /// Negotiates a form.
    pub fn form(&self, offers: Offers) -> Result<Form, ApiError> {
        negotiate(self.accept().as_deref(), self.query, self.agent(), offers)
    }
}

/// A response with a body of a media type.
#[must_use]
pub fn bytes(code: u16, media: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

/// Text, as Go's `http.Error` writes it.
#[must_use]
pub fn text(code: u16, text: String) -> Response<Body> {
    let mut response = bytes(code, "text/plain; charset=utf-8", text);
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// A status code without a body.
#[must_use]
pub fn empty(code: u16) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// 301, as Go's `http.Redirect` writes it when the media type is already set.
#[must_use]
pub fn redirect(to: &str, media: &'static str) -> Response<Body> {
    let mut response = bytes(301, media, Body::empty());
    if let Ok(to) = HeaderValue::from_str(to) {
        response.headers_mut().insert(LOCATION, to);
    }
    response
}

/// The text 404 for paths outside every API group.
#[must_use]
pub fn page_not_found() -> Response<Body> {
    text(404, "404 page not found\n".into())
}

fn yaml(value: &impl Serialize) -> Bytes {
    serde_saphyr::to_string(value).unwrap_or_default().into()
}

/// A value in a form without transformation.
#[must_use]
pub fn value(code: u16, form: Form, value: &Value) -> Response<Body> {
    bytes(code, form.media.as_str(), serialized(form, value))
}

/// Serializes a document in a form without transformation.
pub(super) fn serialized(form: Form, value: &impl Serialize) -> Bytes {
    match (form.media, form.pretty) {
        (Media::Yaml, _) => yaml(value),
        (Media::Protobuf, _) => protobuf::document(&serde_json::to_value(value).unwrap_or_default()),
        (Media::Json, true) => serde_json::to_string_pretty(value).unwrap_or_default().into(),
        (Media::Json, false) => (serde_json::to_string(value).unwrap_or_default() + "\n").into(),
    }
}

/// An error.
#[must_use]
pub fn error(head: &RequestHead<'_>, error: &ApiError) -> Response<Body> {
    let form = head.form(Offers::PLAIN).or_else(|_| head.form(Offers::OBJECTS)).unwrap_or(Form::PRETTY);
    status(form, &error.status())
}

/// A Status; its code becomes the HTTP status if it has one.
#[must_use]
pub fn status(form: Form, status: &Status) -> Response<Body> {
    let code = if status.code == 0 { 200 } else { status.code };
    let mut response = if form.media == Media::Json && status.code != 0 {
        let mut body = if form.pretty { serde_json::to_vec_pretty(status) } else { serde_json::to_vec(status) }
            .unwrap_or_default();
        if !form.pretty {
            body.push(b'\n');
        }
        bytes(code, form.media.as_str(), body)
    } else {
        let mut body = serde_json::to_value(status).unwrap_or(Value::Null);
        if status.code == 0
            && let Some(map) = body.as_object_mut()
        {
            map.remove("code");
        }
        value(code, Form { transform: None, ..form }, &body)
    };
    let seconds = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    if seconds > 0 {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The response of a verb.
pub fn answer(
    head: &RequestHead<'_>,
    form: Form,
    row: &Arc<ResourceInfo>,
    scales: bool,
    answer: VerbResult,
) -> Result<Response<Body>, ApiError> {
    match answer {
        VerbResult::Object(code, shown) => object(head, form, row, scales, code, shown),
        VerbResult::List(list) => self::list(head, form, row, list),
        VerbResult::Status(code, status) => {
            let mut response = self::status(form, &status);
            *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::OK);
            Ok(response)
        }
        VerbResult::Nothing => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            Ok(response)
        }
    }
}

/// An object's JSON in the version of the row.
fn json_of(row: &ResourceInfo, shown: &ResponseObject, managed: bool) -> Bytes {
    match shown {
        ResponseObject::Cached(cached) if row.serves_cached_form() => cached.bytes(managed),
        ResponseObject::Stored(record, revision) => {
            let mut out = Vec::new();
            write_record(record, *revision, managed, &mut out);
            out.into()
        }
        other => ordered(&value_of(row, other, managed)),
    }
}

/// A value's JSON with kind and apiVersion first.
fn ordered(value: &Value) -> Bytes {
    value.to_string().into()
}

/// An object's value in the version of the row.
pub(super) fn value_of(row: &ResourceInfo, shown: &ResponseObject, managed: bool) -> Value {
    let (value, managers) = match shown {
        ResponseObject::Cached(cached) if row.serves_cached_form() => (cached.value(), cached.managers()),
        ResponseObject::Cached(cached) => (row.strategy.read_storage_version(cached.value()), cached.managers()),
        ResponseObject::Stored(record, revision) => {
            let value = serde_json::from_slice(&record.body()).unwrap_or(Value::Null);
            (object::versioned(value, *revision), record.managers())
        }
        ResponseObject::Value(value) => return value.clone(),
    };
    if managed { fields::with_managed_fields(value, managers) } else { value }
}

fn tables(head: &RequestHead<'_>, row: &Arc<ResourceInfo>, version: MetaVersion) -> Result<Tables, ApiError> {
    Ok(Tables { row: row.clone(), version, include: Include::read(head.query)?, now: head.now, scales: false })
}

fn wrong_transform(hub: &str, kind: &str, wanted: &str, list: bool) -> ApiError {
    let (is, suffix) = if list { ("a list", "List") } else { ("not a list", "") };
    let message = format!("you requested {wanted}, but the requested object is {is} (*{hub}.{kind}{suffix})");
    ApiError::NotTransformable(message)
}

fn object(
    head: &RequestHead<'_>,
    form: Form,
    row: &Arc<ResourceInfo>,
    scales: bool,
    code: u16,
    shown: ResponseObject,
) -> Result<Response<Body>, ApiError> {
    match form.transform {
        None if form == Form::JSON => {
            let mut body = Vec::new();
            match &shown {
                ResponseObject::Cached(cached) if row.serves_cached_form() => cached.write_to(head.managed, &mut body),
                ResponseObject::Stored(record, revision) => write_record(record, *revision, head.managed, &mut body),
                other => body.extend_from_slice(&json_of(row, other, head.managed)),
            }
            body.push(b'\n');
            Ok(compressed(head, code, Media::Json, body))
        }
        None => Ok(value(code, form, &value_of(row, &shown, head.managed))),
        Some(Transform::Table(version)) => {
            let tables = Tables { scales, ..tables(head, row, version)? };
            let object = value_of(row, &shown, false);
            let metadata = match object["metadata"]["resourceVersion"].as_str() {
                Some(version) if !version.is_empty() => json!({"resourceVersion": version}),
                _ => json!({}), // A dry run has no resourceVersion.
            };
            let line = match &shown {
                ResponseObject::Cached(cached) => tables.row_of(cached),
                _ => tables.row(&object),
            };
            let table = tables.table(metadata, tables.columns(), vec![line]);
            Ok(value(code, form, &table))
        }
        Some(Transform::Metadata(version)) => {
            let mut body = Vec::new();
            write_partial(version, &json_of(row, &shown, head.managed), &mut body);
            Ok(rewritten(form, code, body))
        }
        Some(Transform::MetadataList(_)) => {
            let (hub, kind) = if scales { ("autoscaling", "Scale") } else { (internal_group(&row.group), &*row.kind) };
            Err(wrong_transform(hub, kind, "PartialObjectMetadataList", false))
        }
    }
}

/// Converts compact JSON to the requested form.
fn rewritten(form: Form, code: u16, mut body: Vec<u8>) -> Response<Body> {
    if form.media == Media::Json && !form.pretty {
        body.push(b'\n');
        return bytes(code, form.media.as_str(), body);
    }
    let parsed: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    value(code, Form { transform: None, ..form }, &parsed)
}

/// `plain`: a list of custom resources, whose metadata omits no empty field (upstream has no Go struct for it).
fn list_metadata(list: &List, plain: bool) -> Value {
    let mut metadata = json!({"resourceVersion": list.revision.to_string()});
    if let Some(token) = list.continue_token.as_deref().or(plain.then_some("")) {
        metadata["continue"] = json!(token);
    }
    if let Some(remaining) = list.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    metadata
}

/// A list. Small ones are serialized at once, others piece by piece on the blocking pool ([`large`]).
fn list(head: &RequestHead<'_>, form: Form, row: &Arc<ResourceInfo>, list: List) -> Result<Response<Body>, ApiError> {
    let metadata = list_metadata(&list, row.custom.is_some() && form.transform.is_none());
    let managed = head.managed;
    let weight = list.items.iter().map(|item| item.stored_len()).sum();
    if form.media == Media::Protobuf && !matches!(form.transform, Some(Transform::Metadata(_))) {
        return Ok(from_pieces(
            head,
            form.media,
            weight,
            protobuf::list(row, form.transform, managed, metadata, list.items),
        ));
    }
    let plain = form.media == Media::Json && !form.pretty;
    let pieces: Pieces = match form.transform {
        None => {
            let kind = row.list_kind();
            let opening = format!("{}\"metadata\":{metadata},\"items\":[", object::head_of(&kind, &row.api_version));
            let item_head = object::head(row);
            let row = row.clone();
            items(opening, "]}", list.items, move |item, out| write_item(&row, &item_head, item, managed, out))
        }
        Some(Transform::Table(version)) => {
            let tables = tables(head, row, version)?;
            Box::new(move |out| {
                let rows = list.items.iter().map(|item| tables.row_of(item)).collect();
                let table = tables.table(metadata.clone(), tables.columns(), rows);
                // Writing into memory cannot fail.
                let _ = serde_json::to_writer(out, &table);
                false
            })
        }
        Some(Transform::MetadataList(version)) => {
            let item_head = object::head_of("PartialObjectMetadataList", version.api_version());
            // An empty list of this form is nil upstream; an empty list of a kind is not.
            let (opens, closes) = if list.items.is_empty() { ("null", "}") } else { ("[", "]}") };
            let opening = format!("{item_head}\"metadata\":{metadata},\"items\":{opens}");
            items(opening, closes, list.items, move |item, out| write_partial(version, &item.bytes(managed), out))
        }
        Some(Transform::Metadata(_)) => {
            return Err(wrong_transform(internal_group(&row.group), &row.kind, "PartialObjectMetadata", true));
        }
    };
    if plain {
        return Ok(from_pieces(head, Media::Json, weight, with_newline(pieces)));
    }
    let form = Form { transform: None, ..form };
    Ok(from_pieces(head, form.media, weight, Box::new(single_piece(pieces, form))))
}

/// A list's items between its opening and its closing text.
fn items(
    opening: String,
    closes: &'static str,
    items: Vec<Arc<Cached>>,
    mut write: impl FnMut(&Cached, &mut Vec<u8>) + Send + 'static,
) -> Pieces {
    let mut opening = Some(opening);
    let mut items = items.into_iter();
    let mut first = true;
    Box::new(move |out| {
        let begins = out.len();
        out.extend_from_slice(opening.take().unwrap_or_default().as_bytes());
        while out.len() - begins < large::PIECE_BYTES {
            let Some(item) = items.next() else {
                out.extend_from_slice(closes.as_bytes());
                return false;
            };
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            write(&item, out);
        }
        true
    })
}

/// A list item in the version of the row, without kind and apiVersion.
fn write_item(row: &ResourceInfo, head: &str, item: &Cached, managed: bool, out: &mut Vec<u8>) {
    if row.custom.is_some() {
        // Upstream's lists of custom resources have kind and apiVersion in each item.
        return item.write_to(managed, out);
    }
    if row.serves_cached_form() {
        return object::write_item(head, item, managed, out);
    }
    let mut value = row.strategy.read_storage_version(item.value());
    if managed {
        value = fields::with_managed_fields(value, item.managers());
    }
    if let Some(map) = value.as_object_mut() {
        map.remove("kind");
        map.remove("apiVersion");
    }
    // Writing into memory cannot fail.
    let _ = serde_json::to_writer(out, &value);
}

/// Appends the newline of compact JSON.
fn with_newline(mut pieces: Pieces) -> Pieces {
    Box::new(move |out| {
        let more = pieces(out);
        if !more {
            out.push(b'\n');
        }
        more
    })
}

/// Converts compact JSON to another form, in one piece.
fn single_piece(mut pieces: Pieces, form: Form) -> impl FnMut(&mut Vec<u8>) -> bool + Send {
    move |out| {
        let mut json = Vec::new();
        while pieces(&mut json) {}
        let value: Value = serde_json::from_slice(&json).unwrap_or(Value::Null);
        out.extend_from_slice(&serialized(form, &value));
        false
    }
}

/// A response from pieces that are made of `weight` bytes of stored JSON.
#[must_use]
pub(super) fn from_pieces(head: &RequestHead<'_>, media: Media, weight: usize, mut pieces: Pieces) -> Response<Body> {
    if weight < large::LARGE_BYTES {
        let mut body = Vec::with_capacity(weight + 256);
        while pieces(&mut body) {}
        return compressed(head, 200, media, body);
    }
    let compresses = accepts_gzip(head);
    let mut response = bytes(200, media.as_str(), large::body(pieces, compresses));
    if compresses {
        set_gzip_headers(&mut response);
    }
    response
}

pub(super) fn accepts_gzip(head: &RequestHead<'_>) -> bool {
    head.headers
        .get_all(http::header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|e| e.split(';').next().is_some_and(|e| e.trim() == "gzip"))
}

pub(super) fn set_gzip_headers(response: &mut Response<Body>) {
    response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().append(VARY, HeaderValue::from_static("Accept-Encoding"));
}

/// A response that is compressed if it is large and the client accepts gzip.
#[must_use]
pub fn compressed(head: &RequestHead<'_>, code: u16, media: Media, body: Vec<u8>) -> Response<Body> {
    if body.len() < GZIP_BYTES_MIN || !accepts_gzip(head) {
        return bytes(code, media.as_str(), body);
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    let small = encoder.write_all(&body).and_then(|()| encoder.finish());
    match small {
        Ok(small) => {
            let mut response = bytes(code, media.as_str(), small);
            set_gzip_headers(&mut response);
            response
        }
        Err(_) => bytes(code, media.as_str(), body),
    }
}

/// The transformations that a target offers.
#[must_use]
pub fn offers(target: &Target) -> Offers {
    // A virtual resource has a table only if it has columns of its own.
    let answered = (target.row.prefix.is_none() && target.row.strategy.columns().len() == NAME_AND_AGE.len())
        || target.subresource.is_some_and(|s| {
            matches!(s.what, SubresourceKind::Binding | SubresourceKind::Eviction | SubresourceKind::Token)
        });
    let tables = !answered || target.verb == Verb::Watch;
    // The message of a subresource's body is built in, also for a custom resource.
    let protobuf = target.subresource.is_some_and(|sub| sub.body.is_some())
        || target.row.schema.made().is_some_and(|made| !made.get().of.message.is_empty());
    Offers { tables, streams: target.verb == Verb::Watch, protobuf, ..Offers::OBJECTS }
}
