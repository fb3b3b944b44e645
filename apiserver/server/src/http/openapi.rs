//! OpenAPI documents: negotiated, cached by hash (ETag), and produced on the blocking pool.

use std::io::Read as _;

use axum::body::Body;
use bytes::Bytes;
use flate2::read::GzDecoder;
use http::Response;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, VARY};

use super::handle::{RequestContext, RequestHandler};
use super::large::{self, Pieces};
use super::negotiate::{Media, clauses};
use super::respond;
use super::route::Route;
use apiserver_catalog::openapi;
use apiserver_catalog::openapi_v2::{Encoding, PROTOBUF};

/// The media types by which clients request protobuf, with `@` (older clients) and without: v2 and v3.
const V2_PROTOBUF: [&str; 2] = ["application/com.github.proto-openapi.spec.v2@v1.0+protobuf", PROTOBUF];
const V3_PROTOBUF: [&str; 2] = ["application/com.github.proto-openapi.spec.v3@v1.0+protobuf", openapi::PROTOBUF];

/// The encoding of a document for this Accept, where `protobuf` lists protobuf's names; `None` if nothing is
/// acceptable.
fn negotiate_encoding(accept: Option<&str>, protobuf: [&str; 2]) -> Option<Encoding> {
    let accept = accept.map(str::trim).filter(|accept| !accept.is_empty()).unwrap_or("*/*");
    clauses(accept).into_iter().find_map(|clause| match clause.kind {
        "*/*" | "application/*" | "application/json" => Some(Encoding::Json),
        kind if protobuf.contains(&kind) => Some(Encoding::Protobuf),
        _ => None,
    })
}

/// Decompresses a document, one piece at a time.
fn decompressed(compressed: impl FnOnce() -> Bytes + Send + 'static) -> Pieces {
    let mut first = Some(compressed);
    let mut reader: GzDecoder<std::io::Cursor<Bytes>> = GzDecoder::new(std::io::Cursor::new(Bytes::new()));
    Box::new(move |out| {
        if let Some(compressed) = first.take() {
            reader = GzDecoder::new(std::io::Cursor::new(compressed()));
        }
        let piece = (&mut reader).take(large::PIECE_BYTES as u64).read_to_end(out);
        piece.is_ok_and(|length| length == large::PIECE_BYTES)
    })
}

fn unacceptable() -> Response<Body> {
    let mut response = respond::empty(406);
    response.headers_mut().append(VARY, HeaderValue::from_static("Accept"));
    response
}

impl RequestHandler {
    /// `/openapi/v2`
    pub(super) fn open_api_v2(&self, ctx: &RequestContext<'_>) -> Response<Body> {
        let head = &ctx.head;
        let Some(encoding) = negotiate_encoding(head.accept().as_deref(), V2_PROTOBUF) else {
            return unacceptable();
        };
        let media = if encoding == Encoding::Json { Media::Json.as_str() } else { PROTOBUF };
        let tag = format!("\"{}\"", ctx.catalog.openapi_hash());
        let unchanged = head.headers.get(IF_NONE_MATCH).is_some_and(|other| other.as_bytes() == tag.as_bytes());
        let catalog = ctx.catalog.clone();
        let compressed = move || catalog.openapi(encoding).clone();
        let mut response = if unchanged {
            respond::empty(304)
        } else if respond::accepts_gzip(head) {
            let mut compressed = Some(compressed);
            let whole = move |out: &mut Vec<u8>| {
                out.extend_from_slice(&compressed.take().map(|compressed| compressed()).unwrap_or_default());
                false
            };
            let mut response = respond::bytes(200, media, large::body(Box::new(whole), false));
            respond::set_gzip_headers(&mut response);
            response
        } else {
            respond::bytes(200, media, large::body(decompressed(compressed), false))
        };
        if let Ok(tag) = HeaderValue::try_from(tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        response.headers_mut().append(VARY, HeaderValue::from_static("Accept"));
        response
    }

    /// `/openapi/v3` and the documents below it.
    pub(super) fn open_api(&self, ctx: &RequestContext<'_>, page: Route) -> Response<Body> {
        let Route::OpenApi(path) = page else {
            return respond::bytes(200, "text/plain; charset=utf-8", openapi::index(ctx.catalog));
        };
        let Some(hash) = openapi::hash(ctx.catalog, &path) else { return respond::empty(404) };
        let Some(encoding) = negotiate_encoding(ctx.head.accept().as_deref(), V3_PROTOBUF) else {
            return unacceptable();
        };
        let media = if encoding == Encoding::Json { Media::Json.as_str() } else { openapi::PROTOBUF };
        let tag = format!("\"{hash}\"");
        let unchanged = ctx.head.headers.get(IF_NONE_MATCH).is_some_and(|t| t.as_bytes() == tag.as_bytes());
        let other = ctx.head.query.get("hash").is_some_and(|given| given != hash);
        // A client that has the current document gets 304, and nothing is serialized.
        let mut response = if other {
            respond::redirect(&format!("/openapi/v3/{path}?hash={hash}"), media)
        } else if unchanged {
            respond::empty(304)
        } else {
            let catalog = ctx.catalog.clone();
            let document = move |out: &mut Vec<u8>| {
                out.extend_from_slice(&openapi::document(&catalog, &path, encoding).unwrap_or_default());
                false
            };
            let mut response =
                respond::from_pieces(&ctx.head, Media::Json, openapi::DOCUMENT_BYTES, Box::new(document));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
            response
        };
        if let Ok(tag) = HeaderValue::try_from(tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        response.headers_mut().append(VARY, HeaderValue::from_static("Accept"));
        if !other && ctx.head.query.get("hash").is_some() {
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_the_second_version_is_agreed_on() {
        for (accept, encoding) in [
            (None, Some(Encoding::Json)),
            (Some("application/json, */*"), Some(Encoding::Json)),
            (Some("application/com.github.proto-openapi.spec.v2@v1.0+protobuf"), Some(Encoding::Protobuf)),
            (Some("application/com.github.proto-openapi.spec.v2.v1.0+protobuf, */*"), Some(Encoding::Protobuf)),
            (Some("application/yaml"), None),
            (Some("application/vnd.kubernetes.protobuf"), None),
            (Some("text/html"), None),
        ] {
            assert_eq!(negotiate_encoding(accept, V2_PROTOBUF), encoding, "{accept:?}");
        }
    }
}
