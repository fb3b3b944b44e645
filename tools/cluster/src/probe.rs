//! Requests to an API server: each has a deadline, and responses have a maximum size.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use kube::Client;
use kube::client::Body;
use machinery_client::causes::with_causes;
use machinery_client::from_config;
use machinery_env::Env;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kubeconfig::KubeconfigSource;

/// Deadline of each request: an overloaded API server answers its health checks before it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Deadline of the credentials: a kubeconfig may name a program that makes them.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum size of one response: a page of 500 large pods.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeError {
    /// The kubeconfig or its credentials can't be used.
    Credentials(String),
    /// The API server can't be reached, or breaks off its response.
    Unreachable(String),
    /// The API server doesn't answer in time.
    Timeout(Duration),
    /// The API server rejects the request.
    Rejected {
        /// The HTTP status code.
        code: u16,
        /// The message of the Status.
        message: String,
    },
    /// The response isn't the requested object.
    Form(String),
}

impl std::fmt::Display for ProbeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Credentials(why) | Self::Unreachable(why) => f.write_str(why),
            Self::Timeout(time) => write!(f, "no answer within {} s", time.as_secs()),
            Self::Rejected { message, .. } => f.write_str(message),
            Self::Form(why) => write!(f, "the answer can't be read: {why}"),
        }
    }
}

impl std::error::Error for ProbeError {}

impl ProbeError {
    /// Whether the user of the kubeconfig has no right to the request.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Rejected { code: 403, .. })
    }
}

/// A client of one API server.
#[derive(Clone)]
pub struct ApiProbe {
    client: Client,
    env: Env,
    /// `https://ADDR:PORT`
    pub server: String,
}

/// A response.
pub struct ProbeResponse {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, whole.
    pub body: Bytes,
}

impl ApiProbe {
    /// A client of the current context of a kubeconfig.
    ///
    /// # Errors
    /// [`ProbeError::Credentials`] or [`ProbeError::Timeout`].
    pub async fn of(env: &Env, kubeconfig: KubeconfigSource) -> Result<Self, ProbeError> {
        let (timers, env) = (env.clone(), env.clone());
        // A program that makes credentials blocks its thread.
        let made = tokio::task::spawn_blocking(move || connect(&env, kubeconfig));
        match timers.timeout(CREDENTIALS_TIMEOUT, made).await {
            Ok(Ok(made)) => made,
            Ok(Err(error)) => Err(ProbeError::Credentials(error.to_string())),
            Err(_) => Err(ProbeError::Timeout(CREDENTIALS_TIMEOUT)),
        }
    }

    /// The client, for requests without these limits.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Requests a path, whatever the status of the response.
    ///
    /// # Errors
    /// If there is no response in time.
    pub async fn request(&self, path: &str) -> Result<ProbeResponse, ProbeError> {
        let request = Request::get(path).body(Body::empty()).map_err(|error| ProbeError::Form(error.to_string()))?;
        let answered = async {
            let sent = self.client.send(request).await.map_err(|error| unreachable_because(&error))?;
            let (parts, body) = sent.into_parts();
            let body = Limited::new(body, RESPONSE_BYTES_MAX).collect().await;
            let body = body.map_err(|error| ProbeError::Unreachable(format!("the answer broke off: {error}")))?;
            Ok(ProbeResponse { status: parts.status, headers: parts.headers, body: body.to_bytes() })
        };
        self.env.timeout(REQUEST_TIMEOUT, answered).await.unwrap_or(Err(ProbeError::Timeout(REQUEST_TIMEOUT)))
    }

    /// Requests an object.
    ///
    /// # Errors
    /// As [`ApiProbe::request`], and if the status isn't 200 or the body isn't the object.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ProbeError> {
        let response = self.request(path).await?;
        if response.status != StatusCode::OK {
            return Err(rejection(response.status, &response.body));
        }
        serde_json::from_slice(&response.body).map_err(|error| ProbeError::Form(error.to_string()))
    }
}

fn connect(env: &Env, source: KubeconfigSource) -> Result<ApiProbe, ProbeError> {
    let failed = |error: &dyn std::error::Error| ProbeError::Credentials(with_causes(error));
    let config = tokio::runtime::Handle::current().block_on(source.read()).map_err(|error| failed(&error))?;
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let client = from_config(env, config).map_err(|error| failed(&error))?;
    Ok(ApiProbe { client, env: env.clone(), server })
}

fn unreachable_because(error: &kube::Error) -> ProbeError {
    ProbeError::Unreachable(with_causes(error))
}

/// The Status in a response, else its text.
fn rejection(status: StatusCode, body: &[u8]) -> ProbeError {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = json["message"].as_str().map_or_else(|| status.to_string(), str::to_owned);
    ProbeError::Rejected { code: status.as_u16(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_has_the_message_of_its_status() {
        let body = br#"{"kind": "Status", "message": "nodes is forbidden: User \"ada\"", "code": 403}"#;
        let error = rejection(StatusCode::FORBIDDEN, body);
        assert!(error.is_forbidden() && error.to_string().starts_with("nodes is forbidden"), "{error}");
        assert_eq!(rejection(StatusCode::BAD_GATEWAY, b"<html>").to_string(), "502 Bad Gateway");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_that_is_not_there_is_unreachable() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("kubeconfig");
        let missing = ApiProbe::of(&Env::real(), KubeconfigSource::Folder(file.clone())).await.err().unwrap();
        assert!(matches!(&missing, ProbeError::Credentials(why) if why.contains("kubeconfig")), "{missing}");
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let text = format!(
            "clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{token: t}}}}]\n\
             current-context: c\n"
        );
        std::fs::write(&file, text).unwrap();
        let probe =
            ApiProbe::of(&Env::real(), KubeconfigSource::File(file)).await.map_err(|error| error.to_string()).unwrap();
        assert_eq!(probe.server, format!("http://127.0.0.1:{port}"));
        let error = probe.request("/version").await.err().unwrap();
        assert!(matches!(&error, ProbeError::Unreachable(why) if why.contains("refused")), "{error}");
    }
}
