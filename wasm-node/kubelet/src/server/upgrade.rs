//! Connections that become another protocol's: which one both sides speak, and the headers that say so.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use machinery_streaming::websocket::{self, upgrade_of};

/// Names SPDY's subprotocol.
const SPDY_VERSION: &str = "x-stream-protocol-version";
const SPDY: &str = "SPDY/3.1";

/// What is spoken, with the name of its subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upgrade {
    WebSocket(&'static str),
    Spdy(&'static str),
}

/// What both sides speak, and the headers of the 101; or the answer that says why nothing is, in upstream's words.
pub(super) fn negotiate(
    headers: &HeaderMap,
    by_websocket: &[&'static str],
    by_spdy: &[&'static str],
) -> Result<(HeaderMap, Upgrade), Box<Response>> {
    match upgrade_of(headers) {
        Some(upgrade) if upgrade.eq_ignore_ascii_case("websocket") => {
            let taken = websocket::handshake(headers, by_websocket).map_err(|why| bad(why.to_string()))?;
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
                return Err(bad(format!("unable to upgrade: header {SPDY_VERSION} does not exist in request")));
            }
            let Some(protocol) = by_spdy.iter().find(|own| wanted.contains(own)) else {
                return Err(not_spoken(&wanted, by_spdy));
            };
            let mut answer = HeaderMap::new();
            answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            answer.insert(header::UPGRADE, HeaderValue::from_static(SPDY));
            answer.insert(SPDY_VERSION, HeaderValue::from_static(protocol));
            Ok((answer, Upgrade::Spdy(protocol)))
        }
        _ => Err(bad("unable to upgrade: missing upgrade headers in request".into())),
    }
}

pub(super) fn refuse(status: StatusCode, why: String) -> Box<Response> {
    Box::new((status, why).into_response())
}

pub(super) fn bad(why: String) -> Box<Response> {
    refuse(StatusCode::BAD_REQUEST, why)
}

fn not_spoken(wanted: &[&str], accepted: &[&'static str]) -> Box<Response> {
    let why = format!(
        "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
        wanted.join(" "),
        accepted.join(" ")
    );
    let mut response = refuse(StatusCode::FORBIDDEN, why);
    for protocol in accepted {
        let accepted = HeaderValue::from_static(protocol);
        response.headers_mut().append("x-accepted-stream-protocol-versions", accepted);
    }
    response
}
