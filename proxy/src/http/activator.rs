//! The activator: holds a request without a usable endpoint until its workload has scaled from zero, bounded by
//! `crate::state::activation`. Its body stays unread beyond the connection's buffers. The slot of a client whose connection
//! breaks is free at once, and that of one that closes its connection after 5 s: this looks like the end of its sending half.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use machinery_serve::net::{Body, DialError, ServicePort};

use super::forward::{AttemptOutcome, Exchange, attempt, overload};
use crate::routing::table::{PortRoute, ServiceRoutes};
use crate::state::ProxyState;
use crate::state::activation::{EnqueueError, WAIT_MAX};

/// First retry delay for endpoints that don't take a request yet; doubles with each retry.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(50);
/// Maximum retry delay.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);

/// The error of a request that got no endpoint.
fn no_endpoint_error(via: &ServicePort, why: &str) -> DialError {
    DialError::NoEndpoint(format!("service {} port {}{why}", via.service, via.port))
}

/// Forwards `request` to one of the route's endpoints; waits for the first one while the workload scales from zero.
///
/// # Errors
/// No endpoint, or the connection to it failed.
pub(crate) async fn send(
    state: &ProxyState,
    route: &Arc<PortRoute>,
    exchange: &Exchange<'_>,
    request: Request<Body>,
) -> Result<Response<Body>, DialError> {
    match attempt(state, route, exchange, request).await {
        AttemptOutcome::Answered(response) => Ok(response),
        AttemptOutcome::Failed(error) => Err(error),
        AttemptOutcome::Busy(_) => Ok(overload()),
        AttemptOutcome::NoEndpoint(request, error) => activate(state, route, exchange, request, error).await,
    }
}

/// Queues `request` until an endpoint takes it. `error` is returned where the workload can't be scaled from zero.
///
/// # Errors
/// No endpoint came, or the connection to it failed.
async fn activate(
    state: &ProxyState,
    route: &PortRoute,
    exchange: &Exchange<'_>,
    request: Request<Body>,
    error: DialError,
) -> Result<Response<Body>, DialError> {
    let result = match &route.via {
        Some(via) => wait_for_endpoint(state, (via, route.external_local), exchange, request, error).await,
        None => Err(error),
    };
    result.inspect_err(|error| {
        if matches!(error, DialError::NoEndpoint(_)) {
            state.metrics.no_endpoint.inc();
        }
    })
}

