//! Requests to an API server: each has a deadline, and responses have a maximum size.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use machinery_client::causes::with_causes;
use machinery_client::{from_config, read_kubeconfig};
use machinery_env::Env;
use serde::de::DeserializeOwned;
use serde_json::Value;

use tools_command::data_dir::DataDir;
use tools_command::environment::paths_of;
use tools_command::packaged;

/// Deadline of each request: an overloaded API server answers its health checks before it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Deadline of the credentials: a kubeconfig may name a program that makes them.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum size of one response: a page of 500 large pods.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProbeError {
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
    pub(crate) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Rejected { code: 403, .. })
    }
}

/// Where a kubeconfig is.
#[derive(Debug, Clone)]
pub(crate) enum KubeconfigSource {
    /// The file in a data folder: the server is of this machine.
    Folder(PathBuf),
    /// Another file.
    File(PathBuf),
    /// The files in the variable KUBECONFIG, else kubectl's default.
    Variable,
}

impl KubeconfigSource {
    /// The file of a flag, else that of the data folder, else those that kubectl uses.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn choose(flag: Option<&Path>, data: &DataDir) -> anyhow::Result<Self> {
        let of_home = || directories::BaseDirs::new().is_some_and(|dirs| dirs.home_dir().join(".kube/config").exists());
        let has_kubectls = !paths_of("KUBECONFIG").is_empty() || of_home();
        match flag {
            Some(file) => Ok(Self::File(file.to_owned())),
            None if data.kubeconfig().exists() => Ok(Self::Folder(data.kubeconfig())),
            None if has_kubectls => Ok(Self::Variable),
            None => anyhow::bail!("{}, or a kubeconfig with --kubeconfig", packaged::no_cluster(data.path())),
        }
    }
}

/// A client of one API server.
#[derive(Clone)]
pub(crate) struct ApiProbe {
    client: Client,
    env: Env,
    /// `https://ADDR:PORT`
    pub(crate) server: String,
}

/// A response.
pub(crate) struct ProbeResponse {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl ApiProbe {
    /// A client of the current context of a kubeconfig.
    ///
    /// # Errors
    /// [`ProbeError::Credentials`] or [`ProbeError::Timeout`].
    pub(crate) async fn of(env: &Env, kubeconfig: KubeconfigSource) -> Result<Self, ProbeError> {
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
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Requests a path, whatever the status of the response.
    ///
    /// # Errors
    /// If there is no response in time.
    pub(crate) async fn request(&self, path: &str) -> Result<ProbeResponse, ProbeError> {
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
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ProbeError> {
        let response = self.request(path).await?;
        if response.status != StatusCode::OK {
            return Err(rejection(response.status, &response.body));
        }
        serde_json::from_slice(&response.body).map_err(|error| ProbeError::Form(error.to_string()))
    }
}

fn connect(env: &Env, source: KubeconfigSource) -> Result<ApiProbe, ProbeError> {
    let failed = |error: &dyn std::error::Error| ProbeError::Credentials(with_causes(error));
    let runtime = tokio::runtime::Handle::current();
    let config = match source {
        KubeconfigSource::Folder(file) => {
            let mut config = runtime.block_on(read_kubeconfig(file)).map_err(|error| failed(&error))?;
            // The server is local: no proxy.
            config.proxy_url = None;
            config
        }
        KubeconfigSource::File(file) => runtime.block_on(read_kubeconfig(file)).map_err(|error| failed(&error))?,
        KubeconfigSource::Variable => {
            let options = KubeConfigOptions::default();
            runtime.block_on(Config::from_kubeconfig(&options)).map_err(|error| failed(&error))?
        }
    };
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
    fn the_flag_precedes_the_data_folder() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::at(temp.path().to_owned());
        std::fs::write(data.kubeconfig(), "").unwrap();
        let of = |flag: Option<&str>| format!("{:?}", KubeconfigSource::choose(flag.map(Path::new), &data).unwrap());
        assert!(of(Some("/other")).starts_with("File(") && of(None).starts_with("Folder("));
    }

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
