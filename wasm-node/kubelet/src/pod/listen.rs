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

/// Accepts connections at a pod's address on the host until the future is dropped, and passes each to what `answers` returns.
pub(crate) async fn listen(
    env: Env,
    address: SocketAddr,
    answers: impl Fn() -> Option<Arc<dyn Serve>>,
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
    serve(&env, (listener, address), address.ip(), answers).await;
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

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use machinery_serve::net::{Body, CallRejected, Listen, PodNetwork, Protocol};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    struct Echo;

    #[async_trait::async_trait]
    impl Serve for Echo {
        async fn http(&self, _: &Origin, _: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
            Err(CallRejected::Closed)
        }

        async fn stream(self: Arc<Self>, _: Origin, mut stream: Stream) -> Result<(), CallRejected<Stream>> {
            let mut received = Vec::new();
            let _ = stream.read_to_end(&mut received).await;
            let _ = stream.write_all(&received).await;
            Ok(())
        }
    }

    #[tokio::test]
    async fn each_connection_finds_the_listener_of_its_time() {
        let (network, ip) = (PodNetwork::default(), IpAddr::from([127, 66, 0, 2]));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let found = network.clone();
        let answers = move || found.find_local(ip, Protocol::Tcp, 6379);
        let serving = tokio::spawn(async move { serve(&Env::real(), (listener.into(), address), ip, answers).await });
        let ask = async || {
            let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
            let _ = client.write_all(b"boats").await;
            let _ = client.shutdown().await;
            let mut received = String::new();
            let _ = client.read_to_string(&mut received).await;
            received
        };
        assert_eq!(ask().await, "");
        let attached = network.attach(Listen::tcp(ip, 6379), Arc::new(Echo)).unwrap();
        assert_eq!(ask().await, "boats");
        drop(attached);
        assert_eq!(ask().await, "");
        serving.abort();
    }
}
