//! How a component reaches the apiserver: a `kube::Client`, remote or over an in-process service.
//!
//! Both ends look the same to the component: the same requests and the same answers. In process there is no socket and
//! no TLS, and the identity is a typed request extension that the composition root puts in, never a header.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Request, Response};
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tower::{Service, ServiceExt as _};

/// How long the head of an answer may take. Above the apiserver's own limit of 60 s, so that its answer wins.
const RESPONSE_HEAD_TIMEOUT: Duration = Duration::from_secs(65);
/// How long a body may be silent. Watches end by themselves before that (their `timeoutSeconds`), and a
/// server sends bookmarks about once a minute.
const BODY_SILENCE_TIMEOUT: Duration = Duration::from_secs(605);
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig can't be read or understood: which, and why, without a piece of it.
    #[error("the kubeconfig {} cannot be used: {}", .0.display(), .1)]
    Kubeconfig(PathBuf, String),
    /// The client can't be built from it (certificates, keys).
    #[error("the client cannot be built")]
    Build(#[source] Box<kube::Error>),
}

/// No answer within the time allowed.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} s", .0.as_secs())]
struct Late(Duration);

/// A client over a service of this process. `map_request` gives the request the service's body type and puts the
/// caller's identity into its extensions. To be called within a tokio runtime.
pub fn in_process<S, Q, B, F>(service: S, mut map_request: F) -> Client
where
    S: Service<Request<Q>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<tower::BoxError>,
    Q: 'static,
    F: FnMut(Request<Body>) -> Request<Q> + Send + 'static,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<tower::BoxError>,
{
    let service = service.map_request(move |request: Request<Body>| map_request(request));
    Client::new(Timed(service), "default")
}

/// A client for the cluster that the kubeconfig's current context names.
///
/// # Errors
/// When the file can't be read, or what it names (certificates, keys) can't be used.
pub async fn from_kubeconfig(path: impl AsRef<Path>) -> Result<Client, ClientError> {
    from_config(read_kubeconfig(path).await?)
}

/// The same for a program that writes under this name: who manages the fields that it sets.
///
/// # Errors
/// As [`from_kubeconfig`].
pub async fn from_kubeconfig_as(path: impl AsRef<Path>, agent: &'static str) -> Result<Client, ClientError> {
    let mut config = read_kubeconfig(path).await?;
    config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static(agent)));
    from_config(config)
}

async fn read_kubeconfig(path: impl AsRef<Path>) -> Result<Config, ClientError> {
    let path = path.as_ref();
    let failed = |error: KubeconfigError| ClientError::Kubeconfig(path.to_owned(), told(path, &error));
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)
}

/// What is the matter with a kubeconfig. The parser would show the lines around a mistake, and it has keys and tokens.
fn told(path: &Path, error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::ReadConfig(error, _) => error.to_string(),
        KubeconfigError::Parse(_) => {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let why = machinery_api::yaml::read::<Kubeconfig>(&text).err();
            why.unwrap_or_else(|| "it is no YAML of that form".to_owned())
        }
        other => other.to_string(),
    }
}

/// A client for a configuration that was put together elsewhere.
///
/// # Errors
/// When the certificates or keys in it can't be used.
pub fn from_config(mut config: Config) -> Result<Client, ClientError> {
    // Fails only when another part of the process was first, with the same provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(BODY_SILENCE_TIMEOUT);
    // Whoever asks decides about trying again: the queue and the watches have back-offs of their own.
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config).map_err(|e| ClientError::Build(Box::new(e)))?;
    Ok(builder.with_layer(&tower::layer::layer_fn(Timed)).build())
}

/// Bounds the wait for an answer's head.
struct Timed<S>(S);

impl<S, B> Service<Request<Body>> for Timed<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<tower::BoxError>,
    B: 'static,
{
    type Response = S::Response;
    type Error = tower::BoxError;
    type Future = futures::future::BoxFuture<'static, Result<S::Response, tower::BoxError>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            match tokio::time::timeout(RESPONSE_HEAD_TIMEOUT, answer).await {
                Ok(answer) => answer.map_err(Into::into),
                Err(_) => Err(Late(RESPONSE_HEAD_TIMEOUT).into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;
    use k8s_openapi::api::core::v1::Namespace;
    use kube::Api;

    #[derive(Clone)]
    struct Identity(&'static str);

    #[tokio::test]
    async fn a_service_of_this_process_sees_the_identity() {
        let service = tower::service_fn(|request: Request<String>| async move {
            let who = request.extensions().get::<Identity>().map_or("nobody", |i| i.0);
            let body = format!(r#"{{"kind":"Namespace","apiVersion":"v1","metadata":{{"name":"{who}"}}}}"#);
            Ok::<_, std::convert::Infallible>(Response::new(Full::new(bytes::Bytes::from(body))))
        });
        let client = in_process(service, |request| {
            let (mut head, _) = request.into_parts();
            head.extensions.insert(Identity("robot"));
            Request::from_parts(head, String::new())
        });
        let found = Api::<Namespace>::all(client).get("x").await.unwrap();
        assert_eq!(found.metadata.name.as_deref(), Some("robot"));
    }

    #[tokio::test]
    async fn a_kubeconfig_that_cannot_be_used_is_told_without_what_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let told = || async { from_kubeconfig(&path).await.map(|_| ()).unwrap_err().to_string() };
        let absent = told().await;
        assert!(absent.ends_with("config cannot be used: No such file or directory (os error 2)"), "{absent}");
        for text in ["users:\n- name: me\n  user: {token: hush-hush\n", "users: hush-hush", "hush-hush: [1"] {
            std::fs::write(&path, text).unwrap();
            let told = told().await;
            assert!(told.contains("cannot be used: ") && !told.contains("hush") && !told.contains('\n'), "{told}");
        }
    }
}
