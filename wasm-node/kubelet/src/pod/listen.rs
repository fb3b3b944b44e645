//! `--host-pod-listeners`: makes pod addresses reachable for processes of the host.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use machinery_client::EventRecord;
use machinery_client::events::Recorder;
use machinery_env::Env;
use machinery_serve::accept::{self, ConnectionPermit, Limit, Listener};
use machinery_serve::descriptors::Descriptors;
use machinery_serve::net::{Origin, Peer, Serve, Stream};
use tokio_util::sync::CancellationToken;

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
    serve(&env, (listener, address), address.ip(), || Some(pod.clone())).await;
}

/// Passes each connection to the current handler of the pod with the address `pod`; without one, the connection is closed.
pub(super) async fn serve(
    env: &Env,
    (listener, address): (Listener, SocketAddr),
    pod: IpAddr,
    answers: impl Fn() -> Option<Arc<dyn Serve>>,
) {
    let limit = Limit::new(Descriptors::process().client_seats(), pod.to_string());
    let never = CancellationToken::new();
    let each = |stream, peer, permit: Arc<ConnectionPermit>, ending| {
        let (serve, env) = (answers(), env.clone());
        async move {
            // The requests of a stream of bytes are unknown here.
            let _in_use = permit.begin();
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
