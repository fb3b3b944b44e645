//! The stop signal and the connection permit of a host process's connection. An upgraded connection keeps both.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use machinery_serve::accept::ConnectionPermit;
use tokio_util::sync::CancellationToken;

use crate::connection::join::join;

/// Stop signal and connection permit of a connection. An upgraded request carries it as an extension, so that the permit lasts
/// until the upgraded connection ends.
#[derive(Clone)]
pub(crate) struct ConnectionLifetime {
    pub(crate) stop: CancellationToken,
    pub(crate) permit: Arc<ConnectionPermit>,
}

/// Splices two upgraded connections until both ends are done or the client connection's lifetime ends.
pub(crate) async fn splice(
    client: hyper::upgrade::OnUpgrade,
    server: hyper::upgrade::OnUpgrade,
    lifetime: Option<ConnectionLifetime>,
    _held: impl Send,
    address: SocketAddr,
) {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%address, %error, "protocol upgrade failed"),
    };
    let stop = lifetime.as_ref().map_or_else(CancellationToken::new, |lifetime| lifetime.stop.clone());
    let in_use = lifetime.as_ref().map(|lifetime| lifetime.permit.begin());
    let displaced = async {
        match &lifetime {
            Some(lifetime) => lifetime.permit.displaced_after_upgrade().await,
            None => std::future::pending().await,
        }
    };
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    tokio::select! {
        () = join(&mut client, &mut server, &stop, address) => {}
        () = displaced => tracing::debug!(%address, "an upgraded connection was displaced by another one"),
    }
    drop(in_use);
}
