//! Opens a stream to a pod, wherever that is.

use std::sync::Arc;

use machinery_serve::net::{CallRejected, Origin, Serve, Stream, open_pipe};

/// Opens a stream to a pod: over the tunnel to another node, else through a pipe.
pub(crate) async fn open_stream(serve: Arc<dyn Serve>, origin: Origin) -> Result<Stream, CallRejected<()>> {
    match serve.connect(&origin).await {
        Some(opened) => opened,
        None => open_pipe(serve, origin),
    }
}
