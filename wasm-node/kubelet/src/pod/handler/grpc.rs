//! `grpc.health.v1.Health/Check` against a pod: one message each way in an HTTP exchange, with the RPC status in trailers.
//!
//! The exchange reaches the guest like any other. Of HTTP/2, gRPC only needs trailers after the response, which a guest
//! of `wasi:http` can send.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Full};
use machinery_serve::net::{Body, CallRejected, Origin, Peer, Protocol};
use runtime_api::NodeCall;

use super::{HandlerRunner, ProbeOutcome};
use std::net::SocketAddr;

const PATH: &str = "/grpc.health.v1.Health/Check";
/// The bound of the response, which is a few bytes long.
const ANSWER_BYTES_MAX: usize = 10 << 10;
/// The length of a message prefix: the compression flag and the message's length.
const PREFIX_BYTES: usize = 5;

/// The values of `ServingStatus`, by number.
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
const SERVING: u64 = 1;

/// The names of gRPC's status codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
const UNIMPLEMENTED: u32 = 12;
const DEADLINE_EXCEEDED: u32 = 4;

/// The status of a call without a response message.
#[derive(Debug, PartialEq, Eq)]
struct RpcStatus {
    code: u32,
    message: String,
}

impl RpcStatus {
    fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The status in upstream's words.
    fn words(&self, timeout: Duration) -> String {
        let Self { code, message } = self;
        match *code {
            UNIMPLEMENTED => format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
            ),
            DEADLINE_EXCEEDED => timed_out(timeout),
            code => {
                let name = CODES.get(code as usize).map_or_else(|| format!("Code({code})"), |name| (*name).to_owned());
                format!("error: health rpc probe failed: rpc error: code = {name} desc = {message}")
            }
        }
    }
}

fn timed_out(timeout: Duration) -> String {
    format!("timeout: health rpc did not complete within {}s", timeout.as_secs())
}

/// A message with one string in its first field; an empty string is omitted.
fn request_message(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.unsplit(message);
    framed.freeze()
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f).checked_shl(shift)?;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn skip<'a>(bytes: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (skipped, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(skipped)
}

/// The status of a `HealthCheckResponse`: the number in its first field. Unknown fields are skipped.
fn status_of(mut message: &[u8]) -> Option<u64> {
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = varint(&mut message)?,
            (_, 0) => drop(varint(&mut message)?),
            (_, 1) => drop(skip(&mut message, 8)?),
            (_, 2) => {
                let length = varint(&mut message)?;
                skip(&mut message, length)?;
            }
            (_, 5) => drop(skip(&mut message, 4)?),
            _ => return None,
        }
    }
    Some(status)
}

/// Evaluates a complete response: the service's status, or the status of the failed call.
fn read(head: &http::response::Parts, body: &[u8], trailers: Option<&HeaderMap>) -> Result<u64, RpcStatus> {
    let kind = head.headers.get(http::header::CONTENT_TYPE).map(|kind| String::from_utf8_lossy(kind.as_bytes()));
    let is_grpc = kind.as_deref().is_some_and(|kind| kind.starts_with("application/grpc"));
    if head.status != StatusCode::OK || !is_grpc {
        return Err(not_grpc(head.status, kind.as_deref()));
    }
    let headers = trailers.filter(|trailers| trailers.contains_key("grpc-status")).unwrap_or(&head.headers);
    let code = headers.get("grpc-status").and_then(|code| code.to_str().ok()?.parse::<u32>().ok());
    match code {
        Some(0) => {}
        Some(code) => {
            let message = headers.get("grpc-message").map(http::HeaderValue::as_bytes).unwrap_or_default();
            let message = percent_encoding::percent_decode(message).decode_utf8_lossy().into_owned();
            return Err(RpcStatus::new(code, message));
        }
        None => return Err(RpcStatus::new(13, "server closed the stream without sending trailers")),
    }
    let Some((prefix, message)) = body.split_at_checked(PREFIX_BYTES) else {
        return Err(RpcStatus::new(
            13,
            "cardinality violation: received no response message from non-server-streaming RPC",
        ));
    };
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    match (prefix[0], message.get(..length).and_then(status_of)) {
        (0, Some(status)) => Ok(status),
        (0, None) => Err(RpcStatus::new(13, "grpc: failed to unmarshal the received message")),
        _ => Err(RpcStatus::new(13, "grpc: compressed flag set with identity or empty encoding")),
    }
}

/// Maps a response without gRPC to a status, as gRPC clients do.
fn not_grpc(status: StatusCode, kind: Option<&str>) -> RpcStatus {
    let code = match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => UNIMPLEMENTED,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    };
    let kind = match kind {
        Some(kind) => format!("transport: received unexpected content-type {kind:?}"),
        None => "malformed header: missing HTTP content-type".to_owned(),
    };
    let (number, name) = (status.as_u16(), status.canonical_reason().unwrap_or_default());
    RpcStatus::new(code, format!("unexpected HTTP status code received from server: {number} ({name}); {kind}"))
}

