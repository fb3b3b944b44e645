//! How a webhook is asked: HTTPS with the authority that its configuration names, over connections that are kept for the
//! next time. No redirect is followed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use machinery_serve::accept::keep_alive;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::Caller;
use super::accounts::{Account, Accounts};
use super::answers::Answer;
use super::verifier::verifier;
use crate::auth::tls;
use crate::request::deadline;

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

/// What of a refusal is told.
const REFUSAL_BYTES_MAX: usize = 1024;
/// What is left of a request's time when a hook has been waited for.
const TELL_TIME: Duration = Duration::from_millis(50);
/// Connections to one hook that wait for their next call, and for how long.
const IDLE_MAX: usize = 8;
const IDLE_TIME_MAX: Duration = Duration::from_secs(60);

/// Where a hook listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Place {
    Address { host: String, port: u16 },
    Service { namespace: String, name: String, port: u16 },
}

/// What is asked, and what it may cost.
pub(crate) struct Ask {
    pub(crate) body: Bytes,
    /// How long it may take, below what is left of the request's own time.
    pub(crate) timeout: Duration,
    /// Whether the hook is told how long (`?timeout=`).
    pub(crate) tells_timeout: bool,
    /// How many bytes it may answer.
    pub(crate) answer_max: usize,
}

/// Why nothing was answered, and the code that stands for it.
#[derive(Debug)]
pub(crate) struct Unanswered {
    pub(crate) why: String,
    pub(crate) code: u16,
}

/// One hook's end.
pub(crate) struct Client {
    place: Place,
    /// `https://hook.example.com/a`
    url: String,
    /// Host and port, as in the URL.
    authority: String,
    path: String,
    server: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
    /// As whom it is asked; nobody where there is none.
    account: Option<Arc<Account>>,
    idle: Mutex<Vec<(Connection, Instant)>>,
}

type Connection = SendRequest<Full<Bytes>>;

/// Who is trusted by a bundle; the public authorities where there is none.
fn trusted(bundle: &str) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let mut roots = rustls::RootCertStore::empty();
    if bundle.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        return verifier(roots, Vec::new());
    }
    let unreadable = || "unable to load root certificates: unable to parse bytes as PEM block".to_owned();
    let pem = STANDARD.decode(bundle).map_err(|_| unreadable())?;
    let mut themselves = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| unreadable())?;
        roots.add(certificate.clone()).map_err(|error| error.to_string())?;
        themselves.push(certificate);
    }
    if roots.is_empty() { Err(unreadable()) } else { verifier(roots, themselves) }
}

impl Client {
    /// Of a `clientConfig`, asked as one of some users.
    pub(crate) fn new(config: &Value, accounts: &Accounts) -> Result<Self, String> {
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
        let (Place::Address { port, .. } | Place::Service { port, .. }) = &place;
        let account = accounts.of(&host, *port).cloned();
        let config = rustls::ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(trusted(config["caBundle"].as_str().unwrap_or_default())?);
        let config = match account.as_ref().and_then(|account| account.certificate()) {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(|error| error.to_string())?,
            None => config.with_no_client_auth(),
        };
        let server = ServerName::try_from(host).map_err(|error| error.to_string())?;
        let url = format!("https://{authority}{path}");
        Ok(Self { place, url, authority, path, server, tls: Arc::new(config), account, idle: Mutex::default() })
    }

    /// Sends a review, and waits for the answer.
    ///
    /// # Errors
    /// Why there is none, as Go's client tells it.
    pub(crate) async fn post(&self, caller: &Caller, ask: Ask) -> Result<Answer, Unanswered> {
        let now = Instant::now();
        let end = deadline::of_request().map_or(now + ask.timeout, |end| end.min(now + ask.timeout));
        // That the hook was late is told within the request's time.
        let until = end - TELL_TIME.min((end - now) / 10);
        let query = match ask.tells_timeout {
            // Not less than there is.
            true => format!("?timeout={}s", (end - now).as_millis().div_ceil(1000)),
            false => String::new(),
        };
        let post = |why: String| Unanswered { why: format!("Post \"{}{query}\": {why}", self.url), code: 503 };
        let answered = tokio::time::timeout_at(until, self.ask(caller, ask.body, &query, ask.answer_max)).await;
        let (status, said) = answered.map_err(|_| post("context deadline exceeded".into()))?.map_err(post)?;
        let why = match status.as_u16() {
            200..=299 => return Ok(said),
            300..=399 => return Err(post(format!("the webhook redirects ({status}), which is not followed"))),
            404 => "the server could not find the requested resource".into(),
            500.. => {
                let said = said.bytes.get(..said.bytes.len().min(REFUSAL_BYTES_MAX)).unwrap_or_default();
                let said = String::from_utf8_lossy(said).trim().to_owned();
                let said = machinery_api::selector::go_quoted(&said);
                format!("an error on the server ({said}) has prevented the request from succeeding")
            }
            _ => format!("the server rejected our request for an unknown reason ({status})"),
        };
        Err(Unanswered { why, code: status.as_u16() })
    }

    async fn ask(
        &self,
        caller: &Caller,
        body: Bytes,
        query: &str,
        answer_max: usize,
    ) -> Result<(StatusCode, Answer), String> {
        let mut request = Request::post(format!("{}{query}", self.path))
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        if let Some(account) = &self.account {
            request.headers_mut().extend(account.headers().await?);
        }
        while let Some(mut connection) = self.take() {
            match connection.try_send_request(request).await {
                Ok(answer) => return self.read(caller, connection, answer, answer_max).await,
                // The hook closed it before anything was sent.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().to_string()),
                },
            }
        }
        let mut connection = self.connect(&*caller.reach).await?;
        let answer = connection.send_request(request).await.map_err(|error| error.to_string())?;
        self.read(caller, connection, answer, answer_max).await
    }

    async fn read(
        &self,
        caller: &Caller,
        connection: Connection,
        answer: http::Response<hyper::body::Incoming>,
        answer_max: usize,
    ) -> Result<(StatusCode, Answer), String> {
        let status = answer.status();
        let said = caller.room.read(answer.into_body(), answer_max).await?;
        self.keep(connection);
        Ok((status, said))
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
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(why)))
            if why.to_string().contains("CaUsedAsEndEntity") =>
        {
            "x509: the server shows the certificate of an authority (CA:TRUE), which is taken only if it stands in the \
             caBundle itself"
                .to_owned()
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
        let url = |config: Value| Client::new(&config, &Accounts::default()).map(|client| (client.url, client.place));
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
