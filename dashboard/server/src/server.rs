//! The proxy of `coracle dashboard`: serves the dashboard's files, and forwards requests to the API server with the
//! credentials of a kubeconfig. It listens on the loopback address alone.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use apiserver::http::static_files::StaticFiles;
use axum::body::Body;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::service::service_fn;
use kube::Client;
use kube::client::Body as ClientBody;
use machinery_client::causes::with_causes;
use machinery_env::Env;
use machinery_serve::accept::{self, ConnectionPermit, Limit, Listener, Seats};
use machinery_serve::connection::{self, RequestBody};
use machinery_serve::upgraded::copy_upgraded;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::files;
use super::forwarding::{of_request, of_response, wants_websocket};
use super::gate::{Gate, Verdict};
use super::secret::Secret;

/// Connections at once: a browser opens six to a host, and a WebSocket for each terminal. Further ones wait.
const CONNECTIONS_MAX: usize = 128;
/// The largest body of a request: the API server's maximum.
const BODY_BYTES_MAX: usize = 3 << 20;
/// Deadline of a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Time of requests in flight after ^C; watches and terminals never end by themselves.
const DRAIN: Duration = Duration::from_millis(500);

/// The proxy of one run.
pub struct DashboardServer {
    listener: Listener,
    proxy: Arc<Proxy>,
    /// `http://127.0.0.1:PORT/dashboard/`
    pub page: String,
    secret: Secret,
}

/// Why a request has no response of the API server, as code and message.
struct ForwardError(StatusCode, String);

/// What each request needs.
struct Proxy {
    env: Env,
    gate: Gate,
    files: Arc<StaticFiles>,
    client: Client,
    /// Ends terminals.
    stop: CancellationToken,
}

impl DashboardServer {
    /// Binds the port; 0: a free one. `client` has the credentials.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn bind(env: &Env, client: Client, port: u16, stop: &CancellationToken) -> anyhow::Result<Self> {
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        let listener = Listener::bind_own("dashboard", address).with_context(|| {
            format!("cannot listen on {address}: choose another port with --port (0 picks a free one)")
        })?;
        let port = listener.local_addr()?.port();
        let secret = Secret::new(env);
        let proxy = Proxy {
            env: env.clone(),
            gate: Gate::new(port, secret.clone()),
            files: files::files(),
            client,
            stop: stop.clone(),
        };
        Ok(Self {
            listener,
            proxy: Arc::new(proxy),
            page: format!("http://127.0.0.1:{port}{}/", files::PREFIX),
            secret,
        })
    }

    /// The address with the secret, for the user alone.
    pub fn address(&self) -> String {
        format!("{}#token={}", self.page, self.secret.reveal())
    }

    /// Serves until the stop.
    pub async fn serve(self) {
        let (env, stop) = (self.proxy.env.clone(), self.proxy.stop.clone());
        let limit = Limit::new(&Seats::new(CONNECTIONS_MAX), "dashboard");
        let proxy = self.proxy;
        let each = |stream, _, permit: Arc<ConnectionPermit>, ending: CancellationToken| {
            let (proxy, env) = (proxy.clone(), proxy.env.clone());
            async move {
                let service = service_fn(move |request: Request<RequestBody>| {
                    let (proxy, permit) = (proxy.clone(), permit.clone());
                    async move { Ok::<_, Infallible>(proxy.respond(request, permit).await) }
                });
                if let Err(error) = connection::serve(stream, &env, service, &ending).await {
                    tracing::debug!(error, "a connection of the dashboard ended");
                }
            }
        };
        accept::serve(self.listener, limit, Some(DRAIN), &env, &stop, each).await;
    }
}

impl Proxy {
    async fn respond(&self, request: Request<RequestBody>, permit: Arc<ConnectionPermit>) -> Response<Body> {
        match self.gate.check(request.uri().path(), request.headers()) {
            Verdict::File => self.files.respond(request.method(), request.uri().path(), request.headers()),
            Verdict::Reject(code, why) => failure(code, why),
            Verdict::Forward => {
                permit.mark_authenticated();
                self.forward(request, permit).await.unwrap_or_else(|ForwardError(code, why)| failure(code, &why))
            }
        }
    }

    /// Sends a request to the API server.
    async fn forward(
        &self,
        mut request: Request<RequestBody>,
        permit: Arc<ConnectionPermit>,
    ) -> Result<Response<Body>, ForwardError> {
        let page = wants_websocket(request.headers()).then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let body = self.whole(body).await?;
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut sent = Request::builder().method(parts.method).uri(path).body(ClientBody::from(body.to_vec()));
        if let Ok(sent) = &mut sent {
            *sent.headers_mut() = of_request(&parts.headers);
        }
        let sent = sent.map_err(|error| ForwardError(StatusCode::BAD_REQUEST, error.to_string()))?;
        let answered = self.client.send(sent).await;
        let mut answered = answered.map_err(|error| {
            ForwardError(StatusCode::BAD_GATEWAY, format!("the API server doesn't answer: {}", with_causes(&error)))
        })?;
        if answered.status() == StatusCode::SWITCHING_PROTOCOLS {
            let unwanted = || ForwardError(StatusCode::BAD_GATEWAY, "the API server changed the protocol".to_owned());
            let page = page.ok_or_else(unwanted)?;
            let server = hyper::upgrade::on(&mut answered);
            tokio::spawn(copy_upgraded(page, server, permit, self.stop.clone()));
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            *response.headers_mut() = of_response(answered.headers(), true);
            return Ok(response);
        }
        let (parts, body) = answered.into_parts();
        let mut response = Response::new(Body::new(body));
        *response.status_mut() = parts.status;
        *response.headers_mut() = of_response(&parts.headers, false);
        Ok(response)
    }

