//! A response body that keeps a guard until it ends: its endpoint's request in flight, or its span.

use http_body::Body as _;
use http_body_util::BodyExt as _;
use machinery_serve::held_body::HeldBody;
use machinery_serve::net::Body;

/// Wraps `body` so that `held` lasts until its end.
pub(crate) fn holding(body: Body, held: impl Send + 'static) -> Body {
    if body.is_end_stream() {
        return body;
    }
    HeldBody::new(body, held).boxed_unsync()
}
