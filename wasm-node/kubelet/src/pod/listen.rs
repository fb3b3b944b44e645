//! `--host-pod-listeners`: makes pod addresses reachable for processes of the host.

use std::net::SocketAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use machinery_client::EventRecord;
use machinery_client::events::Recorder;
use machinery_env::Env;
use machinery_serve::accept::{self, Limit, Listener};
use machinery_serve::descriptors::Class;
use machinery_serve::net::{Origin, Peer, Serve, Stream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// The connection limit of one pod, within the process's limit for all clients.
pub(super) const CONNECTIONS_MAX: usize = 1024;

/// Accepts connections until the future is dropped.
pub(crate) async fn listen(
    env: Env,
    address: SocketAddr,
    pod: Arc<dyn Serve>,
    recorder: Recorder,
    about: ObjectReference,
) {
    let listener = match Listener::bind(address) {
        Ok(listener) => listener,
        Err(error) => {
            let message = format!("{address} cannot be bound on the host: {error}");
            recorder.record(EventRecord { about, warning: true, reason: "HostListenerFailed", message, source: None });
            return;
        }
    };
    serve(&env, (listener, address), Arc::new(Semaphore::new(CONNECTIONS_MAX)), || Some(pod.clone())).await;
}

/// Passes each connection to the pod's current handler; without one, the connection is closed.
pub(super) async fn serve(
    env: &Env,
    (listener, address): (Listener, SocketAddr),
    connections: Arc<Semaphore>,
    answers: impl Fn() -> Option<Arc<dyn Serve>>,
) {
    let limit = Limit::Permits(connections, Class::Clients);
    let never = CancellationToken::new();
    let each = |stream, peer, permit, ending| {
        let (serve, env) = (answers(), env.clone());
        async move {
            let _permit = permit;
            let origin = Origin { peer: Peer::Host(peer), local: address, via: None };
            // A refused connection is closed.
            let Some(serve) = serve else { return };
            tokio::select! {
                _ = serve.stream(origin, Stream::Tcp(stream)) => {}
                () = accept::end_of_stream(&env, &ending) => {}
            }
        }
    };
    accept::serve(listener, limit, None, env, &never, each).await;
}
