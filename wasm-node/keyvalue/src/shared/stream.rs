//! A connection to the server: TCP with keep-alive, TLS where the address says so, and a limit of received bytes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo, RedisError};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::IN_FLIGHT_BYTES_MAX;
use super::config::SharedStoreConfig;

/// Bytes that may arrive before a call has its answer: all answers that are on their way, and the greeting. The client
/// buffers an answer until it is complete.
pub(super) const RECEIVED_BYTES_MAX: usize = IN_FLIGHT_BYTES_MAX + (1 << 20);
/// Idle time until the first keep-alive probe, and between probes: a server that vanished is noticed without a call.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Maximum characters of a server's text in a message.
const REASON_CHARS_MAX: usize = 160;

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A stream that fails after [`RECEIVED_BYTES_MAX`] bytes without a reset of `received`.
struct BoundedStream {
    io: Box<dyn Io>,
    received: Arc<AtomicUsize>,
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        let bytes = buffer.filled().len() - before;
        if self.received.fetch_add(bytes, Ordering::Relaxed) + bytes > RECEIVED_BYTES_MAX {
            return Poll::Ready(Err(io::Error::other("the server sends more than the requests allow")));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// Drives a connection until it is closed.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Connects and authenticates. Each answer's receiver resets `received`; `used` is the password that was sent.
///
/// # Errors
/// The reason, without credentials.
pub(super) async fn open(
    config: &SharedStoreConfig,
    received: &Arc<AtomicUsize>,
    used: &Mutex<Option<String>>,
) -> Result<(MultiplexedConnection, Driver), String> {
    let file = config.clone();
    let password = tokio::task::spawn_blocking(move || file.password()).await.map_err(|error| error.to_string())??;
    let shown = |error: io::Error| plain(&error.to_string(), password.as_deref());
    let tcp = TcpStream::connect((config.host.as_str(), config.port)).await.map_err(shown)?;
    tcp.set_nodelay(true).map_err(shown)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    SockRef::from(&tcp).set_tcp_keepalive(&keepalive).map_err(shown)?;
    let io: Box<dyn Io> = match config.tls() {
        None => Box::new(tcp),
        Some(tls) => {
            let name = ServerName::try_from(config.host.clone()).map_err(|error| error.to_string())?;
            Box::new(TlsConnector::from(tls.clone()).connect(name, tcp).await.map_err(shown)?)
        }
    };
    received.store(0, Ordering::Relaxed);
    let stream = BoundedStream { io, received: received.clone() };
    let mut info =
        RedisConnectionInfo::default().set_db(config.database).set_lib_name("coracle", env!("CARGO_PKG_VERSION"));
    crate::lock(used).clone_from(&password);
    if let Some(password) = &password {
        info = info.set_password(password);
    }
    if let Some(user) = &config.user {
        info = info.set_username(user);
    }
    // The deadlines of calls are the caller's.
    let settings = AsyncConnectionConfig::new().set_response_timeout(None);
    let opened = MultiplexedConnection::new_with_config(&info, stream, settings).await;
    let (connection, driver) = opened.map_err(|error| reason(&error, password.as_deref()))?;
    Ok((connection, Box::pin(driver)))
}

/// A client's error as a short line without the password.
pub(super) fn reason(error: &RedisError, password: Option<&str>) -> String {
    let of_server = error.code().map(|code| format!("{code} {}", error.detail().unwrap_or_default()));
    plain(&of_server.unwrap_or_else(|| error.to_string()), password)
}

/// A text from outside as a short line: a hostile server may repeat the password.
fn plain(text: &str, password: Option<&str>) -> String {
    if password.is_some_and(|password| text.contains(password)) {
        return "an error that contains the password".to_owned();
    }
    text.chars().take(REASON_CHARS_MAX).map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn texts_of_a_server_are_short_lines_without_the_password() {
        assert_eq!(plain("a\r\nb\u{1b}[2J", None), "a  b [2J");
        assert_eq!(plain(&"x".repeat(1000), None).len(), REASON_CHARS_MAX);
        assert_eq!(plain("WRONGPASS hunter2", Some("hunter2")), "an error that contains the password");
    }

    #[tokio::test]
    async fn a_stream_ends_after_more_bytes_than_requested() {
        let received = Arc::new(AtomicUsize::new(0));
        let mut stream =
            BoundedStream { io: Box::new(tokio::io::join(tokio::io::repeat(b'x'), tokio::io::sink())), received };
        let mut total = 0;
        let mut buffer = vec![0; 1 << 20];
        let error = loop {
            match stream.read(&mut buffer).await {
                Ok(bytes) => total += bytes,
                Err(error) => break error,
            }
            if total == RECEIVED_BYTES_MAX {
                assert_eq!(
                    stream.received.swap(0, Ordering::Relaxed),
                    RECEIVED_BYTES_MAX,
                    "a complete answer resets it"
                );
            }
        };
        assert_eq!(total, 2 * RECEIVED_BYTES_MAX, "{error}");
    }
}
