//! A guest's response as sent to the client: without reserved headers, with a length where it is known.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use machinery_serve::framing::strip_framing;
use machinery_serve::net::{Body, empty_body};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use super::body::GuestBody;
use super::container::ContainerState;
use super::failure::{Failure, full};
use super::request::GuestResult;
use super::spans;
use crate::host::exchange::Exchange;

/// Maximum body frames of a finished guest gathered before the head is sent: its channel's capacity, and trailers.
const GATHERED_FRAMES_MAX: usize = 4;

/// Removes headers that a guest must not set: the node's own, and those that frame a message.
pub(crate) fn strip(headers: &mut HeaderMap) {
    strip_framing(headers);
    headers.remove(header::TE);
    headers.remove(header::TRAILER);
    let own: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with("coracle-")).cloned().collect();
    for name in own {
        headers.remove(name);
    }
}

/// Builds the response from the guest's head; `end`: the result of a guest that has ended.
pub(crate) fn respond(
    shared: &ContainerState,
    response: Response<HyperOutgoingBody>,
    exchange: Arc<Exchange>,
    end: Option<GuestResult>,
    head_only: bool,
) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if parts.status.is_informational() {
        shared.log_system(&format!("the handler answered with status {}, which is no response", parts.status));
        exchange.abandoned.notify_one();
        let response = Failure::NoResponse.response(shared);
        spans::answered(&exchange.span, &response);
        return response;
    }
    strip(&mut parts.headers);
    exchange.span.set_status(parts.status, 500);
    let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    if body.is_end_stream() || head_only {
        // No body: only a response to HEAD may have the length of another.
        if !head_only || length.is_none() {
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        if !body.is_end_stream() {
            return Response::from_parts(parts, GuestBody::new(body, exchange, None).boxed_unsync());
        }
        return Response::from_parts(parts, empty_body());
    }
    if matches!(end, Some(Ok(()))) {
        // The guest has ended: its output is in the channel, and its length is known.
        let mut first: Option<Bytes> = None;
        let mut more: Vec<u8> = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        let mut whole = GuestBody::new(body, exchange, length);
        for _ in 0..GATHERED_FRAMES_MAX {
            match Pin::new(&mut whole).poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if first.is_none() => first = Some(data),
                    Ok(data) => more.extend_from_slice(&data),
                    Err(trailers) => {
                        return Response::from_parts(parts, put_back(first, more, Some(Ok(trailers)), whole));
                    }
                },
                Poll::Ready(None) => {
                    parts.headers.remove(header::CONTENT_LENGTH);
                    return Response::from_parts(parts, full(join(first, more)));
                }
                Poll::Ready(Some(Err(error))) => {
                    return Response::from_parts(parts, put_back(first, more, Some(Err(error)), whole));
                }
                Poll::Pending => break,
            }
        }
        whole.reset_warning();
        return Response::from_parts(parts, put_back(first, more, None, whole));
    }
    if length.is_none() {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    Response::from_parts(parts, GuestBody::new(body, exchange, length).boxed_unsync())
}

fn join(first: Option<Bytes>, more: Vec<u8>) -> Bytes {
    match first {
        Some(first) if more.is_empty() => first,
        Some(first) => [first.as_ref(), &more].concat().into(),
        None => Bytes::new(),
    }
}

/// A body of the gathered bytes, then `then`, then the rest.
fn put_back(
    first: Option<Bytes>,
    more: Vec<u8>,
    then: Option<Result<http_body::Frame<Bytes>, machinery_serve::net::BoxError>>,
    rest: GuestBody,
) -> Body {
    let gathered = first.map(|first| Ok(http_body::Frame::data(join(Some(first), more))));
    let frames = futures::stream::iter(gathered.into_iter().chain(then));
    let rest = futures::StreamExt::chain(frames, http_body_util::BodyStream::new(rest));
    http_body_util::StreamBody::new(rest).boxed_unsync()
}
