//! `pods/NAME/log`: streamed from the kubelet of the pod's node.

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, future, stream};
use http::{Request, Response};
use http_body_util::Empty;
use jiff::Timestamp;
use machinery_api::error::GroupResource;
use machinery_api::selector::go_quoted;
use machinery_api::{ApiError, Cause};
use machinery_streaming::websocket::{OutgoingMessage, wants_websocket};
use serde_json::Value;

use super::handle::{RequestContext, RequestHandler};
use super::kubelets;
use super::respond;
use crate::registry::RequestScope;
use apiserver_resources::query::Query;

/// The subprotocol whose messages are text, in base64.
const BASE64_PROTOCOL: &str = "base64.binary.k8s.io";
/// The subprotocols for a log over a WebSocket; a client may offer none.
const WEBSOCKET_PROTOCOLS: [&str; 3] = ["binary.k8s.io", BASE64_PROTOCOL, ""];

/// Encodes a piece of a log by the subprotocol.
fn log_message(protocol: &str, piece: Bytes) -> OutgoingMessage {
    if protocol == BASE64_PROTOCOL {
        OutgoingMessage::Text(STANDARD.encode(&piece))
    } else {
        OutgoingMessage::Binary(piece)
    }
}

/// The parameters of a log request (`v1.PodLogOptions`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Options {
    container: String,
    /// The query for the kubelet.
    query: String,
}

impl Options {
    fn read(query: &Query, pod: &str) -> Result<Self, ApiError> {
        let number = |name: &str| query.integer(name).map_err(ApiError::BadRequest);
        let (tail, limit, since) = (number("tailLines")?, number("limitBytes")?, number("sinceSeconds")?);
        let time = match query.get("sinceTime").filter(|t| !t.is_empty()) {
            None => None,
            Some(text) => Some(text.parse::<Timestamp>().map_err(|_| {
                ApiError::BadRequest(format!(
                    "parsing time {} as \"2006-01-02T15:04:05Z07:00\": cannot parse {} as \"2006\"",
                    go_quoted(text),
                    go_quoted(text)
                ))
            })?),
        };
        let mut causes = Vec::new();
        let mut finding = |reason: &str, field: &str, message: String| {
            causes.push(Cause { reason: reason.into(), message, field: field.into() });
        };
        if let Some(n) = tail.filter(|n| *n < 0) {
            let message = format!("Invalid value: {n}: must be greater than or equal to 0");
            finding("FieldValueInvalid", "tailLines", message);
        }
        if let Some(n) = limit.filter(|n| *n < 1) {
            finding("FieldValueInvalid", "limitBytes", format!("Invalid value: {n}: must be greater than 0"));
        }
        if since.is_some() && time.is_some() {
            let message = "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified";
            finding("FieldValueForbidden", "[]", message.into());
        } else if let Some(n) = since.filter(|n| *n < 1) {
            finding("FieldValueInvalid", "sinceSeconds", format!("Invalid value: {n}: must be greater than 0"));
        }
        if query.get("stream").is_some() {
            finding("FieldValueForbidden", "stream", "Forbidden: may not be specified".into());
        }
        if !causes.is_empty() {
            return Err(ApiError::Invalid(GroupResource::new("", "PodLogOptions"), pod.to_owned(), causes));
        }
        let mut passed = Vec::new();
        for flag in ["follow", "previous", "timestamps"] {
            if query.flag(flag) == Some(true) {
                passed.push(format!("{flag}=true"));
            }
        }
        for (name, value) in [("sinceSeconds", since), ("tailLines", tail), ("limitBytes", limit)] {
            passed.extend(value.map(|n| format!("{name}={n}")));
        }
        passed.extend(time.map(|t| format!("sinceTime={t}")));
        Ok(Self { container: query.text("container").to_owned(), query: passed.join("&") })
    }
}

/// The container of the request, or upstream's error.
pub(super) fn container(pod: &Value, wanted: &str) -> Result<String, ApiError> {
    let name = pod["metadata"]["name"].as_str().unwrap_or("");
    let names = |field: &str| -> Vec<String> {
        let list = pod["spec"][field].as_array().map_or(&[] as &[Value], Vec::as_slice);
        list.iter().filter_map(|c| c["name"].as_str().map(Into::into)).collect()
    };
    // The order is upstream's.
    let all = ["initContainers", "containers", "ephemeralContainers"].map(names).concat();
    if !wanted.is_empty() {
        return if all.iter().any(|name| name == wanted) {
            Ok(wanted.to_owned())
        } else {
            Err(ApiError::BadRequest(format!("container {wanted} is not valid for pod {name}")))
        };
    }
    match names("containers").as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(ApiError::BadRequest(format!("a container name must be specified for pod {name}"))),
        _ => Err(ApiError::BadRequest(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            all.join(" ")
        ))),
    }
}

