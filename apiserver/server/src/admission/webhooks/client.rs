//! How a webhook is called: HTTPS with the authority that its configuration names, over connections that are kept for the
//! next call. What answers badly costs its own caller a bounded time and a bounded piece of memory.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use machinery_serve::accept::keep_alive;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::auth::tls;

/// A byte stream to somebody.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Reaches the Services of the cluster.
pub trait Reach: Send + Sync {
    /// A connection to one of the endpoints of a Service's port.
    fn service<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Stream>, String>>;
}

/// The largest answer: a patch of the largest body, in base64, and as much again.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// What of a refusal is told.
const REFUSAL_BYTES_MAX: usize = 1024;
/// Connections to one hook that wait for their next call, and for how long.
const IDLE_MAX: usize = 8;
const IDLE_TIME_MAX: Duration = Duration::from_secs(60);

/// Where a hook listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Place {
    Address { host: String, port: u16 },
    Service { namespace: String, name: String, port: u16 },
}

/// One hook's end.
pub(super) struct HookClient {
    place: Place,
    /// `https://hook.example.com/a`
    url: String,
    /// Host and port, as in the URL.
    authority: String,
    path: String,
    server: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
    idle: Mutex<Vec<(Connection, Instant)>>,
}

type Connection = SendRequest<Full<Bytes>>;

/// The authorities of a bundle; the public ones where there is none.
fn roots(bundle: &str) -> Result<rustls::RootCertStore, String> {
    let mut roots = rustls::RootCertStore::empty();
    if bundle.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        return Ok(roots);
    }
    let unreadable = || "unable to load root certificates: unable to parse bytes as PEM block".to_owned();
    let pem = STANDARD.decode(bundle).map_err(|_| unreadable())?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.map_err(|_| unreadable())?).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() { Err(unreadable()) } else { Ok(roots) }
}

