//! Builds a `kube::Client`, for a remote API server or for a service of this process.
//!
//! Both variants have the same requests and responses. In process there is no socket and no TLS; the identity is a
//! typed request extension from the composition root, never a header.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Request, Response};
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use machinery_env::Env;
use tower::{Service, ServiceExt as _};

/// Timeout of a response's head. Above the API server's own limit of 60 s, so that the server's response arrives first.
const RESPONSE_HEAD_TIMEOUT: Duration = Duration::from_secs(65);
/// Timeout of a silent body. Watches end before it (their `timeoutSeconds`), and a server sends bookmarks about once a
/// minute.
const BODY_SILENCE_TIMEOUT: Duration = Duration::from_secs(605);
/// Timeout of connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a client can't be built.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig can't be read or parsed: path and reason, without any of its content.
    #[error("the kubeconfig {} cannot be used: {}", .0.display(), .1)]
    Kubeconfig(PathBuf, String),
    /// The certificates or keys can't be used.
    #[error("the client cannot be built")]
    Build(#[source] Box<kube::Error>),
}

/// The response took too long.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} s", .0.as_secs())]
struct HeadTimeout(Duration);

/// A client of a service in this process. `map_request` converts the request's body type and adds the caller's identity
/// to its extensions. Must be called within a tokio runtime.
pub fn in_process<S, Q, B, F>(env: &Env, service: S, mut map_request: F) -> Client
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
    Client::new(WithHeadTimeout(service, env.clone()), "default")
}

/// A client of the cluster of a kubeconfig's current context.
///
/// # Errors
/// If the file can't be read, or its certificates or keys can't be used.
pub async fn from_kubeconfig(env: &Env, path: impl AsRef<Path>) -> Result<Client, ClientError> {
    from_config(env, read_kubeconfig(path).await?)
}

/// As [`from_kubeconfig`], with a user agent: the field manager of its writes.
///
/// # Errors
/// As [`from_kubeconfig`].
pub async fn from_kubeconfig_as(env: &Env, path: impl AsRef<Path>, agent: &'static str) -> Result<Client, ClientError> {
    let mut config = read_kubeconfig(path).await?;
    config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static(agent)));
    from_config(env, config)
}

/// The configuration in a kubeconfig's current context.
///
/// # Errors
/// If the file can't be read.
pub async fn read_kubeconfig(path: impl AsRef<Path>) -> Result<Config, ClientError> {
    let path = path.as_ref();
    let failed =
        |error: KubeconfigError| ClientError::Kubeconfig(path.to_owned(), describe_kubeconfig_error(path, &error));
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)
}

/// Describes an error in a kubeconfig. The parser's own message would quote the lines around it, with keys and tokens.
fn describe_kubeconfig_error(path: &Path, error: &KubeconfigError) -> String {
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

/// A client of a given configuration.
///
/// # Errors
/// If its certificates or keys can't be used.
pub fn from_config(env: &Env, mut config: Config) -> Result<Client, ClientError> {
    // Fails only if another part of the process has installed the same provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(BODY_SILENCE_TIMEOUT);
    // Retries are the callers': queue and reflectors have their own back-off.
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config).map_err(|e| ClientError::Build(Box::new(e)))?;
    let with_timeout = tower::layer::layer_fn(|service| WithHeadTimeout(service, env.clone()));
    Ok(builder.with_layer(&with_timeout).build())
}

/// Adds a timeout to the response's head.
struct WithHeadTimeout<S>(S, Env);

impl<S, B> Service<Request<Body>> for WithHeadTimeout<S>
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
        let (answer, env) = (self.0.call(request), self.1.clone());
        Box::pin(async move {
            match env.timeout(RESPONSE_HEAD_TIMEOUT, answer).await {
                Ok(answer) => answer.map_err(Into::into),
                Err(_) => Err(HeadTimeout(RESPONSE_HEAD_TIMEOUT).into()),
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
        let client = in_process(&Env::real(), service, |request| {
            let (mut head, _) = request.into_parts();
            head.extensions.insert(Identity("robot"));
            Request::from_parts(head, String::new())
        });
        let found = Api::<Namespace>::all(client).get("x").await.unwrap();
        assert_eq!(found.metadata.name.as_deref(), Some("robot"));
    }

    #[tokio::test]
    async fn an_unusable_kubeconfig_is_reported_without_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let failure = || async { from_kubeconfig(&Env::real(), &path).await.map(|_| ()).unwrap_err().to_string() };
        let absent = failure().await;
        assert!(absent.ends_with("config cannot be used: No such file or directory (os error 2)"), "{absent}");
        for text in ["users:\n- name: me\n  user: {token: hush-hush\n", "users: hush-hush", "hush-hush: [1"] {
            std::fs::write(&path, text).unwrap();
            let reported = failure().await;
            assert!(
                reported.contains("cannot be used: ") && !reported.contains("hush") && !reported.contains('\n'),
                "{reported}"
            );
        }
    }
}
