//! Exchanges with what is not a pod of this process: the outside through the real network, and the apiserver.
//!
//! The host's loopback, link-local and other special addresses are refused here, after names are resolved, so that no
//! name can lead a guest to them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use machinery::net::{Body, BoxError, DialError};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

/// Connections to the outside at once, of all guests together: bounds file handles and what one guest can do to others.
const CONNECTIONS_MAX: usize = 256;

/// How long name resolution, connecting and the TLS handshake may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The cluster's CA could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the cluster's CA is no PEM certificate: {0}")]
pub struct BadCertificate(String);

/// Reaches the outside.
pub(crate) struct Outside {
    tls: TlsConnector,
    connections: Arc<Semaphore>,
}

impl std::fmt::Debug for Outside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outside").finish_non_exhaustive()
    }
}

impl Outside {
    pub(crate) fn new(cluster_ca_pem: Option<&str>) -> Result<Self, BadCertificate> {
        let bad = |error: &dyn std::fmt::Display| BadCertificate(error.to_string());
        let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(pem) = cluster_ca_pem {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)) })
    }

    /// To a name of the outside.
    pub(crate) async fn http(
        &self,
        name: &str,
        port: u16,
        https: bool,
        request: Request<Body>,
    ) -> Result<Response<Body>, DialError> {
        let lookup = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::lookup_host((name, port))).await;
        let addresses = lookup
            .map_err(|_| DialError::Timeout(name.to_owned()))?
            .map_err(|_| DialError::NameNotFound(name.to_owned()))?;
        let Some(address) = addresses.into_iter().next() else { return Err(DialError::NameNotFound(name.to_owned())) };
        self.http_to(address.ip(), port, name, https, request).await
    }

    /// To an address of the outside.
    pub(crate) async fn http_to(
        &self,
        ip: IpAddr,
        port: u16,
        name: &str,
        https: bool,
        request: Request<Body>,
    ) -> Result<Response<Body>, DialError> {
        if is_special(ip) {
            return Err(DialError::Denied(ip.to_string()));
        }
        self.exchange(SocketAddr::new(ip, port), name, https, request).await
    }

    /// One request on a connection of its own. The caller has decided that `address` may be dialled.
    pub(crate) async fn exchange(
        &self,
        address: SocketAddr,
        name: &str,
        https: bool,
        request: Request<Body>,
    ) -> Result<Response<Body>, DialError> {
        let fail = |source: BoxError| DialError::Connection { address: address.to_string(), source };
        let permit = self.connections.clone().acquire_owned().await.map_err(|error| fail(error.into()))?;
        let request = to_origin_form(request).map_err(|error| fail(error.into()))?;
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            let _ = stream.set_nodelay(true);
            let io: Box<dyn Stream> = if https {
                let server = ServerName::try_from(name.trim_start_matches('[').trim_end_matches(']').to_owned())?;
                Box::new(self.tls.connect(server, stream).await?)
            } else {
                Box::new(stream)
            };
            Ok::<_, BoxError>(hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(io)).await?)
        };
        let (mut sender, connection) = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| DialError::Timeout(address.to_string()))?
            .map_err(fail)?;
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = connection.await {
                tracing::debug!(%address, %error, "connection to an endpoint ended");
            }
        });
        let response = sender.send_request(request).await.map_err(|error| fail(error.into()))?;
        Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// HTTP/1.1 wants the path in the request line and the authority in `Host` (RFC 9112 §3.2).
fn to_origin_form(mut request: Request<Body>) -> Result<Request<Body>, http::Error> {
    if let Some(authority) = request.uri().authority().cloned()
        && !request.headers().contains_key(HOST)
    {
        request.headers_mut().insert(HOST, HeaderValue::try_from(authority.as_str())?);
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = Uri::builder().path_and_query(path).build()?;
    *request.version_mut() = http::Version::HTTP_11;
    Ok(request)
}

/// Addresses that are never the outside: the host itself, its link, and what is no single host.
pub(crate) fn is_special(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.octets()[0] == 0
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_and_its_link_are_not_the_outside() {
        for ip in
            ["127.0.0.1", "127.64.0.1", "0.0.0.0", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fe80::1", "224.0.0.1"]
        {
            assert!(is_special(ip.parse().unwrap()), "{ip}");
        }
        assert!(!is_special("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn requests_take_the_origin_form() {
        let body = || http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
        let request = to_origin_form(Request::get("http://api.example:8080/a?b=c").body(body()).unwrap()).unwrap();
        assert_eq!(
            (request.uri().to_string().as_str(), request.headers()[HOST].to_str().unwrap()),
            ("/a?b=c", "api.example:8080")
        );
    }
}
