//! Streams to servers of this process: one end of a pipe, whose other end the server serves like a socket.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio_util::sync::CancellationToken;

use super::{CallRejected, Origin, Serve, Stream};

/// Opens a stream to a server of this process.
///
/// The end of the other end is the server's: a half that is shut down is an end of file, a dropped end closes both. A server
/// of requests ends with its client; a server of bytes still reads what its client sent before.
///
/// # Errors
/// If the server rejects the stream before it waits for anything. A later rejection closes the stream.
pub fn open_pipe<S: Serve + ?Sized>(serve: Arc<S>, origin: Origin) -> Result<Stream, CallRejected<()>> {
    let (near, far) = Stream::pipe();
    let speaks_http = serve.speaks_http();
    let mut serving = serve.stream(origin, far);
    match serving.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(())) => return Ok(near),
        Poll::Ready(Err(rejected)) => return Err(rejected.map(drop)),
        Poll::Pending => {}
    }
    if !speaks_http {
        tokio::spawn(serving);
        return Ok(near);
    }
    let gone = CancellationToken::new();
    let near = near.holding(gone.clone().drop_guard());
    tokio::spawn(async move { gone.run_until_cancelled(serving).await.map(|served| served.map_err(drop)) });
    Ok(near)
}