async fn wait_for_endpoint(
    state: &ProxyState,
    (via, external_local): (&Arc<ServicePort>, bool),
    exchange: &Exchange<'_>,
    mut request: Request<Body>,
    error: DialError,
) -> Result<Response<Body>, DialError> {
    let slot = state.activation.enqueue(&via.service).map_err(|why| match why {
        EnqueueError::NotScalable => error,
        EnqueueError::Full => {
            no_endpoint_error(via, ": too many requests wait for its first pod already; try again later")
        }
    })?;
    let until = state.env.deadline(WAIT_MAX);
    let mut pause = RETRY_DELAY_MIN;
    loop {
        // Registered before the routes are read, so that no change is missed.
        let mut changed = std::pin::pin!(slot.changed());
        changed.as_mut().enable();
        let routes = state.routes.of(&via.service);
        let route = |routes: Arc<ServiceRoutes>| match external_local {
            true => routes.from_outside(via.port).cloned(),
            false => routes.tcp(via.port).cloned(),
        };
        let Some(route) = routes.and_then(route) else {
            return Err(no_endpoint_error(via, ": it was removed while the request waited for a pod"));
        };
        let (mut wake_at, mut busy) = (until, false);
        if route.usable().is_empty() {
            if !state.activation.may_wait(&via.service) {
                return Err(no_endpoint_error(via, ": no autoscaler starts a pod for it any more"));
            }
        } else {
            match attempt(state, &route, exchange, request).await {
                AttemptOutcome::Answered(response) => return Ok(response),
                AttemptOutcome::Failed(error) => return Err(error),
                AttemptOutcome::NoEndpoint(back, _) => request = back,
                AttemptOutcome::Busy(back) => (request, busy) = (back, true),
            }
            wake_at = until.min(state.env.deadline(pause));
            pause = RETRY_DELAY_MAX.min(pause * 2);
        }
        if state.env.timeout_at(wake_at, changed).await.is_err() && until.passed(&state.env) {
            let namespace = &via.service.namespace;
            let why = format!(
                " within {} s: its pods don't become ready (kubectl -n {namespace} get hpa,pods,events says why)",
                WAIT_MAX.as_secs()
            );
            return if busy { Ok(overload()) } else { Err(no_endpoint_error(via, &why)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use machinery_api::ObjectKey;
    use machinery_serve::net::Dial as _;
    use serde_json::json;

    use super::*;
    use crate::plane::tests::{PlaneWithTable, add_endpoints, attach, caller, get, plane, text};

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    /// A Service whose workload is at zero.
    fn scaled_to_zero() -> Arc<PlaneWithTable> {
        let plane = plane();
        let spec = json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80}]});
        plane.service(&key("web"), Some(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec})));
        plane.state.activation.set_scalable_services([key("web")].into());
        Arc::new(plane)
    }

    type PendingRequest = tokio::task::JoinHandle<Result<Response<Body>, DialError>>;

    /// A queued request.
    async fn enqueue_request(plane: &Arc<PlaneWithTable>) -> PendingRequest {
        let (caller_plane, queued) = (plane.clone(), plane.state.activation.queued());
        let request = tokio::spawn(async move { caller_plane.http(&caller(), get("http://web/")).await });
        while plane.state.activation.queued() == queued && !request.is_finished() {
            tokio::task::yield_now().await;
        }
        request
    }

    async fn why(requests: PendingRequest) -> String {
        requests.await.unwrap().map(|_| ()).unwrap_err().to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_requests_are_served_by_the_first_pod() {
        let plane = scaled_to_zero();
        let requests = [enqueue_request(&plane).await, enqueue_request(&plane).await];
        // An endpoint is published before it takes requests, and is overloaded for a while afterwards.
        add_endpoints(&plane, "web", &["127.66.0.2"]);
        plane.state.env.sleep(Duration::from_secs(5)).await;
        let busy = attach(&plane, "127.66.0.2", "busy");
        plane.state.env.sleep(Duration::from_secs(5)).await;
        drop(busy);
        let _pod = attach(&plane, "127.66.0.2", "three boats");
        for one in requests {
            assert_eq!(text(one.await.unwrap().unwrap()).await, "three boats");
        }
        assert_eq!((plane.state.activation.queued(), plane.metrics().no_endpoint.get()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_the_pods_of_a_takeover() {
        let plane = scaled_to_zero();
        plane.state.activation.set_scalable_services([].into());
        plane.hold_requests();
        let request = enqueue_request(&plane).await;
        add_endpoints(&plane, "web", &["127.66.0.2"]);
        let pod = attach(&plane, "127.66.0.2", "again");
        assert_eq!(text(request.await.unwrap().unwrap()).await, "again");
        drop(pod);
        let request = enqueue_request(&plane).await;
        plane.release_requests();
        add_endpoints(&plane, "web", &[]);
        assert!(why(request).await.ends_with("no autoscaler starts a pod for it any more"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_wait_names_the_cause_and_a_command() {
        let plane = scaled_to_zero();
        let env = plane.state.env.clone();
        let begun = env.instant();
        let never = why(enqueue_request(&plane).await).await;
        assert_eq!((env.instant() - begun).as_secs(), WAIT_MAX.as_secs());
        assert_eq!(
            never,
            "no endpoint is ready for service shop/web port 80 within 60 s: its pods don't become ready (kubectl -n shop get hpa,pods,events says why)"
        );
        let requests = enqueue_request(&plane).await;
        plane.state.activation.set_scalable_services([].into());
        assert!(why(requests).await.ends_with("no autoscaler starts a pod for it any more"));
        plane.state.activation.set_scalable_services([key("web")].into());
        let requests = enqueue_request(&plane).await;
        plane.service(&key("web"), None);
        assert!(why(requests).await.ends_with("it was removed while the request waited for a pod"));
        let busy = scaled_to_zero();
        let requests = enqueue_request(&busy).await;
        add_endpoints(&busy, "web", &["127.66.0.2"]);
        let _pod = attach(&busy, "127.66.0.2", "busy");
        assert_eq!(requests.await.unwrap().unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test(start_paused = true)]
    async fn disconnected_and_excess_requests_take_no_queue_slot() {
        let plane = scaled_to_zero();
        let mut requests = Vec::new();
        for _ in 0..256 {
            requests.push(enqueue_request(&plane).await);
        }
        assert!(
            why(enqueue_request(&plane).await)
                .await
                .ends_with("too many requests wait for its first pod already; try again later")
        );
        requests.drain(..).for_each(|one| one.abort());
        while plane.state.activation.queued() > 0 {
            tokio::task::yield_now().await;
        }
        let requests = enqueue_request(&plane).await;
        assert!(!requests.is_finished());
        assert_eq!(plane.metrics().no_endpoint.get(), 1);
    }
}
