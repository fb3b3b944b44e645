//! Requests to other services, over `wasi:http/outgoing-handler`. A Service's name is a host name: `fetch::get("users", …)`.
use crate::http::{Body, BodyError};
use crate::{String, ToString, Vec, format, text};
use wasip2::http::outgoing_handler::handle;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingResponse, Method, OutgoingBody, OutgoingRequest, RequestOptions, Scheme,
};

/// A Service of the same cluster responds in milliseconds; these bounds only keep a request from hanging with its backend.
const CONNECT_TIMEOUT_NS: u64 = 2_000_000_000;
const FIRST_BYTE_TIMEOUT_NS: u64 = 10_000_000_000;
/// Maximum length of a response of the shop's services.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// A service's response.
pub struct Reply {
    pub status: u16,
    pub body: Vec<u8>,
}

/// GET, with one retry if there was no response: a repeated GET does no harm, and a pod may just have terminated.
pub fn get(service: &str, path: &[&str]) -> Result<Reply, String> {
    send(Method::Get, service, path, None).or_else(|_| send(Method::Get, service, path, None))
}

/// POST of JSON, without a retry: the service may have processed a request that failed on the way back.
pub fn post_json(service: &str, path: &[&str], body: &str) -> Result<Reply, String> {
    send(Method::Post, service, path, Some(body))
}

/// PUT of JSON, with one retry as [`get`]: it is idempotent. None if there is no such service.
pub fn put_json(service: &str, path: &[&str], body: &str) -> Result<Option<Reply>, String> {
    let put = || match exchange(Method::Put, service, path, Some(body)) {
        Err(Failed::NoName) => Ok(None),
        reply => reply.map(Some).map_err(|problem| problem.told(service)),
    };
    put().or_else(|_| put())
}

/// GET as [`get`]; none if there is no such service.
pub fn find(service: &str, path: &[&str]) -> Result<Option<Reply>, String> {
    match exchange(Method::Get, service, path, None) {
        Err(Failed::NoName) => Ok(None),
        Ok(reply) => Ok(Some(reply)),
        Err(_) => get(service, path).map(Some),
    }
}

/// Why there is no response.
enum Failed {
    /// No service has that name.
    NoName,
    Why(String),
}

impl Failed {
    fn told(self, service: &str) -> String {
        match self {
            Self::NoName => format!("{service} is not reachable: no such name"),
            Self::Why(problem) => format!("{service} is not reachable: {problem}"),
        }
    }
}

impl From<String> for Failed {
    fn from(problem: String) -> Self {
        Self::Why(problem)
    }
}

impl From<ErrorCode> for Failed {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::DnsError(_) => Self::NoName,
            code => Self::Why(debug(code)),
        }
    }
}

fn send(method: Method, service: &str, path: &[&str], body: Option<&str>) -> Result<Reply, String> {
    exchange(method, service, path, body).map_err(|problem| problem.told(service))
}

fn exchange(method: Method, service: &str, path: &[&str], body: Option<&str>) -> Result<Reply, Failed> {
    let path: String = path.iter().map(|segment| format!("/{}", text::encode(segment))).collect();
    let headers = Fields::new();
    if body.is_some() {
        headers.set("content-type", &[b"application/json".to_vec()]).map_err(debug)?;
    }
    let request = OutgoingRequest::new(headers);
    let set = request.set_method(&method).and_then(|()| request.set_scheme(Some(&Scheme::Http)));
    set.and_then(|()| request.set_authority(Some(service)))
        .and_then(|()| request.set_path_with_query(Some(&path)))
        .map_err(|()| "not a valid address".to_string())?;

    let options = RequestOptions::new();
    let _ = options.set_connect_timeout(Some(CONNECT_TIMEOUT_NS)); // a host may not support timeouts
    let _ = options.set_first_byte_timeout(Some(FIRST_BYTE_TIMEOUT_NS));

    let outgoing = request.body().map_err(|()| "no body".to_string())?;
    let coming = handle(request, Some(options))?;
    if let Some(body) = body {
        let stream = outgoing.write().map_err(|()| "no stream".to_string())?;
        crate::process::write_all(&stream, body.as_bytes()); // the response below contains a failure
    }
    OutgoingBody::finish(outgoing, None).map_err(debug)?;

    coming.subscribe().block();
    let response: Result<IncomingResponse, ErrorCode> =
        coming.get().and_then(Result::ok).ok_or_else(|| "no answer".to_string())?;
    let response = response?;
    let incoming = response.consume().map_err(|()| "no body".to_string())?;
    let body = Body::new(incoming).read_all(ANSWER_BYTES_MAX).map_err(|problem| match problem {
        BodyError::TooLong => "the answer is too long".to_string(),
        BodyError::Cut => "the answer was cut short".to_string(),
    })?;
    Ok(Reply { status: response.status(), body })
}

fn debug(problem: impl core::fmt::Debug) -> String {
    format!("{problem:?}")
}
