//! `/podStream/NAMESPACE/POD/PORT`: one byte stream to a port of a pod, for the API server's `proxy` subresources. The
//! request upgrades to `tcp`; the stream follows the 101 response.
//!
//! As in port-forward, a stream ends at the pod's listener, through a pipe: no other address can be reached.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hyper_util::rt::TokioIo;
use machinery_serve::accept::{ConnectionPermit, end_of_stream};
use machinery_serve::net::{Origin, Peer, Protocol, Stream};
use machinery_serve::sockets::{Layer, SocketTable};
use machinery_streaming::websocket::upgrade_of;

use super::Kubelet;
use super::requests::InFlightRequest;

/// The upgrade's protocol.
const UPGRADE: &str = "tcp";

/// Accepts the upgrade, or returns the error response.
pub(super) async fn upgrade(
    State(kubelet): State<Kubelet>,
    Path((namespace, name, port)): Path<(String, String, u16)>,
    Extension(permit): Extension<Arc<ConnectionPermit>>,
    Extension(counted): Extension<Arc<InFlightRequest>>,
    mut request: Request,
) -> Response {
    if upgrade_of(request.headers()).is_none_or(|upgrade| !upgrade.eq_ignore_ascii_case(UPGRADE)) {
        return (StatusCode::BAD_REQUEST, format!("an upgrade to {UPGRADE} is required\n")).into_response();
    }
    let Some(seen) = kubelet.pod(&namespace, &name) else {
        return (StatusCode::NOT_FOUND, "pod does not exist\n").into_response();
    };
    let ip: Option<IpAddr> = seen.status.get().pod_ip.as_deref().and_then(|ip| ip.parse().ok());
    let found = ip.and_then(|ip| Some((ip, kubelet.network.find(ip, Protocol::Tcp, port)?)));
    let Some((ip, serve)) = found else {
        return (StatusCode::BAD_GATEWAY, "connect: connection refused").into_response();
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // It may carry a request, which the end of the listener doesn't cut.
        let table = SocketTable::process();
        let (_held, ending) = ((permit, counted, table.keep_serving(Layer::Control)), table.retirement(Layer::Control));
        let origin = Origin { peer: Peer::Node, local: SocketAddr::new(ip, port), via: None };
        let stream = async {
            let io = TokioIo::new(upgraded.await.map_err(io::Error::other)?);
            serve
                .stream(origin, Stream::Tunnel(Box::new(io)))
                .await
                .map_err(|_| io::ErrorKind::ConnectionRefused.into())
        };
        tokio::select! {
            done = stream => {
                if let Err(error) = done {
                    let error: io::Error = error;
                    tracing::debug!(%error, "a stream to a pod ended");
                }
            }
            () = kubelet.stop.cancelled() => {}
            () = end_of_stream(&kubelet.env, &ending) => {}
        }
    });
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, Body::empty()).into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(UPGRADE));
    response
}