impl HookClient {
    /// Of a `clientConfig`.
    pub(super) fn new(config: &Value) -> Result<Self, String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let service = &config["service"];
        let (place, authority, path, host) = if service.is_object() {
            let (namespace, name) = (text(&service["namespace"]), text(&service["name"]));
            let port = u16::try_from(service["port"].as_u64().unwrap_or(443)).map_err(|error| error.to_string())?;
            let host = format!("{name}.{namespace}.svc");
            (Place::Service { namespace, name, port }, format!("{host}:{port}"), text(&service["path"]), host)
        } else {
            let url: http::Uri = text(&config["url"]).parse().map_err(|error| format!("Unparsable URL: {error}"))?;
            let authority = url.authority().ok_or("webhook configuration must have either service or URL")?.clone();
            let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
            let place = Place::Address { host: host.clone(), port: authority.port_u16().unwrap_or(443) };
            (place, authority.to_string(), url.path().to_owned(), host)
        };
        let path = format!("/{}", path.trim_matches('/'));
        let config = rustls::ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots(config["caBundle"].as_str().unwrap_or_default())?)
            .with_no_client_auth();
        let server = ServerName::try_from(host).map_err(|error| error.to_string())?;
        let url = format!("https://{authority}{path}");
        Ok(Self { place, url, authority, path, server, tls: Arc::new(config), idle: Mutex::default() })
    }

    /// Sends a review, and waits for the answer.
    ///
    /// # Errors
    /// Why there is none, as Go's client tells it.
    pub(super) async fn call(&self, reach: &dyn Reach, body: Bytes, timeout: Duration) -> Result<Bytes, String> {
        let asked = format!("?timeout={}s", timeout.as_secs());
        let post = |why: String| format!("Post \"{}{asked}\": {why}", self.url);
        let answered = tokio::time::timeout(timeout, self.ask(reach, body, &asked)).await;
        let (status, said) = answered.map_err(|_| post("context deadline exceeded".into()))?.map_err(post)?;
        match status.as_u16() {
            200..=299 => Ok(said),
            300..=399 => Err(post(format!("the webhook redirects ({status}), which is not followed"))),
            404 => Err("the server could not find the requested resource".into()),
            500.. => {
                let said = said.get(..said.len().min(REFUSAL_BYTES_MAX)).unwrap_or_default();
                let said = String::from_utf8_lossy(said).trim().to_owned();
                let said = machinery_api::selector::go_quoted(&said);
                Err(format!("an error on the server ({said}) has prevented the request from succeeding"))
            }
            _ => Err(format!("the server rejected our request for an unknown reason ({status})")),
        }
    }

    async fn ask(&self, reach: &dyn Reach, body: Bytes, query: &str) -> Result<(StatusCode, Bytes), String> {
        let mut request = Request::post(format!("{}{query}", self.path))
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        while let Some(mut connection) = self.take() {
            match connection.try_send_request(request).await {
                Ok(answer) => return self.read(connection, answer).await,
                // The hook closed it before anything was sent.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().to_string()),
                },
            }
        }
        let mut connection = self.connect(reach).await?;
        let answer = connection.send_request(request).await.map_err(|error| error.to_string())?;
        self.read(connection, answer).await
    }

    async fn read(
        &self,
        connection: Connection,
        answer: http::Response<hyper::body::Incoming>,
    ) -> Result<(StatusCode, Bytes), String> {
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| format!("reading the answer: {error}"))?.to_bytes();
        self.keep(connection);
        Ok((status, body))
    }

    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(connection, since)| since.elapsed() < IDLE_TIME_MAX && !connection.is_closed());
        let at = idle.iter().rposition(|(connection, _)| connection.is_ready())?;
        Some(idle.remove(at).0)
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && !connection.is_closed() {
            idle.push((connection, Instant::now()));
        }
    }

    async fn connect(&self, reach: &dyn Reach) -> Result<Connection, String> {
        let stream: Box<dyn Stream> = match &self.place {
            Place::Service { namespace, name, port } => reach.service(namespace, name, *port).await?,
            Place::Address { host, port } => {
                let socket = TcpStream::connect((host.as_str(), *port)).await;
                let socket = socket.map_err(|error| format!("dial tcp {host}:{port}: connect: {}", plain(&error)))?;
                keep_alive(&socket);
                Box::new(socket)
            }
        };
        let tls = TlsConnector::from(self.tls.clone()).connect(self.server.clone(), stream).await;
        let tls = tls.map_err(|error| tls_error(&error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await;
        let (sender, connection) = handshake.map_err(|error| error.to_string())?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a webhook ended");
            }
        });
        Ok(sender)
    }
}

/// As Go says it, without a number.
fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
        std::io::ErrorKind::ConnectionReset => "connection reset by peer".into(),
        _ => error.to_string(),
    }
}

fn tls_error(error: &std::io::Error) -> String {
    use rustls::CertificateError;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let why = match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "x509: certificate signed by unknown authority".to_owned()
        }
        Some(rustls::Error::InvalidCertificate(why)) => format!("x509: {why}"),
        Some(other) => return format!("tls: {other}"),
        None => return plain(error),
    };
    format!("tls: failed to verify certificate: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hooks_are_named_by_url_or_service() {
        let url = |config: Value| HookClient::new(&config).map(|client| (client.url, client.place));
        let service = |port| Place::Service { namespace: "n".into(), name: "s".into(), port };
        let address = |host: &str, port| Place::Address { host: host.into(), port };
        assert_eq!(
            url(json!({"service": {"namespace": "n", "name": "s", "port": 443}})),
            Ok(("https://s.n.svc:443/".into(), service(443)))
        );
        assert_eq!(
            url(json!({"service": {"namespace": "n", "name": "s", "port": 8443, "path": "/a/b/"}})),
            Ok(("https://s.n.svc:8443/a/b".into(), service(8443)))
        );
        assert_eq!(url(json!({"url": "https://[::1]:9/a"})), Ok(("https://[::1]:9/a".into(), address("::1", 9))));
        assert_eq!(
            url(json!({"url": "https://h.example"})),
            Ok(("https://h.example/".into(), address("h.example", 443)))
        );
        let bad = url(json!({"url": "https://h.example", "caBundle": "eA=="})).unwrap_err();
        assert_eq!(bad, "unable to load root certificates: unable to parse bytes as PEM block");
    }
}
