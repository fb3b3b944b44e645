//! Serves the registry's connections until the stop signal, then drains requests.

use axum::{Extension, Router};
use hyper_util::service::TowerToHyperService;
use machinery_env::Env;
use machinery_serve::accept::Listener;
use machinery_serve::plain;
use tokio_util::sync::CancellationToken;

/// Serves `router` until `stop`, then drains requests. Requests carry their connection's
/// [`machinery_serve::accept::ConnectionPermit`].
pub async fn serve(listener: impl Into<Listener>, router: Router, env: Env, stop: CancellationToken) {
    let service = |permit| TowerToHyperService::new(router.clone().layer(Extension(permit)));
    plain::serve((listener, "registry"), None, &env, &stop, service).await;
}