    /// The body of a request, which the client of the API server needs as a whole.
    async fn whole(&self, body: RequestBody) -> Result<Bytes, ForwardError> {
        let read = self.env.timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
        let timeout =
            |_| ForwardError(StatusCode::REQUEST_TIMEOUT, "the request's body did not arrive in time".to_owned());
        match read.map_err(timeout)? {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                let why = format!("the request's body is larger than {BODY_BYTES_MAX} bytes");
                Err(ForwardError(StatusCode::PAYLOAD_TOO_LARGE, why))
            }
            Err(error) => Err(ForwardError(StatusCode::BAD_REQUEST, error.to_string())),
        }
    }
}

/// A Status, as the API server's.
fn failure(code: StatusCode, message: &str) -> Response<Body> {
    let reason = match code {
        StatusCode::UNAUTHORIZED => "Unauthorized",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::PAYLOAD_TOO_LARGE => "RequestEntityTooLarge",
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::REQUEST_TIMEOUT => "Timeout",
        _ => "ServiceUnavailable",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    let mut response = Response::new(Body::from(status.to_string()));
    *response.status_mut() = code;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    *response.headers_mut() = of_response(&headers, false);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A server that answers each connection with `answer`, then echoes; returns its port. Sends the heads that it gets.
    async fn upstream(answer: &'static str) -> (u16, tokio::sync::mpsc::Receiver<String>) {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let (sender, heads) = tokio::sync::mpsc::channel(8);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = socket.accept().await {
                let sender = sender.clone();
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.unwrap());
                    }
                    sender.send(String::from_utf8(head).unwrap()).await.unwrap();
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        (port, heads)
    }

    /// A proxy to a server on a port: its port and its secret.
    async fn proxy(port: u16, stop: &CancellationToken) -> (u16, Secret) {
        let env = Env::real();
        let mut config = kube::Config::new(format!("http://127.0.0.1:{port}").parse().unwrap());
        config.auth_info.token = Some("of-the-kubeconfig".to_owned().into());
        let client = machinery_client::from_config(&env, config).unwrap();
        let server = DashboardServer::bind(&env, client, 0, stop).unwrap();
        let (port, secret) = (server.listener.local_addr().unwrap().port(), server.secret.clone());
        assert_eq!(server.address(), format!("http://127.0.0.1:{port}/dashboard/#token={}", secret.reveal()));
        tokio::spawn(server.serve());
        (port, secret)
    }

    /// Sends a request and returns the connection and the head of the response.
    async fn ask(port: u16, target: &str, headers: &str) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let head = format!("GET {target} HTTP/1.1\r\nHost: localhost:{port}\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        (stream, String::from_utf8(answer).unwrap())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_secret_is_replaced_by_the_credentials() {
        let stop = CancellationToken::new();
        let (api, mut heads) = upstream("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=b\r\n\r\n{}").await;
        let (port, secret) = proxy(api, &stop).await;
        let (_, refused) = ask(port, "/api/v1/pods", "").await;
        assert!(refused.starts_with("HTTP/1.1 401 ") && refused.contains("application/json"), "{refused}");
        let (_, file) = ask(port, "/dashboard/", "").await;
        assert!(file.starts_with("HTTP/1.1 200 ") && file.contains("text/html"), "{file}");
        let bearer = format!("Authorization: Bearer {}\r\nImpersonate-User: root\r\n", secret.reveal());
        let (mut stream, answer) = ask(port, "/api/v1/pods?limit=1", &bearer).await;
        let mut body = [0; 2];
        stream.read_exact(&mut body).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && &body == b"{}", "{answer}");
        assert!(!answer.contains("set-cookie") && answer.contains("nosniff"), "{answer}");
        let sent = heads.recv().await.unwrap();
        assert!(sent.starts_with("GET /api/v1/pods?limit=1 HTTP/1.1\r\n"), "{sent}");
        assert!(sent.contains("Bearer of-the-kubeconfig") && !sent.contains(secret.reveal()), "{sent}");
        assert!(!sent.to_lowercase().contains("impersonate") && sent.contains(&format!("127.0.0.1:{api}")), "{sent}");
        stop.cancel();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_websocket_is_spliced_until_the_stop() {
        let stop = CancellationToken::new();
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";
        let (api, mut heads) = upstream(switch).await;
        let (port, secret) = proxy(api, &stop).await;
        let handshake = format!(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: v5.channel.k8s.io, {}\r\n",
            secret.as_protocol()
        );
        let (mut stream, answer) = ask(port, "/api/v1/namespaces/n/pods/p/exec", &handshake).await;
        assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("v5.channel.k8s.io"), "{answer}");
        let sent = heads.recv().await.unwrap();
        assert!(sent.contains("v5.channel.k8s.io") && !sent.contains("base64url.bearer"), "{sent}");
        stream.write_all(b"echo").await.unwrap();
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"echo");
        stop.cancel();
        let rest = stream.read(&mut echo).await;
        assert!(matches!(rest, Ok(0) | Err(_)), "{rest:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_that_is_not_there_is_a_bad_gateway() {
        let stop = CancellationToken::new();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (port, secret) = proxy(free, &stop).await;
        let (_, answer) = ask(port, "/version", &format!("Authorization: Bearer {}\r\n", secret.reveal())).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        stop.cancel();
    }
}
