//! TLS to a server whose certificate can't be verified, as upstream's `InsecureSkipVerify` for pods by `https`: probes,
//! hooks and `https:` names of `proxy` requests. It authenticates nothing; it only reaches servers that require TLS.

use std::io;
use std::sync::LazyLock;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;

use super::tls::{ClientTls, Identity};
use super::trust::Trust;

static TLS: LazyLock<Result<ClientTls, rustls::Error>> =
    LazyLock::new(|| ClientTls::new(Trust::any(), Identity::Anonymous));

/// Starts TLS on `stream`, which leads to `host`, a name or an address.
///
/// # Errors
/// If `host` is neither, or the handshake fails: with a [`rustls::Error`] inside if that is the cause.
pub async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(host: &str, stream: S) -> io::Result<TlsStream<S>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    TLS.as_ref().map_err(|error| io::Error::other(error.clone()))?.connect(name, stream).await
}
