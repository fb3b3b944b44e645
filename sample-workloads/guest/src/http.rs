//! A server in one macro: [`serve!`](crate::serve) takes a table of routes and exports `wasi:http/incoming-handler`.
use crate::{Box, String, ToOwned, ToString, Vec, format, text};
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};

const READ_BYTES: u64 = 64 * 1024;

/// Serves a table of routes. A path that ends in `/*` matches one more segment, which is in [`Request::rest`].
/// Requests without a route get 404 or 405.
#[macro_export]
macro_rules! serve {
    ($($method:literal $path:literal => $handler:expr),* $(,)?) => {
        struct Server;
        impl $crate::wasip2::exports::http::incoming_handler::Guest for Server {
            fn handle(
                request: $crate::wasip2::http::types::IncomingRequest,
                out: $crate::wasip2::http::types::ResponseOutparam,
            ) {
                $crate::http::answer(&[$(($method, $path, $handler)),*], request, out)
            }
        }
        $crate::wasip2::http::proxy::export!(Server);
    };
}

/// The result of a handler: both sides are responses, so that `?` returns an error's response.
pub type Answer = Result<Response, Response>;
/// Method, path, handler.
pub type Route = (&'static str, &'static str, fn(&Request) -> Answer);

/// A request with an unread body.
pub struct Request {
    pub method: String,
    pub path: String,
    /// The segment matched by `*` in the route's path, decoded.
    pub rest: String,
    query: Vec<(String, String)>,
    incoming: IncomingRequest,
}

impl Request {
    fn new(incoming: IncomingRequest) -> Self {
        let target = incoming.path_with_query().unwrap_or_default();
        let method = match incoming.method() {
            Method::Get => "GET".into(),
            Method::Head => "HEAD".into(),
            Method::Post => "POST".into(),
            Method::Put => "PUT".into(),
            Method::Delete => "DELETE".into(),
            Method::Connect => "CONNECT".into(),
            Method::Options => "OPTIONS".into(),
            Method::Trace => "TRACE".into(),
            Method::Patch => "PATCH".into(),
            Method::Other(name) => name,
        };
        crate::log!("{method} {target}"); // on arrival, so that a request that never ends is logged too
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let path = if path.is_empty() { "/" } else { path };
        let query = query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (text::decode(name, true), text::decode(value, true)))
            .collect();
        Self { method, path: path.to_owned(), rest: String::new(), query, incoming }
    }

    /// A query parameter.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A number of the query, at most `max`; else a response with 400.
    pub fn number(&self, name: &str, max: u64) -> Result<u64, Response> {
        self.query(name)
            .filter(|value| value.bytes().all(|byte| byte.is_ascii_digit())) // `parse` accepts a `+` too
            .and_then(|value| value.parse().ok())
            .filter(|number| *number <= max)
            .ok_or_else(|| Response::error(400, &format!("{name} must be a number from 0 to {max}")))
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<String> {
        self.incoming.headers().get(name).into_iter().next().and_then(|value| String::from_utf8(value).ok())
    }

    /// The body, for reading in pieces.
    pub fn body(&self) -> Body {
        let body = self.incoming.consume().expect("a body is taken only once");
        Body::new(body)
    }

    /// The whole body; a response with 413 or 400 if it is too long or truncated.
    pub fn bytes(&self, max: usize) -> Result<Vec<u8>, Response> {
        self.body().read_all(max).map_err(|problem| match problem {
            BodyError::TooLong => Response::error(413, &format!("the body has more than {max} bytes")),
            BodyError::Cut => Response::error(400, "the body was cut short"),
        })
    }
}

/// An incoming body. The stream is dropped before its body: fields drop in their order.
pub struct Body {
    stream: InputStream,
    _body: IncomingBody,
}

pub enum BodyError {
    TooLong,
    Cut,
}

impl Body {
    pub(crate) fn new(body: IncomingBody) -> Self {
        Self { stream: body.stream().expect("a body has one stream"), _body: body }
    }

    /// The next piece, `None` at the end.
    pub fn read(&self) -> Result<Option<Vec<u8>>, BodyError> {
        loop {
            match self.stream.blocking_read(READ_BYTES) {
                Ok(piece) if piece.is_empty() => {}
                Ok(piece) => return Ok(Some(piece)),
                Err(StreamError::Closed) => return Ok(None),
                Err(StreamError::LastOperationFailed(_)) => return Err(BodyError::Cut),
            }
        }
    }

    pub(crate) fn read_all(&self, max: usize) -> Result<Vec<u8>, BodyError> {
        let mut all = Vec::new();
        while let Some(piece) = self.read()? {
            all.extend_from_slice(&piece);
            if all.len() > max {
                return Err(BodyError::TooLong);
            }
        }
        Ok(all)
    }
}

