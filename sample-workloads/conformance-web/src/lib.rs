//! The HTTP servers of upstream's test images, as far as `wasi:http` supports them: the first page of its web servers, the file
//! that agnhost's probes request (its content is ignored), and the health service of `agnhost grpc-health-checking` (`--service
//! NAME` names the healthy service).
//!
//! gRPC is HTTP with trailers: one message in each direction, and `grpc-status` after the last one.
#![no_std]
use guest::http::{Answer, Request, Response};
use guest::wasip2::exports::http::incoming_handler::Guest;
use guest::wasip2::http::types::{
    Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use guest::wasip2::io::streams::StreamError;
use guest::{String, ToOwned, Vec, process};

const CHECK: &str = "/grpc.health.v1.Health/Check";
/// A message's header: one byte for compression, four for the length.
const HEAD_BYTES: usize = 5;
/// Maximum bytes of a request: a name, and a few bytes around it.
const QUESTION_BYTES_MAX: usize = 4096;
/// `status: SERVING`, as a message.
const SERVING: &[u8] = &[0, 0, 0, 0, 2, 0x08, 1];
/// gRPC's status codes.
const OK: u8 = 0;
const INVALID_ARGUMENT: u8 = 3;
const NOT_FOUND: u8 = 5;

struct Server;
guest::wasip2::http::proxy::export!(Server);

impl Guest for Server {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let is_check = request.path_with_query().is_some_and(|path| path == CHECK);
        if is_check && matches!(request.method(), Method::Post) {
            guest::log!("POST {CHECK}");
            return check(&request, out);
        }
        guest::http::answer(&[("GET", "/", page), ("GET", "/index.html", page), ("GET", "/localhost.crt", page)], request, out);
    }
}

fn page(_: &Request) -> Answer {
    Ok(Response::html("<!doctype html>\n<title>Welcome</title>\n<p>The web server of the conformance tests is running.</p>\n"))
}

/// The requested service: the message's first field, a string; none for an invalid message.
fn service(question: &[u8]) -> Option<String> {
    let message = question.get(HEAD_BYTES..)?;
    match message {
        [] => Some(String::new()),
        [0x0a, length, name @ ..] if usize::from(*length) == name.len() && *length < 0x80 => {
            String::from_utf8(name.to_owned()).ok()
        }
        _ => None,
    }
}

fn question(request: &IncomingRequest) -> Option<Vec<u8>> {
    let body = request.consume().ok()?;
    let stream = body.stream().ok()?;
    let mut all = Vec::new();
    loop {
        match stream.blocking_read(QUESTION_BYTES_MAX as u64) {
            Ok(bytes) if all.len() + bytes.len() <= QUESTION_BYTES_MAX => all.extend_from_slice(&bytes),
            Err(StreamError::Closed) => return Some(all),
            _ => return None,
        }
    }
}

/// The value of `--service`; the whole server if empty.
fn served() -> String {
    let arguments = process::arguments();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if let Some(name) = argument.strip_prefix("--service") {
            let name = name.strip_prefix('=').map(ToOwned::to_owned);
            return name.or_else(|| arguments.next().cloned()).unwrap_or_default();
        }
    }
    String::new()
}

fn check(request: &IncomingRequest, out: ResponseOutparam) {
    let (code, message) = match question(request).as_deref().and_then(service) {
        Some(asked) if asked == served() => (OK, ""),
        Some(_) => (NOT_FOUND, "unknown service"),
        None => (INVALID_ARGUMENT, "no HealthCheckRequest"),
    };
    let fields = |list: &[(&str, &str)]| {
        let list: Vec<(String, Vec<u8>)> = list.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        Fields::from_list(&list).expect("the fields are valid")
    };
    let response = OutgoingResponse::new(fields(&[("content-type", "application/grpc")]));
    let body = response.body().expect("a response has one body");
    ResponseOutparam::set(out, Ok(response));
    if code == OK {
        let Ok(stream) = body.write() else { return };
        if stream.blocking_write_and_flush(SERVING).is_err() {
            return;
        }
    }
    let status = [b'0' + code];
    let status = core::str::from_utf8(&status).expect("a digit is text");
    let _ = OutgoingBody::finish(body, Some(fields(&[("grpc-status", status), ("grpc-message", message)])));
}
