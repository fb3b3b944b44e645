//! `pods/NAME/log`: streamed from the node that runs the pod, over TLS with an identity of the server's own.

use machinery_api::selector::go_quoted;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use machinery_api::error::Named;
use machinery_api::{ApiError, Cause};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::handle::RequestHandler;
use super::respond;
use crate::auth::pki::{Identity, PkiError};
use crate::auth::tls;
use crate::registry::RequestScope;
use crate::request::query::Query;
use apiserver_resources::objects::Objects;

/// A node that doesn't take a connection by then is gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A node that doesn't begin to answer by then is stuck.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a node's refusal is passed on.
const REFUSAL_BYTES_MAX: usize = 4096;
/// Where kubelets listen if their node doesn't say.
const KUBELET_PORT: u64 = 10250;

/// How nodes are reached.
#[derive(Clone, Default)]
pub struct Kubelets {
    /// Trusts nodes' certificates and shows the server's own; `None`: nodes can't be reached.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

impl Kubelets {
    /// Trusts certificates of the authority `ca_pem`, and shows `identity`.
    pub fn new(ca_pem: &str, identity: &Identity) -> Result<Self, PkiError> {
        let failed = |why: &dyn std::fmt::Display| PkiError::Issue(why.to_string());
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| failed(&e))?;
        roots.add(ca).map_err(|e| failed(&e))?;
        let (chain, key) = identity.der()?;
        let config = rustls::ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(&e))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|e| failed(&e))?;
        Ok(Self { tls: Some(Arc::new(config)) })
    }
}

/// The parameters of a log request (`v1.PodLogOptions`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Options {
    container: String,
    /// What is passed on to the node.
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
            return Err(ApiError::Invalid(Named::new("", "PodLogOptions"), pod.to_owned(), causes));
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

/// The container that is meant, or upstream's refusal.
fn container(pod: &Value, wanted: &str) -> Result<String, ApiError> {
    let name = pod["metadata"]["name"].as_str().unwrap_or("");
    let names = |field: &str| -> Vec<String> {
        let list = pod["spec"][field].as_array().map_or(&[] as &[Value], Vec::as_slice);
        list.iter().filter_map(|c| c["name"].as_str().map(Into::into)).collect()
    };
    // In upstream's order.
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

/// Where a node's kubelet listens.
fn kubelet(node: &Value) -> Option<(String, u16)> {
    let addresses = node["status"]["addresses"].as_array()?;
    let address = addresses.iter().find(|a| a["type"] == "InternalIP")?["address"].as_str()?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().filter(|p| *p > 0);
    Some((address.to_owned(), u16::try_from(port.unwrap_or(KUBELET_PORT)).ok()?))
}

impl RequestHandler {
    /// Answers a log request.
    pub(super) async fn logs(&self, call: &RequestScope<'_>, query: &Query) -> Result<Response<Body>, ApiError> {
        let options = Options::read(query, call.name)?;
        let objects = &*self.deps.registry.objects;
        self.deps.registry.newest().await?;
        let pod = objects.get("", "pods", call.namespace, call.name).ok_or_else(|| call.not_found())?;
        let container = container(&pod, &options.container)?;
        let Some(node_name) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) else {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = http::StatusCode::NO_CONTENT;
            return Ok(response);
        };
        let node = objects
            .get("", "nodes", "", node_name)
            .ok_or_else(|| ApiError::NotFound(call.resource(), node_name.to_owned()))?;
        let path = format!("/containerLogs/{}/{}/{container}", call.namespace, call.name);
        let target = if options.query.is_empty() { path } else { format!("{path}?{}", options.query) };
        let Some((address, port)) = kubelet(&node) else {
            return Err(ApiError::ServiceUnavailable(format!("node {node_name} has no address to ask for logs")));
        };
        let host = if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
        let answer = self
            .ask_node(&address, port, &host, &target)
            .await
            .map_err(|why| ApiError::ServiceUnavailable(format!("Get \"https://{host}{target}\": {why}")))?;
        let status = answer.status().as_u16();
        if (200..300).contains(&status) {
            let mut response = respond::bytes(200, "text/plain", Body::new(answer.into_body()));
            if query.flag("follow") == Some(true) {
                // Proxies between here and the reader must not wait for more.
                response.headers_mut().insert("x-accel-buffering", http::HeaderValue::from_static("no"));
            }
            return Ok(response);
        }
        let text = Limited::new(answer.into_body(), REFUSAL_BYTES_MAX).collect().await;
        let text = text.map(|t| String::from_utf8_lossy(&t.to_bytes()).trim().to_owned()).unwrap_or_default();
        Err(match status {
            400 => ApiError::BadRequest(text),
            401 | 403 => ApiError::ServiceUnavailable(format!("node {node_name} doesn't know this server: {text}")),
            404 => ApiError::NotFoundByNode(text),
            429 => ApiError::TooManyRequests(text, 1),
            _ => ApiError::ServiceUnavailable(format!("node {node_name} answered {status}: {text}")),
        })
    }

    async fn ask_node(
        &self,
        address: &str,
        port: u16,
        host: &str,
        target: &str,
    ) -> Result<Response<hyper::body::Incoming>, String> {
        let tls = self.deps.kubelets.tls.clone().ok_or("this server has no identity to show to nodes")?;
        let server = ServerName::try_from(address.to_owned()).map_err(|e| e.to_string())?;
        let connect = async {
            let socket = TcpStream::connect((address, port)).await.map_err(|e| e.to_string())?;
            TlsConnector::from(tls).connect(server, socket).await.map_err(|e| e.to_string())
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| "connecting took too long")??;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        // Ends with the answer's body: when the client goes, the body is dropped and so is the connection.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a log's connection to its node ended");
            }
        });
        let request =
            Request::get(target).header("host", host).body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
        let answer = tokio::time::timeout(HEAD_TIMEOUT, sender.send_request(request)).await;
        answer.map_err(|_| "the node takes too long to answer".to_owned())?.map_err(|e| e.to_string())
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
