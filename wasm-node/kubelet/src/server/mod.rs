//! The kubelet API of a node: logs, pods, metrics and health, over TLS, with authorization by the API server.

mod auth;
mod logs;
mod metrics;
mod output;
mod pod_states;
mod pod_stream;
mod port_forward;
mod rates;
mod remote;
mod requests;
mod responses;
mod tls;
mod upgrade;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http_body_util::BodyExt as _;
use hyper_util::service::TowerToHyperService;
use images::Images;
use kube::Client;
use machinery_env::Env;
use machinery_serve::accept::{self, ConnectionPermit, Limit, Listener};
use machinery_serve::browsers::may_use_certificate;
use machinery_serve::descriptors::Descriptors;
use machinery_serve::net::PodNetwork;
use machinery_streaming::websocket::wants_websocket;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::pod::shared::PodViews;
use crate::pod::worker::PodSnapshot;
use auth::{Authority, Identity};
pub(crate) use rates::Rates;
pub(crate) use requests::Requests;
use runtime_api::Runtime;
pub use tls::ServingTls;

/// Maximum time of a handshake, and of a request's headers.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Default idle timeout of a session (upstream's `streamingConnectionIdleTimeout`).
pub const STREAMING_IDLE_DEFAULT: Duration = Duration::from_secs(4 * 3600);
/// The response to a page that uses a certificate in its user's browser.
const FOREIGN_PAGE: &str = "a page of another site must not use the browser's client certificate\n";
/// How long running responses may continue after the stop; a followed log has no end of its own.
const DRAIN: Duration = Duration::from_millis(500);

/// Why the kubelet API can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address can't be bound.
    #[error("the kubelet API cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// A certificate or key is invalid.
    #[error("the kubelet API's certificates cannot be used: {0}")]
    Tls(String),
}

/// The state of a node that the handlers use.
#[derive(Clone)]
pub(crate) struct Kubelet {
    pub(crate) node: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) pods: Arc<PodViews>,
    pub(crate) client: Client,
    pub(crate) env: Env,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) images: Arc<Images>,
    pub(crate) network: PodNetwork,
    /// Idle timeout of sessions.
    pub(crate) streaming_idle: Duration,
    /// CPU rates.
    pub(crate) rates: Arc<Rates>,
    /// Metrics of this API's requests.
    pub(crate) requests: Requests,
    /// Cancels sessions and followed logs.
    pub(crate) stop: CancellationToken,
}

impl Kubelet {
    /// Returns the pod of a name: the newer one if a terminating pod has a successor.
    fn pod(&self, namespace: &str, name: &str) -> Option<PodSnapshot> {
        let all = self.pods.all().into_iter().map(|view| view.snapshot());
        let named = all.filter(|seen| seen.id.namespace == namespace && seen.id.name == name);
        named.max_by_key(|seen| seen.id.created)
    }
}

/// Binds the kubelet API of a node.
pub(crate) fn bind(node: &str, address: SocketAddr) -> Result<Listener, ServerError> {
    Listener::bind_own(&format!("kubelet/{node}"), address).map_err(|source| ServerError::Bind { address, source })
}

/// Serves until `stop`.
pub(crate) fn serve(
    listener: Listener,
    with: &ServingTls,
    kubelet: Kubelet,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + use<>, ServerError> {
    let acceptor = with.acceptor()?;
    let env = kubelet.env.clone();
    let measured = kubelet.clone();
    let authority = Arc::new(Authority::new(kubelet.client.clone(), kubelet.env.clone(), kubelet.node.clone()));
    let router = Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/pods", get(pods))
        .route("/metrics", get(metrics::metrics))
        .route("/metrics/resource", get(metrics::resource))
        .route("/stats/summary", get(metrics::summary))
        .route("/stats/responses/{namespace}", get(responses::stats))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::get))
        .route("/attach/{namespace}/{pod}/{container}", get(remote::attach).post(remote::attach))
        .route("/exec/{namespace}/{pod}/{container}", get(remote::exec).post(remote::exec))
        .route("/portForward/{namespace}/{pod}", get(port_forward::upgrade).post(port_forward::upgrade))
        .route("/podStream/{namespace}/{pod}/{port}", get(pod_stream::upgrade))
        .fallback(async || (StatusCode::NOT_FOUND, "404 page not found\n"))
        .layer(from_fn_with_state(authority, authorize))
        .layer(from_fn_with_state(kubelet.requests.clone(), count))
        .with_state(kubelet);
    Ok(async move {
        let sampled = metrics::sample(&measured, &stop);
        let limit = Limit::new(Descriptors::process().node_seats(), "kubelet");
        let each = |stream, _, permit, ending| {
            connection(stream, permit, acceptor.clone(), router.clone(), env.clone(), ending)
        };
        tokio::join!(accept::serve(listener, limit, Some(DRAIN), &env, &stop, each), sampled);
    })
}

