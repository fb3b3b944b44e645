//! OpenAPI documents: agreed on, answered by their hashes, made off the control plane's threads.

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
use crate::catalog::openapi;
use crate::catalog::openapi_v2::{Encoding, PROTOBUF};

/// What protobuf is asked for as, by clients of this century's first half and before: v2 and v3.
const PROTOBUF_ASKED: [&str; 2] = ["application/com.github.proto-openapi.spec.v2@v1.0+protobuf", PROTOBUF];
const THIRD_ASKED: [&str; 2] = ["application/com.github.proto-openapi.spec.v3@v1.0+protobuf", openapi::PROTOBUF];

/// What a document is written as for who accepts that, where `protobuf` names one of them; `None`: it can't be.
fn agreed(accept: Option<&str>, protobuf: [&str; 2]) -> Option<Encoding> {
    let accept = accept.map(str::trim).filter(|accept| !accept.is_empty()).unwrap_or("*/*");
    clauses(accept).into_iter().find_map(|clause| match clause.kind {
        "*/*" | "application/*" | "application/json" => Some(Encoding::Json),
        kind if protobuf.contains(&kind) => Some(Encoding::Protobuf),
        _ => None,
    })
}

/// What is packed, a piece at a time.
fn unpacked(packed: impl FnOnce() -> Bytes + Send + 'static) -> Pieces {
    let mut first = Some(packed);
    let mut reader: GzDecoder<std::io::Cursor<Bytes>> = GzDecoder::new(std::io::Cursor::new(Bytes::new()));
    Box::new(move |out| {
        if let Some(packed) = first.take() {
            reader = GzDecoder::new(std::io::Cursor::new(packed()));
        }
        let piece = (&mut reader).take(large::PIECE_BYTES as u64).read_to_end(out);
        piece.is_ok_and(|length| length == large::PIECE_BYTES)
    })
}

fn unacceptable() -> Response<Body> {
    let mut response = respond::nothing(406);
    response.headers_mut().append(VARY, HeaderValue::from_static("Accept"));
    response
}

impl RequestHandler {
    /// `/openapi/v2`
    pub(super) fn open_api_v2(&self, asking: &RequestContext<'_>) -> Response<Body> {
        let asked = &asking.asked;
        let Some(encoding) = agreed(asked.accept().as_deref(), PROTOBUF_ASKED) else {
            return unacceptable();
        };
        let media = if encoding == Encoding::Json { Media::Json.as_str() } else { PROTOBUF };
        let tag = format!("\"{}\"", asking.catalog.openapi_hash());
        let known = asked.headers.get(IF_NONE_MATCH).is_some_and(|other| other.as_bytes() == tag.as_bytes());
        let catalog = asking.catalog.clone();
        let packed = move || catalog.openapi(encoding).clone();
        let mut response = if known {
            respond::nothing(304)
        } else if respond::takes_gzip(asked) {
            let mut packed = Some(packed);
            let whole = move |out: &mut Vec<u8>| {
                out.extend_from_slice(&packed.take().map(|packed| packed()).unwrap_or_default());
                false
            };
            let mut response = respond::bytes(200, media, large::body(Box::new(whole), false));
            respond::say_packed(&mut response);
            response
        } else {
            respond::bytes(200, media, large::body(unpacked(packed), false))
        };
        if let Ok(tag) = HeaderValue::try_from(tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        response.headers_mut().append(VARY, HeaderValue::from_static("Accept"));
        response
    }

    /// `/openapi/v3` and what is below it.
    pub(super) fn open_api(&self, asking: &RequestContext<'_>, page: Route) -> Response<Body> {
        let Route::OpenApi(path) = page else {
            return respond::bytes(200, "text/plain; charset=utf-8", openapi::index(asking.catalog));
        };
        let Some(hash) = openapi::hash(asking.catalog, &path) else { return respond::nothing(404) };
        let Some(encoding) = agreed(asking.asked.accept().as_deref(), THIRD_ASKED) else { return unacceptable() };
        let media = if encoding == Encoding::Json { Media::Json.as_str() } else { openapi::PROTOBUF };
        let tag = format!("\"{hash}\"");
        let known = asking.asked.headers.get(IF_NONE_MATCH).is_some_and(|t| t.as_bytes() == tag.as_bytes());
        let other = asking.asked.query.get("hash").is_some_and(|asked| asked != hash);
        // Who has it already gets nothing, and nothing is made.
        let mut response = if other {
            respond::moved(&format!("/openapi/v3/{path}?hash={hash}"), media)
        } else if known {
            respond::nothing(304)
        } else {
            let catalog = asking.catalog.clone();
            let document = move |out: &mut Vec<u8>| {
                out.extend_from_slice(&openapi::document(&catalog, &path, encoding).unwrap_or_default());
                false
            };
            let mut response = respond::pieced(&asking.asked, Media::Json, openapi::DOCUMENT_BYTES, Box::new(document));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
            response
        };
        if let Ok(tag) = HeaderValue::try_from(tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        response.headers_mut().append(VARY, HeaderValue::from_static("Accept"));
        if !other && asking.asked.query.get("hash").is_some() {
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
            assert_eq!(agreed(accept, PROTOBUF_ASKED), encoding, "{accept:?}");
        }
    }
}
