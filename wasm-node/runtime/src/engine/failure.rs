//! Reasons of a request without a response of the guest's own, and the responses in their place (docs/contract.md §4).

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use machinery_api::names::REASON_HEADER;
use machinery_serve::net::Body;

use super::container::ContainerState;

/// Reason why the guest gave no response, or an incomplete one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    Trap,
    Memory,
    Fuel,
    Timeout,
    NoResponse,
    /// A plugin's result is over the limit.
    ResultTooLarge,
    /// All sessions, or this client's share of them, are in use.
    Sessions,
    /// The queue of requests is full.
    Overload,
    /// The container is being stopped.
    Stopped,
}

impl Failure {
    fn parts(self) -> (StatusCode, &'static str) {
        match self {
            Self::Trap => (StatusCode::BAD_GATEWAY, "trap"),
            Self::Memory => (StatusCode::SERVICE_UNAVAILABLE, "memory"),
            Self::Fuel => (StatusCode::SERVICE_UNAVAILABLE, "fuel"),
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
            Self::NoResponse => (StatusCode::BAD_GATEWAY, "no-response"),
            Self::ResultTooLarge => (StatusCode::BAD_GATEWAY, "result-too-large"),
            Self::Sessions => (StatusCode::SERVICE_UNAVAILABLE, "sessions"),
            Self::Overload => (StatusCode::SERVICE_UNAVAILABLE, "overload"),
            Self::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "stopped"),
        }
    }

    /// The value of the response's `coracle-reason`.
    pub(crate) fn reason(self) -> &'static str {
        self.parts().1
    }

    pub(crate) fn count(self, shared: &ContainerState) {
        let counters = &shared.counters;
        let counter = match self {
            Self::Trap => &counters.trap,
            Self::Memory => &counters.memory,
            Self::Fuel => &counters.fuel,
            Self::Timeout => &counters.timeout,
            Self::NoResponse | Self::ResultTooLarge => &counters.no_response,
            Self::Overload | Self::Sessions | Self::Stopped => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a failure after the response's head.
    pub(crate) fn count_cut(self, shared: &ContainerState) {
        self.count(shared);
        shared.counters.cut.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn response(self, shared: &ContainerState) -> Response<Body> {
        self.count(shared);
        let (status, reason) = self.parts();
        let text = format!("{} ({reason})\n", status.canonical_reason().unwrap_or_default());
        let mut response = Response::new(full(Bytes::from(text)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(HeaderName::from_static(REASON_HEADER), HeaderValue::from_static(reason));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }
}

/// A complete body.
pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