impl HandlerRunner {
    pub(super) async fn probe_grpc(&self, port: u16, service: &str, timeout: Duration) -> ProbeOutcome {
        let at = SocketAddr::new(self.ip, port);
        let Some(serve) = self.network.find(self.ip, Protocol::Tcp, port) else {
            // Upstream retries the connection until the timeout.
            let timeout = timeout.as_secs();
            return ProbeOutcome::failed(format!(
                "timeout: failed to connect service {:?} within {timeout}s: context deadline exceeded",
                at.to_string()
            ));
        };
        let call = NodeCall::default();
        let body: Body = Full::new(request_message(service)).map_err(|never| match never {}).boxed_unsync();
        let request = Request::post(format!("http://{at}{PATH}"))
            .version(Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "kube-probe/1.36")
            .header("grpc-timeout", format!("{}m", timeout.as_millis()))
            .extension(call.clone())
            .body(body);
        let Ok(request) = request else { return ProbeOutcome::failed("error: the request cannot be made") };
        let exchange = async {
            let origin = Origin { peer: Peer::Node, local: at, via: None };
            match serve.http(&origin, request).await {
                Ok(response) => read_response(response).await,
                Err(CallRejected::Busy(_)) => Err(RpcStatus::new(14, "the server is busy")),
                Err(CallRejected::Gone(_) | CallRejected::Denied(_) | CallRejected::Closed) => Err(RpcStatus::new(
                    14,
                    format!("connection error: desc = \"transport: dial tcp {at}: connection refused\""),
                )),
            }
        };
        match self.env.timeout(timeout, exchange).await {
            Ok(Ok(SERVING)) => ProbeOutcome::passed(),
            Ok(Ok(status)) => {
                let name = STATUSES.get(usize::try_from(status).unwrap_or(usize::MAX));
                let name = name.map_or_else(|| status.to_string(), |name| (*name).to_owned());
                ProbeOutcome::failed(format!("service unhealthy (responded with {name:?})"))
            }
            Ok(Err(ended)) => ProbeOutcome::failed(ended.words(timeout)),
            Err(_) if call.waits() => ProbeOutcome::NoCapacity,
            Err(_) => ProbeOutcome::failed(timed_out(timeout)),
        }
    }
}

async fn read_response(response: Response<Body>) -> Result<u64, RpcStatus> {
    let (head, mut frames) = response.into_parts();
    let (mut body, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = frames.frame().await {
        let frame = frame.map_err(|error| RpcStatus::new(14, error.to_string()))?;
        match frame.into_data() {
            Ok(data) if body.len() + data.len() > ANSWER_BYTES_MAX => {
                return Err(RpcStatus::new(8, format!("grpc: received message larger than max ({ANSWER_BYTES_MAX})")));
            }
            Ok(data) => body.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    read(&head, &body, trailers.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: u16, headers: &[(&str, &str)]) -> http::response::Parts {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response.body(()).unwrap().into_parts().0
    }

    fn trailers(status: &str, message: &str) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.parse().unwrap());
        trailers.insert("grpc-message", message.parse().unwrap());
        trailers
    }

    #[test]
    fn messages_are_protobufs() {
        assert_eq!(&request_message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&request_message("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = request_message(&"x".repeat(300));
        assert_eq!((&long[5..8], long.len()), (&[0x0a, 0xac, 2][..], 5 + 3 + 300));
        for (message, status) in [
            (&[][..], Some(0)),
            (&[8, 1], Some(1)),
            (&[8, 2], Some(2)),
            (&[0x12, 1, b'x', 8, 1], Some(1)),
            (&[8], None),
            (&[0x12, 9, 1], None),
            (&[8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], None),
        ] {
            assert_eq!(status_of(message), status, "{message:?}");
        }
    }

    #[test]
    fn answers_are_read_as_grpcs_clients_do() {
        let grpc = [("content-type", "application/grpc")];
        let body = [0, 0, 0, 0, 2, 8, 1];
        let ok = trailers("0", "");
        assert_eq!(read(&head(200, &grpc), &body, Some(&ok)), Ok(1));
        assert_eq!(read(&head(200, &grpc), &[0, 0, 0, 0, 0], Some(&ok)), Ok(0));
        let words = |ended: Result<u64, RpcStatus>| ended.unwrap_err().words(Duration::from_secs(2));
        let not_there = trailers("5", "unknown%20service");
        assert_eq!(
            words(read(&head(200, &grpc), &[], Some(&not_there))),
            "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service"
        );
        let only = head(200, &[grpc[0], ("grpc-status", "12"), ("grpc-message", "no such method")]);
        assert_eq!(
            words(read(&only, &[], None)),
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): no such method"
        );
        assert_eq!(words(read(&only, &[], Some(&trailers("4", "")))), "timeout: health rpc did not complete within 2s");
        for (answer, part) in [
            (read(&head(404, &[]), &[], None), "404 (Not Found); malformed header: missing HTTP content-type"),
            (read(&head(200, &[("content-type", "text/html")]), &body, None), "unexpected content-type \"text/html\""),
            (read(&head(200, &grpc), &body, None), "without sending trailers"),
            (read(&head(200, &grpc), &body[..3], Some(&ok)), "no response message"),
            (read(&head(200, &grpc), &[1, 0, 0, 0, 2, 8, 1], Some(&ok)), "compressed"),
            (read(&head(200, &grpc), &[0, 0, 0, 0, 9, 8, 1], Some(&ok)), "unmarshal"),
        ] {
            let words = words(answer);
            assert!(words.contains(part), "{words}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_answer_panics(body in proptest::collection::vec(0_u8.., 0..40)) {
            let _ = read(&head(200, &[("content-type", "application/grpc")]), &body, Some(&trailers("0", "")));
        }
    }
}
