//! `--host-pod-listeners`: a pod's address answers to processes of the host too.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use machinery_client::Note;
use machinery_client::events::Recorder;
use machinery_serve::descriptors::{Class, Descriptors};
use machinery_serve::net::{Origin, Peer, Serve, Stream};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections of one pod at once, within what all clients of the process have.
const CONNECTIONS_MAX: usize = 1024;
/// After a failed accept (out of file descriptors), so that the loop doesn't spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Listens until it is dropped.
pub(crate) async fn listen(ip: IpAddr, port: u16, serve: Arc<dyn Serve>, recorder: Recorder, about: ObjectReference) {
    let address = SocketAddr::new(ip, port);
    let descriptors = Descriptors::process();
    let bound = match descriptors.take(Class::Listeners) {
        Ok(held) => TcpListener::bind(address).await.map(|listener| (listener, held)),
        Err(error) => Err(error),
    };
    let (listener, _held) = match bound {
        Ok(bound) => bound,
        Err(error) => {
            let message = format!("{address} cannot be bound on the host: {error}");
            recorder.record(Note { about, warning: true, reason: "HostListenerFailed", message, source: None });
            return;
        }
    };
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Closed at once where all clients together have no more.
        let Ok(held) = descriptors.take(Class::Clients) else { continue };
        let _ = stream.set_nodelay(true);
        let serve = serve.clone();
        connections.spawn(async move {
            let _held = (permit, held);
            let origin = Origin { peer: Peer::Host(peer), local: address, via: None };
            // Where it is refused, the connection closes.
            let _ = serve.stream(origin, Stream::Tcp(stream)).await;
        });
    }
}
