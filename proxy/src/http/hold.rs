//! Requests that found no endpoint where one may come: held until it is there, bounded as `crate::waiting` says. Nothing of them is
//! read meanwhile but what their connection's buffers hold, and who leaves has left.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use machinery_serve::net::{Body, DialError, ServicePort};
use tokio::time::Instant;

use super::forward::{Exchange, Sent, attempt, overload};
use crate::state::ProxyState;
use crate::table::{PortRoute, ServiceRoutes};
use crate::waiting::{NoPlace, WAIT_MAX};

/// How soon a request is offered again to endpoints that don't take it yet, at first: each time after twice as long.
const OFFER_AGAIN: Duration = Duration::from_millis(50);
/// And at most.
const OFFER_AGAIN_MAX: Duration = Duration::from_secs(1);

/// Why no endpoint was found after all, and what to do.
fn refused(via: &ServicePort, why: &str) -> DialError {
    DialError::NoEndpoint(format!("service {} port {}{why}", via.service, via.port))
}

/// Sends `request` to one of the route's endpoints; where there is none because its workload may be scaled to zero, once there
/// is one.
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
        Sent::Answered(response) => Ok(response),
        Sent::Failed(error) => Err(error),
        Sent::Busy(_) => Ok(overload()),
        Sent::Nobody(request, error) => hold(state, route, exchange, request, error).await,
    }
}

/// Holds `request` until an endpoint takes it. `error`: what is to be said where it isn't to wait.
///
/// # Errors
/// No endpoint came, or the connection to it failed.
async fn hold(
    state: &ProxyState,
    route: &PortRoute,
    exchange: &Exchange<'_>,
    request: Request<Body>,
    error: DialError,
) -> Result<Response<Body>, DialError> {
    let held = match &route.via {
        Some(via) => held(state, (via, route.nearby), exchange, request, error).await,
        None => Err(error),
    };
    held.inspect_err(|error| {
        if matches!(error, DialError::NoEndpoint(_)) {
            state.metrics.no_endpoint.inc();
        }
    })
}

async fn held(
    state: &ProxyState,
    (via, nearby): (&Arc<ServicePort>, bool),
    exchange: &Exchange<'_>,
    mut request: Request<Body>,
    error: DialError,
) -> Result<Response<Body>, DialError> {
    let place = state.waiting.enter(&via.service).map_err(|why| match why {
        NoPlace::Never => error,
        NoPlace::Full => refused(via, ": too many requests wait for its first pod already; try again later"),
    })?;
    let until = Instant::now() + WAIT_MAX;
    let mut pause = OFFER_AGAIN;
    loop {
        // Before the look, so that no change falls between the two.
        let mut changed = std::pin::pin!(place.changed());
        changed.as_mut().enable();
        let routes = state.routes.of(&via.service);
        let route = |routes: Arc<ServiceRoutes>| match nearby {
            true => routes.from_outside(via.port).cloned(),
            false => routes.tcp(via.port).cloned(),
        };
        let Some(route) = routes.and_then(route) else {
            return Err(refused(via, ": it was removed while the request waited for a pod"));
        };
        let (mut look, mut busy) = (until, false);
        if route.usable().is_empty() {
            if !state.waiting.may(&via.service) {
                return Err(refused(via, ": no autoscaler starts a pod for it any more"));
            }
        } else {
            match attempt(state, &route, exchange, request).await {
                Sent::Answered(response) => return Ok(response),
                Sent::Failed(error) => return Err(error),
                Sent::Nobody(back, _) => request = back,
                Sent::Busy(back) => (request, busy) = (back, true),
            }
            look = until.min(Instant::now() + pause);
            pause = OFFER_AGAIN_MAX.min(pause * 2);
        }
        if tokio::time::timeout_at(look, changed).await.is_err() && Instant::now() >= until {
            let namespace = &via.service.namespace;
            let why = format!(
                " within {} s: its pods don't become ready (kubectl -n {namespace} get hpa,pods,events says why)",
                WAIT_MAX.as_secs()
            );
            return if busy { Ok(overload()) } else { Err(refused(via, &why)) };
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
    use crate::plane::tests::{Fed, add_endpoints, attach, caller, get, plane, text};

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    /// A Service of a workload at zero.
    fn asleep() -> Arc<Fed> {
        let plane = plane();
        let spec = json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80}]});
        plane.service(&key("web"), Some(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec})));
        plane.state.waiting.allow([key("web")].into());
        Arc::new(plane)
    }

    type Asked = tokio::task::JoinHandle<Result<Response<Body>, DialError>>;

    /// A request that waits.
    async fn ask(plane: &Arc<Fed>) -> Asked {
        let (asked, waits) = (plane.clone(), plane.state.waiting.all());
        let asked = tokio::spawn(async move { asked.http(&caller(), get("http://web/")).await });
        while plane.state.waiting.all() == waits && !asked.is_finished() {
            tokio::task::yield_now().await;
        }
        asked
    }

    async fn why(asked: Asked) -> String {
        asked.await.unwrap().map(|_| ()).unwrap_err().to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_answered_by_the_first_pod() {
        let plane = asleep();
        let asked = [ask(&plane).await, ask(&plane).await];
        // It is told before it takes requests, and is busy for a while then.
        add_endpoints(&plane, "web", &["127.66.0.2"]);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let busy = attach(&plane, "127.66.0.2", "busy");
        tokio::time::sleep(Duration::from_secs(5)).await;
        drop(busy);
        let _pod = attach(&plane, "127.66.0.2", "three boats");
        for one in asked {
            assert_eq!(text(one.await.unwrap().unwrap()).await, "three boats");
        }
        assert_eq!((plane.state.waiting.all(), plane.metrics().no_endpoint.get()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_what_to_do() {
        let begun = Instant::now();
        let plane = asleep();
        let never = why(ask(&plane).await).await;
        assert_eq!(begun.elapsed().as_secs(), WAIT_MAX.as_secs());
        assert_eq!(
            never,
            "no endpoint is ready for service shop/web port 80 within 60 s: its pods don't become ready (kubectl -n shop get hpa,pods,events says why)"
        );
        let asked = ask(&plane).await;
        plane.state.waiting.allow([].into());
        assert!(why(asked).await.ends_with("no autoscaler starts a pod for it any more"));
        plane.state.waiting.allow([key("web")].into());
        let asked = ask(&plane).await;
        plane.service(&key("web"), None);
        assert!(why(asked).await.ends_with("it was removed while the request waited for a pod"));
        let busy = asleep();
        let asked = ask(&busy).await;
        add_endpoints(&busy, "web", &["127.66.0.2"]);
        let _pod = attach(&busy, "127.66.0.2", "busy");
        assert_eq!(asked.await.unwrap().unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_and_who_is_too_much_take_no_place() {
        let plane = asleep();
        let mut asked = Vec::new();
        for _ in 0..256 {
            asked.push(ask(&plane).await);
        }
        assert!(
            why(ask(&plane).await).await.ends_with("too many requests wait for its first pod already; try again later")
        );
        asked.drain(..).for_each(|one| one.abort());
        while plane.state.waiting.all() > 0 {
            tokio::task::yield_now().await;
        }
        let asked = ask(&plane).await;
        assert!(!asked.is_finished());
        assert_eq!(plane.metrics().no_endpoint.get(), 1);
    }
}
