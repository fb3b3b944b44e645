//! The client's side of HTTP over a stream: one request and its response, then the stream closes. A server of bytes gets
//! requests so.
//!
//! Both bodies are streamed with bounded buffers. No timeout is applied: a server may never read its stream, so the caller
//! bounds the wait for the head. A dropped future or an unread response closes the stream at once.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::http::header::CONNECTION;
use ::http::{HeaderValue, Request, Response, StatusCode, Version};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio_util::task::AbortOnDropHandle;

use super::{BUFFER_BYTES_MAX, plain};
use crate::control_frames::Limited;
use crate::framing::{self, HEADERS_MAX};
use crate::joined::JoinedBody;
use crate::net::pipe::open_pipe;
use crate::net::{Body, BoxError, CallRejected, Origin, Serve, Stream, empty_body};
use crate::request_head::{to_http1, to_http2};

/// Unread bytes of a response over HTTP/2 (hyper's default is 2 MiB).
const HTTP2_WINDOW_BYTES: u32 = 64 << 10;

/// Sends a request over a stream, and returns its response: with prior knowledge of HTTP/2 if that is the request's version,
/// else as HTTP/1.1. The stream closes when both bodies have ended.
///
/// # Errors
/// If the connection breaks before the response's head, or the head is ambiguous ([`framing::response`]).
pub async fn request_over_stream(stream: Stream, request: Request<Body>) -> Result<Response<Body>, BoxError> {
    let request = request.map(|body| match body.is_end_stream() {
        true => body,
        false => JoinedBody::new(body).boxed_unsync(),
    });
    match request.version() {
        Version::HTTP_2 => over_http2(stream, request).await,
        _ => over_http1(stream, request).await,
    }
}

/// Sends a request to a server of bytes in this process: its [`Serve::http`]. It accepts the request as a connection.
///
/// A broken connection is a 502 with `coracle-reason: connection`.
///
/// # Errors
/// If the server rejected the connection: the request is returned unread.
pub async fn request_over_pipe<S: Serve + ?Sized>(
    serve: Arc<S>,
    from: &Origin,
    request: Request<Body>,
) -> Result<Response<Body>, CallRejected<Request<Body>>> {
    let stream = match open_pipe(serve, from.clone()) {
        Ok(stream) => stream,
        Err(rejected) => return Err(rejected.map(|()| request)),
    };
    Ok(request_over_stream(stream, request).await.unwrap_or_else(|error| {
        let text = format!("{} sent no response over HTTP: {error}", from.local);
        plain(StatusCode::BAD_GATEWAY, "connection", &text)
    }))
}

async fn over_http1(stream: Stream, mut request: Request<Body>) -> Result<Response<Body>, BoxError> {
    to_http1(&mut request, None)?;
    request.headers_mut().append(CONNECTION, HeaderValue::from_static("close"));
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_buf_size(BUFFER_BYTES_MAX).max_headers(HEADERS_MAX);
    let (mut sender, connection) = builder.handshake::<_, Body>(TokioIo::new(stream)).await?;
    let driver = drive(connection);
    let response = sender.send_request(request).await?;
    let mut response = finish(response, driver)?;
    *response.version_mut() = Version::HTTP_11;
    Ok(response)
}

async fn over_http2(stream: Stream, mut request: Request<Body>) -> Result<Response<Body>, BoxError> {
    to_http2(&mut request)?;
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .initial_stream_window_size(HTTP2_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_WINDOW_BYTES)
        .max_send_buf_size(BUFFER_BYTES_MAX);
    let (mut sender, connection) = builder.handshake::<_, Body>(TokioIo::new(Limited::of_server(stream))).await?;
    let driver = drive(connection);
    let response = sender.send_request(request).await?;
    finish(response, driver)
}

/// Drives a connection until it ends, or the handle is dropped.
fn drive(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection for one request ended");
        }
    }))
}

fn finish(response: Response<Incoming>, driver: AbortOnDropHandle<()>) -> Result<Response<Body>, BoxError> {
    let (mut head, body) = response.into_parts();
    framing::response(&mut head, false)?;
    let ended = body.is_end_stream();
    // Its drop leaves the rest of the request to the connection.
    let body = ReplyBody { body, driver: Some(driver) };
    Ok(Response::from_parts(head, if ended { empty_body() } else { body.boxed_unsync() }))
}

/// A response's body, which holds its connection. After its end the connection goes on until the request has been sent.
struct ReplyBody {
    body: Incoming,
    driver: Option<AbortOnDropHandle<()>>,
}

impl ReplyBody {
    fn release(&mut self) {
        if let Some(driver) = self.driver.take() {
            drop(driver.detach());
        }
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.release();
        }
    }
}

impl http_body::Body for ReplyBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() {
            self.release();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
