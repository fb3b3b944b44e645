//! Requests of probes and hooks to another `host`: through the data plane with the pod's identity. As upstream, TLS
//! certificates aren't verified.

use http::{HeaderValue, Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use machinery_serve::dial::unverified;
use machinery_serve::framing::HEADERS_MAX;
use machinery_serve::net::{Body, Io, Stream};

/// The read buffer of a response, including its head.
const BUFFER_BYTES_MAX: usize = 16 << 10;
/// Go's error if a server answers a handshake with HTTP; a hook is then retried without TLS.
pub(super) const NOT_TLS: &str = "http: server gave HTTP response to HTTPS client";

async fn handshake(stream: Stream, host: &str) -> Result<Box<dyn Io>, String> {
    let shaken = unverified::handshake(host, stream).await.map_err(|error| {
        let wrong = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match wrong {
            Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => NOT_TLS.to_owned(),
            _ => error.to_string(),
        }
    });
    Ok(Box::new(shaken?))
}

/// Sends a request with an absolute URI over `stream`, which is connected to `host`.
pub(super) async fn send(
    stream: Stream,
    (host, https): (&str, bool),
    mut request: Request<Body>,
) -> Result<Response<Body>, String> {
    let io: Box<dyn Io> = if https { handshake(stream, host).await? } else { Box::new(stream) };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = Uri::try_from(path).map_err(|error| error.to_string())?;
    request.headers_mut().insert("connection", HeaderValue::from_static("close"));
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_buf_size(BUFFER_BYTES_MAX).max_headers(HEADERS_MAX);
    let shaken = builder.handshake::<_, Body>(TokioIo::new(io)).await;
    let (mut sender, connection) = shaken.map_err(|error| error.to_string())?;
    // The connection ends with the exchange: no other sender exists.
    let carried = tokio::spawn(async move {
        let _ = connection.await;
    });
    let carried = crate::pod::worker::Task(carried);
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let (head, body) = response.into_parts();
    let body = body
        .map_frame(move |frame| {
            let _lives_as_long = &carried;
            frame
        })
        .map_err(Into::into)
        .boxed_unsync();
    Ok(Response::from_parts(head, body))
}
