//! `--host-pod-listeners`: a pod's address answers to processes of the host too.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::ObjectReference;
use machinery::net::Serve;
use machinery::runtime::Note;
use machinery::runtime::events::Recorder;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections of one pod at once.
const CONNECTIONS_MAX: usize = 1024;
/// After a failed accept (out of file descriptors), so that the loop doesn't spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Listens until it is dropped.
pub(crate) async fn listen(ip: IpAddr, port: u16, serve: Arc<dyn Serve>, recorder: Recorder, about: ObjectReference) {
    let address = SocketAddr::new(ip, port);
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
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
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let serve = serve.clone();
        connections.spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request: Request<Incoming>| {
                let serve = serve.clone();
                async move {
                    let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
                    Ok::<_, std::convert::Infallible>(serve.http(request).await)
                }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
