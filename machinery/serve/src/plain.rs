//! A plain HTTP server of the process itself, on the seats of the nodes' servers: a full pool displaces unauthenticated
//! connections.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::service::Service;
use machinery_env::Env;
use tokio_util::sync::CancellationToken;

use crate::accept::{self, ConnectionPermit, Limit, Listener};
use crate::connection::{self, RequestBody};
use crate::descriptors::Descriptors;
use crate::net::BoxError;

/// Serves until `stop`, then drains requests for `drain` (without limit if `None`). `service` makes the service of one
/// connection, which owns the permit. `name`: the server, for its share of the seats.
pub async fn serve<V, B>(
    (listener, name): (impl Into<Listener>, &'static str),
    drain: Option<Duration>,
    env: &Env,
    stop: &CancellationToken,
    service: impl Fn(Arc<ConnectionPermit>) -> V,
) where
    V: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible> + Send + 'static,
    V::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let limit = Limit::new(Descriptors::process().node_seats(), name);
    let each = |stream, _, permit, ending| {
        let (service, env) = (service(permit), env.clone());
        async move {
            if let Err(error) = connection::serve(stream, &env, service, &ending).await {
                tracing::debug!(error, "a connection ended");
            }
        }
    };
    accept::serve(listener.into(), limit, drain, env, stop, each).await;
}
