//! The registry's connections: within the seats that kubelets and the registry share, where strangers make way.

use axum::Router;
use hyper_util::service::TowerToHyperService;
use machinery_env::Env;
use machinery_serve::accept::{self, Limit};
use machinery_serve::descriptors::Descriptors;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves `router` until `stop`, then lets requests end. Requests carry their connection's
/// [`machinery_serve::accept::ConnectionPermit`].
pub async fn serve(listener: TcpListener, router: Router, env: Env, stop: CancellationToken) {
    let limit = Limit::Seats(Descriptors::process().node_seats().clone());
    let each = |stream, _, permit| {
        let (router, env, stop) = (router.clone().layer(axum::Extension(permit)), env.clone(), stop.clone());
        async move {
            let service = TowerToHyperService::new(router);
            if let Err(error) = machinery_serve::connection::serve(stream, &env, service, &stop).await {
                tracing::debug!(error, "a connection to the registry ended");
            }
        }
    };
    accept::serve(listener.into(), limit, None, &stop, each).await;
}
