//! The registry's connections: within the seats that kubelets and the registry share, where strangers make way.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use machinery_serve::accept::{Seat, accept};
use machinery_serve::descriptors::Descriptors;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a request's head may take, and how long a connection may wait for its next request: clients that push layer
/// after layer pause for less.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves `router` until `stop`, then lets requests end. Requests carry their connection's [`Seat`].
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let seats = Descriptors::process().node_seats();
    let connections = TaskTracker::new();
    loop {
        let (stream, _, seat) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, seats) => accepted,
        };
        let seat = Arc::new(seat);
        let (router, stop) = (router.clone(), stop.clone());
        connections.spawn(async move {
            tokio::select! {
                () = seat.lost() => {}
                () = connection(stream, seat.clone(), router, stop) => {}
            }
        });
    }
    connections.close();
    connections.wait().await;
}

async fn connection(stream: TcpStream, seat: Arc<Seat>, router: Router, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let mut server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    server.http2().timer(TokioTimer::new());
    let service = TowerToHyperService::new(router.layer(axum::Extension(seat)));
    let serving = server.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection to the registry ended");
    }
}