async fn connection(
    stream: TcpStream,
    permit: Arc<ConnectionPermit>,
    acceptor: TlsAcceptor,
    router: Router,
    env: Env,
    ending: CancellationToken,
) {
    let shaken = tokio::select! {
        () = accept::end_of_handshake(&env, &ending) => return,
        shaken = env.timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)) => shaken,
    };
    let Ok(Ok(stream)) = shaken else { return };
    let peer = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = peer.and_then(|certificate| Identity::of_certificate(certificate));
    let router = router.layer(axum::Extension(identity)).layer(axum::Extension(permit));
    if let Err(error) =
        machinery_serve::connection::serve(stream, &env, TowerToHyperService::new(router), &ending).await
    {
        tracing::debug!(error, "a connection to the kubelet ended");
    }
}

/// A session keeps its request alive until it ends, a response until its body is sent.
async fn count(State(requests): State<Requests>, mut request: Request, next: Next) -> Response {
    let by_websocket = wants_websocket(request.headers());
    let under_way = Arc::new(requests.begin(request.method(), request.uri(), by_websocket));
    request.extensions_mut().insert(under_way.clone());
    next.run(request).await.map(|body| {
        axum::body::Body::new(body.map_frame(move |frame| {
            let _held = &under_way;
            frame
        }))
    })
}

async fn authorize(State(authority): State<Arc<Authority>>, request: Request, next: Next) -> Response {
    let permit = request.extensions().get::<Arc<ConnectionPermit>>().cloned();
    let certificate = request.extensions().get::<Option<Identity>>().cloned().flatten();
    if certificate.is_some() && !may_use_certificate(request.headers(), request.uri()) {
        return (StatusCode::FORBIDDEN, FOREIGN_PAGE).into_response();
    }
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .map(|token| token.trim().to_owned());
    match authority.check(certificate, token, request.method(), request.uri().path()).await {
        Ok(()) => {
            if let Some(permit) = permit {
                permit.mark_authenticated();
            }
            next.run(request).await
        }
        Err((status, message)) => (status, message).into_response(),
    }
}

fn json(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

async fn pods(State(kubelet): State<Kubelet>) -> Response {
    let items: Vec<Value> = kubelet
        .pods
        .all()
        .iter()
        .map(|view| {
            let seen = view.snapshot();
            let mut pod = serde_json::to_value(&*seen.pod.get()).unwrap_or_default();
            pod["status"] = serde_json::to_value(&*seen.status.get()).unwrap_or_default();
            pod
        })
        .collect();
    json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::Body;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    use tower::ServiceExt as _;

    use super::*;

    /// The attacker has a page that is open in an administrator's browser, which adds its user's certificate to the page's
    /// requests, a WebSocket among them. It adds no bearer token.
    #[tokio::test]
    async fn no_page_of_another_site_uses_a_browsers_certificate() {
        let review = |_: axum::http::Request<_>| async {
            let status = json!({"allowed": true, "authenticated": true, "user": {"username": "ada"}});
            Ok::<_, Infallible>(Response::new(Body::from(json!({ "status": status }).to_string())))
        };
        let client = Client::new(tower::service_fn(review), "default");
        let authority = Arc::new(Authority::new(client, Env::real(), "n".into()));
        let router = Router::new()
            .route("/exec/default/p/c", get(async || "ok").post(async || "ok"))
            .layer(from_fn_with_state(authority, authorize));
        let ada = CertificateDer::from_pem_slice(include_bytes!("testdata/one.crt")).unwrap();
        let ada = Some(Identity::of_certificate(&ada).unwrap());
        for (header, by_certificate) in [
            (("origin", "https://evil.example"), 403),
            (("origin", "null"), 403),
            (("sec-fetch-site", "cross-site"), 403),
            (("origin", "https://10.0.0.7:10250"), 200),
            (("accept", "*/*"), 200),
        ] {
            for method in ["GET", "POST"] {
                let code = async |identity: Option<Identity>| {
                    let request = Request::builder().method(method).uri("/exec/default/p/c").header(header.0, header.1);
                    let request = match &identity {
                        Some(_) => request.header("upgrade", "websocket").header("connection", "Upgrade"),
                        None => request.header("authorization", "Bearer a"),
                    };
                    let request = request.header("host", "10.0.0.7:10250").extension(identity).body(Body::empty());
                    router.clone().oneshot(request.unwrap()).await.unwrap().status().as_u16()
                };
                assert_eq!((code(ada.clone()).await, code(None).await), (by_certificate, 200), "{method} {header:?}");
            }
        }
    }
}
