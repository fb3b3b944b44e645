//! The HTTPS client of webhooks: verifies the CA of the webhook's configuration and reuses connections. Redirects are
//! not followed.

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
use machinery_env::{Env, task_deadline};
use machinery_serve::dial;
use machinery_serve::dial::idle::{IdleConnections, IdleLimits, WhenFull};
use machinery_serve::dial::tls::{ClientTls, Identity};
use machinery_serve::dial::trust::Trust;
use machinery_serve::trace::{self, Parent, Span, SpanKind};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Caller;
use super::accounts::{Account, Accounts};
use super::responses::WebhookResponse;

/// The limits of idle connections per webhook.
const IDLE: IdleLimits = IdleLimits {
    per_key_max: 8,
    max: 8,
    idle_max: Duration::from_secs(60),
    age_max: Duration::MAX,
    when_full: WhenFull::ClosesReturned,
};

/// A bidirectional byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Connects to Services of the cluster.
pub trait ServiceDialer: Send + Sync {
    /// Connects to one of the endpoints of a Service's port.
    fn dial<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Stream>, String>>;
}

/// The maximum length of an error response in a message.
const ERROR_BYTES_MAX: usize = 1024;
/// The part of the request's timeout reserved for the error response.
const ERROR_RESERVE: Duration = Duration::from_millis(50);

/// The target of a webhook.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum WebhookTarget {
    Address { host: String, port: u16 },
    Service { namespace: String, name: String, port: u16 },
}

/// A call and its limits.
pub struct WebhookRequest {
    /// The review as JSON.
    pub body: Bytes,
    /// The maximum duration, capped by the remaining time of the request.
    pub timeout: Duration,
    /// The maximum size of the response.
    pub response_bytes_max: usize,
}

/// A failed call, with its status code for metrics.
#[derive(Debug)]
pub struct CallError {
    /// The cause, in upstream's words where it has some.
    pub why: String,
    /// The status code of the response; 503 without one.
    pub code: u16,
}

/// The client of one webhook.
pub struct Client {
    target: WebhookTarget,
    /// For example `https://hook.example.com/a`.
    url: String,
    /// Host and port, as in the URL.
    authority: String,
    path: String,
    server: ServerName<'static>,
    tls: ClientTls,
    /// The credentials; `None` for anonymous calls.
    account: Option<Arc<Account>>,
    idle: Mutex<IdleConnections<(), Connection>>,
}

type Connection = SendRequest<Full<Bytes>>;

/// The trust in a CA bundle, in its authorities and in its certificates themselves; without one, the public authorities are
/// trusted.
fn trust_of(bundle: &str) -> Result<Trust, String> {
    let mut roots = rustls::RootCertStore::empty();
    if bundle.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        return Trust::authorities(roots).map_err(|error| error.to_string());
    }
    let unreadable = || "unable to load root certificates: unable to parse bytes as PEM block".to_owned();
    let pem = STANDARD.decode(bundle).map_err(|_| unreadable())?;
    let mut leaves = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| unreadable())?;
        roots.add(certificate.clone()).map_err(|error| error.to_string())?;
        leaves.push(certificate);
    }
    if roots.is_empty() {
        return Err(unreadable());
    }
    Trust::authorities_or_listed(roots, leaves).map_err(|error| error.to_string())
}