impl RequestHandler {
    /// Serves a log request.
    pub(super) async fn serve_logs(
        &self,
        ctx: &mut RequestContext<'_>,
        call: &RequestScope<'_>,
    ) -> Result<Response<Body>, ApiError> {
        let query = ctx.head.query;
        let options = Options::read(query, call.name)?;
        let pod = self.pod(call).await?;
        let container = container(&pod, &options.container)?;
        let Some((node_name, at)) = self.node_of(&pod)? else {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = http::StatusCode::NO_CONTENT;
            return Ok(response);
        };
        let path = format!("/containerLogs/{}/{}/{container}", call.namespace, call.name);
        let target = if options.query.is_empty() { path } else { format!("{path}?{}", options.query) };
        let request = Request::get(&target).header("host", at.host()).body(Empty::<Bytes>::new());
        let request = request.map_err(|error| ApiError::BadRequest(error.to_string()))?;
        let answer = self.deps.kubelets.send(&at, request).await;
        let answer = answer
            .map_err(|why| ApiError::ServiceUnavailable(format!("Get \"https://{}{target}\": {why}", at.host())))?;
        let status = answer.status().as_u16();
        if (200..300).contains(&status) {
            if wants_websocket(ctx.head.headers) {
                return self.logs_by_websocket(ctx, Body::new(answer.into_body()));
            }
            let mut response = respond::bytes(200, "text/plain", Body::new(answer.into_body()));
            if query.flag("follow") == Some(true) {
                // Reverse proxies must not buffer a followed log.
                response.headers_mut().insert("x-accel-buffering", http::HeaderValue::from_static("no"));
            }
            return Ok(response);
        }
        let text = kubelets::error_text(answer.into_body()).await;
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        Err(match status {
            400 => ApiError::BadRequest(text),
            401 | 403 => ApiError::ServiceUnavailable(format!("node {node_name} doesn't know this server: {text}")),
            404 => ApiError::NotFoundByNode(text),
            429 => ApiError::TooManyRequests(text, 1),
            _ => ApiError::ServiceUnavailable(format!("node {node_name} answered {status}: {text}")),
        })
    }

    /// Serves a log over a WebSocket, as upstream: browsers cannot stream the body of a response otherwise. The first
    /// message is empty, upstream's signal that the connection is established.
    fn logs_by_websocket(&self, ctx: &mut RequestContext<'_>, body: Body) -> Result<Response<Body>, ApiError> {
        let pieces = body.into_data_stream().map_err(std::io::Error::other);
        let first = stream::once(future::ready(Ok(Bytes::new())));
        let messages = |protocol| first.chain(pieces).map_ok(move |piece| log_message(protocol, piece));
        self.serve_messages(ctx, &WEBSOCKET_PROTOCOLS, messages)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_are_checked_as_upstream() {
        let read = |query: &str| Options::read(&Query::parse(query), "p");
        let message = |query: &str| read(query).unwrap_err().status().message;
        assert_eq!(
            message("tailLines=-1"),
            "PodLogOptions \"p\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0"
        );
        assert!(message("sinceSeconds=1&sinceTime=2020-01-01T00:00:00Z").contains("at most one of"));
        assert!(message("sinceTime=x").starts_with("parsing time"));
        assert!(message("stream=Stdout").contains("stream: Forbidden"));
        let options = read("follow=true&tailLines=5&container=c&previous=false").unwrap();
        assert_eq!((options.container.as_str(), options.query.as_str()), ("c", "follow=true&tailLines=5"));
    }

    #[test]
    fn containers_are_named_or_the_only_one() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(container(&pod, "b").unwrap(), "b");
        assert_eq!(
            container(&pod, "").unwrap_err().status().message,
            "a container name must be specified for pod p, choose one of: [a b]"
        );
        let mut whole = pod.clone();
        whole["spec"]["initContainers"] = json!([{"name": "i"}]);
        whole["spec"]["ephemeralContainers"] = json!([{"name": "e"}]);
        assert_eq!(
            container(&whole, "").unwrap_err().status().message,
            "a container name must be specified for pod p, choose one of: [i a b e]"
        );
        assert_eq!(container(&whole, "i").unwrap(), "i");
        assert_eq!(container(&pod, "x").unwrap_err().status().message, "container x is not valid for pod p");
    }
}