/// The client disconnected, or the forwarded body was truncated: this body ends incomplete.
pub struct Broken;

impl From<StreamError> for Broken {
    fn from(_: StreamError) -> Self {
        Self
    }
}

impl From<BodyError> for Broken {
    fn from(_: BodyError) -> Self {
        Self
    }
}

/// The sink of a streamed body.
pub struct Writer(OutputStream);

impl Writer {
    /// Writes all of `bytes` at the client's pace, and flushes them.
    pub fn send(&self, mut bytes: &[u8]) -> Result<(), Broken> {
        while !bytes.is_empty() {
            match self.0.check_write()? as usize {
                0 => self.0.subscribe().block(),
                room => {
                    let (now, later) = bytes.split_at(room.min(bytes.len()));
                    self.0.write(now)?;
                    bytes = later;
                }
            }
        }
        Ok(self.0.blocking_flush()?)
    }
}

enum Content {
    Whole(Vec<u8>),
    Stream(Box<dyn FnOnce(&Writer) -> Result<(), Broken>>),
}

/// An outgoing response.
pub struct Response {
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    content: Content,
}

impl Response {
    fn new(content_type: &str, content: Content) -> Self {
        Self { status: 200, headers: Vec::new(), content }.header("content-type", content_type)
    }

    pub fn text(body: impl Into<String>) -> Self {
        Self::new("text/plain; charset=utf-8", Content::Whole(body.into().into_bytes()))
    }

    pub fn html(body: &str) -> Self {
        Self::new("text/html; charset=utf-8", Content::Whole(body.into()))
    }

    /// `body` is JSON, or prints as JSON like `serde_json::Value`.
    pub fn json(body: impl core::fmt::Display) -> Self {
        Self::new("application/json", Content::Whole(format!("{body}\n").into_bytes()))
    }

    /// `{"error": message}`
    pub fn error(status: u16, message: &str) -> Self {
        let message = serde_json::to_string(message).expect("a string is valid JSON");
        Self::json(format!("{{\"error\":{message}}}")).status(status)
    }

    /// A body that `write` generates during the transfer.
    pub fn stream(content_type: &str, write: impl FnOnce(&Writer) -> Result<(), Broken> + 'static) -> Self {
        Self::new(content_type, Content::Stream(Box::new(write)))
    }

    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_string(), value.into()));
        self
    }

    /// Sends head and body. A broken body is never finished, so that the client detects the truncation.
    fn send(self, without_body: bool, out: ResponseOutparam) {
        let headers = Fields::from_list(&self.headers).expect("headers are valid");
        let response = OutgoingResponse::new(headers);
        response.set_status_code(self.status).expect("the status is valid");
        let body = response.body().expect("a response has one body");
        ResponseOutparam::set(out, Ok(response));
        if !without_body {
            let Ok(stream) = body.write() else { return };
            let writer = Writer(stream);
            let sent = match self.content {
                Content::Whole(bytes) => writer.send(&bytes),
                Content::Stream(write) => write(&writer),
            };
            if sent.is_err() {
                return;
            }
        }
        let _ = OutgoingBody::finish(body, None); // fails only if the client is gone, or if content-length is wrong
    }
}

/// Finds the route of a request and runs its handler.
pub fn answer(routes: &[Route], incoming: IncomingRequest, out: ResponseOutparam) {
    let mut request = Request::new(incoming);
    let head = request.method == "HEAD"; // as GET, without the body
    let method = if head { "GET" } else { &request.method };
    let mut allowed = Vec::new();
    let mut found = None;
    for (of, pattern, handler) in routes {
        if let Some(rest) = matches(pattern, &request.path) {
            allowed.push(*of);
            if *of == method {
                found = Some((*handler, text::decode(rest, false)));
                break;
            }
        }
    }
    let response = match found {
        Some((handler, rest)) => {
            request.rest = rest;
            handler(&request).unwrap_or_else(|problem| problem)
        }
        None if allowed.is_empty() => Response::error(404, &format!("there is nothing at {}", request.path)),
        None => {
            let allowed = allowed.join(", ");
            Response::error(405, &format!("{} takes {allowed}", request.path)).header("allow", &allowed)
        }
    };
    response.send(head, out);
}

/// The segment matched by `*` at the pattern's end; empty without one.
fn matches<'a>(pattern: &str, path: &'a str) -> Option<&'a str> {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.strip_prefix(prefix).filter(|rest| !rest.is_empty() && !rest.contains('/')),
        None => (pattern == path).then_some(""),
    }
}
