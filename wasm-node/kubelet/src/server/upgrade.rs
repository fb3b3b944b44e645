//! Protocol upgrades: negotiates the protocol, and builds the response's headers.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use machinery_api::error::Status;
use machinery_streaming::websocket::{self, upgrade_of};

/// The header with SPDY's subprotocol.
const SPDY_VERSION: &str = "x-stream-protocol-version";
const SPDY: &str = "SPDY/3.1";

/// The negotiated protocol, with the name of its subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upgrade {
    WebSocket(&'static str),
    Spdy(&'static str),
}

/// Negotiates the protocol, and returns it with the headers of the 101 response; or an error response with upstream's
/// words.
pub(super) fn negotiate(
    headers: &HeaderMap,
    by_websocket: &[&'static str],
    by_spdy: &[&'static str],
) -> Result<(HeaderMap, Upgrade), Box<Response>> {
    match upgrade_of(headers) {
        Some(upgrade) if upgrade.eq_ignore_ascii_case("websocket") => {
            let taken = websocket::handshake(headers, by_websocket).map_err(|why| bad_request(why.to_string()))?;
            Ok((taken.headers, Upgrade::WebSocket(taken.protocol)))
        }
        Some(upgrade) if upgrade.eq_ignore_ascii_case(SPDY) => {
            let wanted: Vec<&str> = headers
                .get_all(SPDY_VERSION)
                .into_iter()
                .filter_map(|value| value.to_str().ok())
                .flat_map(|value| value.split(',').map(str::trim))
                .collect();
            if wanted.is_empty() {
                return Err(bad_request(format!("unable to upgrade: header {SPDY_VERSION} does not exist in request")));
            }
            let Some(protocol) = by_spdy.iter().find(|own| wanted.contains(own)) else {
                return Err(unsupported_protocol(&wanted, by_spdy));
            };
            let mut answer = HeaderMap::new();
            answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            answer.insert(header::UPGRADE, HeaderValue::from_static(SPDY));
            answer.insert(SPDY_VERSION, HeaderValue::from_static(protocol));
            Ok((answer, Upgrade::Spdy(protocol)))
        }
        _ => Err(bad_request("unable to upgrade: missing upgrade headers in request".into())),
    }
}

/// Returns an error response as a `Status`. kubectl decodes a text body as YAML: it shows nothing of a text with a `:
/// `.
pub(super) fn error_response(code: StatusCode, why: String) -> Box<Response> {
    let reason = match code {
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
        StatusCode::INTERNAL_SERVER_ERROR => "InternalError",
        _ => "",
    };
    let status = serde_json::to_string(&Status::failure(code.as_u16(), reason, why)).unwrap_or_default();
    Box::new((code, [(header::CONTENT_TYPE, "application/json")], status).into_response())
}

/// Returns an error response as text with upstream's words, like upstream: kubectl shows it after `unable to upgrade
/// connection`.
pub(super) fn text_error_response(code: StatusCode, why: String) -> Box<Response> {
    Box::new((code, why).into_response())
}

pub(super) fn bad_request(why: String) -> Box<Response> {
    error_response(StatusCode::BAD_REQUEST, why)
}

fn unsupported_protocol(wanted: &[&str], accepted: &[&'static str]) -> Box<Response> {
    let why = format!(
        "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
        wanted.join(" "),
        accepted.join(" ")
    );
    let mut response = error_response(StatusCode::FORBIDDEN, why);
    for protocol in accepted {
        let accepted = HeaderValue::from_static(protocol);
        response.headers_mut().append("x-accepted-stream-protocol-versions", accepted);
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use serde_json::{Value, json};

    use super::*;

    async fn read_response(refused: Box<Response>) -> (StatusCode, String, String) {
        let (head, body) = refused.into_parts();
        let kind = head.headers[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        (head.status, kind, String::from_utf8(to_bytes(body, 4096).await.unwrap().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn refusals_are_statuses_and_upstreams_words_stay_words() {
        let why = "container \"c\" has 16 sessions, as many as it may: try again when others have ended";
        let (code, kind, body) = read_response(error_response(StatusCode::TOO_MANY_REQUESTS, why.into())).await;
        let status: Value = serde_json::from_str(&body).unwrap();
        let wanted = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": why,
            "reason": "TooManyRequests", "code": 429});
        assert_eq!((code, kind.as_str(), status), (StatusCode::TOO_MANY_REQUESTS, "application/json", wanted));
        let (code, _, body) = read_response(bad_request("a: b".into())).await;
        assert_eq!((code, body.contains(r#""reason":"BadRequest""#)), (StatusCode::BAD_REQUEST, true));
        let (code, kind, body) =
            read_response(text_error_response(StatusCode::NOT_FOUND, "pod does not exist".into())).await;
        assert_eq!((code, body.as_str()), (StatusCode::NOT_FOUND, "pod does not exist"));
        assert!(kind.starts_with("text/plain"), "{kind}");
    }
}
