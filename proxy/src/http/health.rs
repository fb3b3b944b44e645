//! Upstream's `healthCheckNodePort` response: load balancers learn whether this machine has endpoints of a Service with
//! `externalTrafficPolicy: Local`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::{CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use machinery_env::Env;
use machinery_serve::last_request::LastRequest;
use machinery_serve::net::{Body, Stream};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::server::idle_end;
use crate::connection::lifetime::ConnectionLifetime;
use crate::routing::table::PortRoute;

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// Serves all requests of a connection.
pub(crate) async fn serve(
    env: Env,
    route: Arc<ArcSwap<PortRoute>>,
    stream: TcpStream,
    peer: SocketAddr,
    lifetime: ConnectionLifetime,
    ending: CancellationToken,
) {
    // `local_addr` fails on a closed connection.
    let local = stream.local_addr().unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));
    // A balancer counts a connection without an answer as a failed check: it may send one more.
    let (last, ConnectionLifetime { stop, permit }) = (Arc::new(LastRequest::new(ending)), lifetime);
    let announcer = last.clone();
    let answer = move |request: Request<Body>| {
        announcer.observe(request.version());
        let mut answer = answer(&route.load());
        announcer.announce(&mut answer);
        std::future::ready(answer)
    };
    let begin = move || permit.begin();
    let stop = last.passed(&env, |has_begun| idle_end(stop.is_cancelled(), has_begun));
    if let Err(error) = machinery_serve::net::http::serve(Stream::Tcp(stream), local, stop, answer, begin).await {
        tracing::debug!(%peer, error, "connection ended");
    }
}

fn answer(route: &PortRoute) -> Response<Body> {
    let count = route.ready.len();
    let (namespace, name) = route.via.as_ref().map_or(("", ""), |via| (&*via.service.namespace, &*via.service.name));
    // Byte for byte as upstream; names contain nothing that JSON escapes.
    let text = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace:?},\n\t\t\"name\": {name:?}\n\t}},\n\t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": true\n}}"
    );
    let mut response = Response::new(Full::from(text).map_err(|never| match never {}).boxed_unsync());
    if count == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, count.into());
    response
}

#[cfg(test)]
mod tests {
    use machinery_api::ObjectKey;
    use machinery_serve::net::ServicePort;

    use super::*;
    use crate::routing::table::tests::route;

    #[tokio::test]
    async fn the_response_has_the_number_of_local_endpoints() {
        let via = Some(Arc::new(ServicePort { service: ObjectKey::new("shop", "web"), port: 32000 }));
        for (ips, status) in [(&["10.0.0.1", "10.0.0.2"][..], 200), (&[], 503)] {
            let (head, body) = answer(&PortRoute { via: via.clone(), ..route(ips) }).into_parts();
            assert_eq!((head.status.as_u16(), &head.headers[WEIGHT]), (status, &HeaderValue::from(ips.len())));
            let body = body.collect().await.unwrap().to_bytes();
            let expected = serde_json::json!({"service": {"namespace": "shop", "name": "web"}, "localEndpoints": ips.len(),
                "serviceProxyHealthy": true});
            assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap(), expected);
        }
    }
}