impl Client {
    /// Builds a client from a `clientConfig` and the credentials of its host.
    pub fn new(config: &Value, accounts: &Accounts) -> Result<Self, String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let service = &config["service"];
        let (target, authority, path, host) = if service.is_object() {
            let (namespace, name) = (text(&service["namespace"]), text(&service["name"]));
            let port = u16::try_from(service["port"].as_u64().unwrap_or(443)).map_err(|error| error.to_string())?;
            let host = format!("{name}.{namespace}.svc");
            (WebhookTarget::Service { namespace, name, port }, format!("{host}:{port}"), text(&service["path"]), host)
        } else {
            let url: http::Uri = text(&config["url"]).parse().map_err(|error| format!("Unparsable URL: {error}"))?;
            let authority = url.authority().ok_or("webhook configuration must have either service or URL")?.clone();
            let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
            let target = WebhookTarget::Address { host: host.clone(), port: authority.port_u16().unwrap_or(443) };
            (target, authority.to_string(), url.path().to_owned(), host)
        };
        let path = format!("/{}", path.trim_matches('/'));
        let (WebhookTarget::Address { port, .. } | WebhookTarget::Service { port, .. }) = &target;
        let account = accounts.for_host(&host, *port).cloned();
        let trust = trust_of(config["caBundle"].as_str().unwrap_or_default())?;
        let identity = match account.as_ref().and_then(|account| account.certificate()) {
            Some((chain, key)) => Identity::Fixed(chain, key),
            None => Identity::Anonymous,
        };
        let tls = ClientTls::new(trust, identity).map_err(|error| error.to_string())?;
        let server = ServerName::try_from(host).map_err(|error| error.to_string())?;
        let url = format!("https://{authority}{path}");
        let idle = Mutex::new(IdleConnections::new(IDLE));
        Ok(Self { target, url, authority, path, server, tls, account, idle })
    }

    /// Sends a review and waits for the response.
    ///
    /// # Errors
    /// Returns the error in the form of Go's client.
    pub async fn post(&self, caller: &Caller, request: WebhookRequest) -> Result<WebhookResponse, CallError> {
        let now = caller.env.instant();
        let end = now + request.timeout;
        let end = task_deadline().map_or(end, |of_task| of_task.instant().min(end));
        // Leaves time to report a timeout within the request's own.
        let until = end - ERROR_RESERVE.min((end - now) / 10);
        // Rounded up.
        let query = format!("?timeout={}s", (end - now).as_millis().div_ceil(1000));
        let post = |why: String| CallError { why: format!("Post \"{}{query}\": {why}", self.url), code: 503 };
        let span = self.span();
        let sent = span.within(self.send(caller, request.body, &query, request.response_bytes_max));
        let sent = caller.env.timeout_at(until, sent).await;
        let sent = sent.unwrap_or_else(|_| Err("context deadline exceeded".into()));
        let (status, response) = sent.inspect_err(|why| span.fail(why.clone())).map_err(post)?;
        span.set("http.response.status_code", i64::from(status.as_u16()));
        let why = match status.as_u16() {
            200..=299 => return Ok(response),
            300..=399 => return Err(post(format!("the webhook redirects ({status}), which is not followed"))),
            404 => "the server could not find the requested resource".into(),
            500.. => {
                let response = response.bytes.get(..response.bytes.len().min(ERROR_BYTES_MAX)).unwrap_or_default();
                let response = String::from_utf8_lossy(response).trim().to_owned();
                let response = machinery_api::selector::go_quoted(&response);
                format!("an error on the server ({response}) has prevented the request from succeeding")
            }
            _ => format!("the server rejected our request for an unknown reason ({status})"),
        };
        Err(CallError { why, code: status.as_u16() })
    }

    /// The span of a call, below that of the API request; its context is sent to the webhook.
    fn span(&self) -> Span {
        if !trace::in_scope() {
            return Span::NONE;
        }
        let span = Span::start(SpanKind::Client, Parent::Scope, || format!("POST {}", self.authority).into());
        span.set("http.request.method", "POST");
        span.set_text("url.full", || self.url.clone());
        span
    }

    async fn send(
        &self,
        caller: &Caller,
        body: Bytes,
        query: &str,
        response_bytes_max: usize,
    ) -> Result<(StatusCode, WebhookResponse), String> {
        let mut request = Request::post(format!("{}{query}", self.path))
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        if let Some(account) = &self.account {
            request.headers_mut().extend(account.headers(&caller.env).await?);
        }
        trace::inject_scope(request.headers_mut());
        while let Some(mut connection) = self.take_idle(&caller.env) {
            match connection.try_send_request(request).await {
                Ok(response) => return self.read_response(caller, connection, response, response_bytes_max).await,
                // The webhook closed the connection before the request was sent.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().to_string()),
                },
            }
        }
        let mut connection = self.connect(&*caller.service_dialer).await?;
        let response = connection.send_request(request).await.map_err(|error| error.to_string())?;
        self.read_response(caller, connection, response, response_bytes_max).await
    }

    async fn read_response(
        &self,
        caller: &Caller,
        connection: Connection,
        response: http::Response<hyper::body::Incoming>,
        response_bytes_max: usize,
    ) -> Result<(StatusCode, WebhookResponse), String> {
        let status = response.status();
        let response = caller.budget.read(response.into_body(), response_bytes_max).await?;
        self.put_idle(connection, &caller.env);
        Ok((status, response))
    }

    fn take_idle(&self, env: &Env) -> Option<Connection> {
        let taken = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take(&(), env.elapsed());
        taken.map(|(connection, _)| connection)
    }

    fn put_idle(&self, connection: Connection, env: &Env) {
        if connection.is_closed() {
            return;
        }
        let now = env.elapsed();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).keep((), connection, now, now);
    }

    async fn connect(&self, service_dialer: &dyn ServiceDialer) -> Result<Connection, String> {
        let stream: Box<dyn Stream> = match &self.target {
            WebhookTarget::Service { namespace, name, port } => service_dialer.dial(namespace, name, *port).await?,
            WebhookTarget::Address { host, port } => {
                let socket = dial::tcp(host, *port).await;
                Box::new(socket.map_err(|error| format!("dial tcp {host}:{port}: connect: {}", io_message(&error)))?)
            }
        };
        let tls = self.tls.connect(self.server.clone(), stream).await;
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

/// Go's message, without the error number.
fn io_message(error: &std::io::Error) -> String {
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
        None => return io_message(error),
    };
    format!("tls: failed to verify certificate: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hooks_are_named_by_url_or_service() {
        let url = |config: Value| Client::new(&config, &Accounts::default()).map(|client| (client.url, client.target));
        let service = |port| WebhookTarget::Service { namespace: "n".into(), name: "s".into(), port };
        let address = |host: &str, port| WebhookTarget::Address { host: host.into(), port };
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
