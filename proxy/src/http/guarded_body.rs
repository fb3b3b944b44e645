//! A response body that keeps a guard until it ends: its endpoint's request in flight, or its span.

use http_body::Body as _;
use http_body_util::BodyExt as _;
use machinery_serve::guarded_body::GuardedBody;
use machinery_serve::net::Body;

/// Wraps `body` so that `guard` lasts until its end.
pub(crate) fn guarded(body: Body, guard: impl Send + 'static) -> Body {
    if body.is_end_stream() {
        return body;
    }
    GuardedBody::new(body, guard).boxed_unsync()
}
