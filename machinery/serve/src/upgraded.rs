//! Connections that were upgraded to another protocol, whose bytes are passed on.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

/// Copies between the two connections until either side closes, or until `stop`. `held`, such as a permit, is dropped
/// at the end.
pub async fn copy_upgraded(client: OnUpgrade, server: OnUpgrade, held: impl Send, stop: CancellationToken) {
    let copied = async {
        let (client, server) = tokio::try_join!(client, server).map_err(std::io::Error::other)?;
        tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server)).await
    };
    tokio::select! {
        done = copied => {
            if let Err(error) = done {
                tracing::debug!(%error, "a forwarded connection ended");
            }
        }
        () = stop.cancelled() => {}
    }
    drop(held);
}
