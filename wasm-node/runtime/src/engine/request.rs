//! One request's guest: its instance, its handler, and how that ended.

use std::any::Any;
use std::sync::Arc;

use http::{HeaderValue, Request, Response, header};
use machinery_serve::net::Body;
use machinery_serve::net::framing::strip_hop_by_hop;
use tokio::sync::oneshot;
use wasmtime::component::InstancePre;
use wasmtime::{PoolConcurrencyLimitError, Store, Trap};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p2::body::{HostOutgoingBody, HyperOutgoingBody};

use super::admission::{Admission, fits_alone};
use super::command::count_fuel;
use super::container::{Live, Shared};
use super::failure::Failure;
use super::load::Pre;
use super::warm::{Used, Warm};
use crate::bounds::growth::StoreLimiter;
use crate::host::exchange::Exchange;
use crate::host::http::incoming;
use crate::host::state::ComponentState;
use runtime_api::NodeCall;

/// How a guest ended.
pub(crate) type End = Result<(), Failure>;
/// What it answers with.
pub(crate) type Head = Result<Response<HyperOutgoingBody>, ErrorCode>;

/// One request's guest, from its instance to its end.
pub(crate) async fn guest(
    shared: Arc<Shared>,
    (request, call): (Request<Body>, Option<NodeCall>),
    exchange: Arc<Exchange>,
    head: oneshot::Sender<Head>,
    (warm, held): (Option<Arc<Warm>>, impl Send),
) -> End {
    let Pre::Server(pre) = &*shared.pre else { return Err(Failure::NoResponse) };
    let warm = warm.filter(|_| call.is_none());
    let used = match warm.as_ref().and_then(|warm| warm.take()) {
        Some(used) => used.again(&shared),
        None => {
            let made = instantiate(&shared, pre, call.as_ref()).await;
            made.map(|instance| Used { instance, requests: 0 })
        }
    };
    let end = match used {
        Ok(Used { mut instance, requests }) => {
            let result = handle(&mut instance.store, &instance.bound, request, head).await;
            count_fuel(&shared, &instance.store);
            let limiter = &instance.store.data().limiter;
            shared.door.ended(fits_alone(limiter, &shared).unwrap_or_else(|| limiter.held_bytes()));
            let returned = result.is_ok();
            let end = settle(&shared, result, limiter);
            // Before the store goes: see `Exchange::end`.
            exchange.end(end.is_err());
            match warm.filter(|_| returned) {
                Some(warm) => warm.park(Used { instance, requests: requests + 1 }, &shared),
                None => drop(instance),
            }
            end
        }
        Err(error) => {
            exchange.end(true);
            Err(error.failure)
        }
    };
    drop(held);
    end
}

pub(crate) struct InstantiateError {
    pub(crate) failure: Failure,
    error: wasmtime::Error,
}

impl std::fmt::Display for InstantiateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

/// A live instance. What it takes is given back after it is gone: fields are dropped in their order.
pub(crate) struct Instance<B> {
    pub(crate) store: Store<ComponentState>,
    pub(crate) bound: B,
    _live: Live,
    _admission: Admission,
}

impl Instance<Proxy> {
    /// Whether it can wait for another request: it has no body under way, at most so many handles, and was refused nothing.
    pub(crate) fn rests(&mut self, handles_max: usize) -> bool {
        let state = self.store.data_mut();
        state.account_now();
        let refused = state.limiter.exceeded().is_some() || state.limiter.owes();
        let writes = |entry: &dyn Any| entry.is::<HostOutgoingBody>();
        let handles = state.table.iter_mut().map(|entry| !writes(&*entry));
        let rest = handles.take(handles_max + 1).try_fold(0, |count, rests| rests.then_some(count + 1));
        !refused && rest.is_some_and(|count| count <= handles_max)
    }
}

impl Used {
    /// Gives it its next request's budget.
    fn again(mut self, shared: &Shared) -> Result<Self, InstantiateError> {
        let store = &mut self.instance.store;
        store.set_epoch_deadline(1);
        if let Some(fuel) = shared.guest.fuel {
            store.set_fuel(fuel).map_err(|error| InstantiateError { failure: Failure::Trap, error })?;
        }
        Ok(self)
    }
}

/// What instances are made from.
pub(crate) trait Prepared: Send + Sync {
    /// An instance with what is called of it.
    type Bound: Send;

    fn instantiate(
        &self,
        store: &mut Store<ComponentState>,
    ) -> impl Future<Output = wasmtime::Result<Self::Bound>> + Send;
}

impl Prepared for ProxyPre<ComponentState> {
    type Bound = Proxy;

    async fn instantiate(&self, store: &mut Store<ComponentState>) -> wasmtime::Result<Proxy> {
        self.instantiate_async(store).await
    }
}

impl Prepared for InstancePre<ComponentState> {
    type Bound = wasmtime::component::Instance;

    async fn instantiate(&self, store: &mut Store<ComponentState>) -> wasmtime::Result<Self::Bound> {
        self.instantiate_async(store).await
    }
}

/// Makes one instance, as soon as there is room: whether the module's start works under its container's limits.
pub(crate) async fn attempt(shared: &Arc<Shared>, call: &NodeCall) -> Result<(), InstantiateError> {
    match &*shared.pre {
        Pre::Server(pre) => instantiate(shared, pre, Some(call)).await.map(drop),
        Pre::Plugin(pre) => instantiate(shared, pre, Some(call)).await.map(drop),
        Pre::Command(_) | Pre::Core(_) => {
            Err(InstantiateError { failure: Failure::Trap, error: wasmtime::Error::msg("not a container that serves") })
        }
    }
}

pub(crate) async fn instantiate<P: Prepared>(
    shared: &Arc<Shared>,
    pre: &P,
    call: Option<&NodeCall>,
) -> Result<Instance<P::Bound>, InstantiateError> {
    let trap = |error| InstantiateError { failure: Failure::Trap, error };
    let mut need = 0;
    loop {
        let admission = shared.admit(call, need).await;
        let live = Live::new(shared);
        let mut store = ComponentState::store(&shared.guest).map_err(trap)?;
        let error = match pre.instantiate(&mut store).await {
            Ok(bound) => {
                shared.door.started(store.data().limiter.held_bytes());
                shared.instantiated();
                return Ok(Instance { store, bound, _live: live, _admission: admission });
            }
            Err(error) => error,
        };
        // Slots are counted so that this doesn't happen; if it does, it is no failure of the guest.
        if error.is::<PoolConcurrencyLimitError>() {
            tracing::warn!(container = shared.name, "the pool of instances is full before its slots are: {error:#}");
            let slots = shared.door.share.slots().clone();
            drop(store);
            drop((live, admission));
            slots.released().await;
            continue;
        }
        // The others that live took the memory meanwhile: that says nothing about the module. Once more, when there is
        // as much as this start is known to take.
        if let Some(least) = fits_alone(&store.data().limiter, shared) {
            need = least;
            shared.door.started(least);
            drop(store);
            continue;
        }
        let limiter = &store.data().limiter;
        let why = shared.not_instantiated(&error, limiter);
        let end = settle(shared, Err(error), limiter);
        let error = wasmtime::Error::msg(why);
        return Err(InstantiateError { failure: end.err().unwrap_or(Failure::Trap), error });
    }
}

async fn handle(
    store: &mut Store<ComponentState>,
    proxy: &Proxy,
    request: Request<Body>,
    head: oneshot::Sender<Head>,
) -> wasmtime::Result<()> {
    let (mut parts, body) = request.into_parts();
    strip_hop_by_hop(&mut parts.headers);
    let https = parts.uri.scheme() == Some(&http::uri::Scheme::HTTPS);
    // A request without an authority, or with one that is no text, still is a request.
    let readable = parts.headers.get(header::HOST).is_some_and(|host| host.to_str().is_ok());
    if parts.uri.authority().is_none() && !readable {
        parts.headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    }
    let request = Request::from_parts(parts, incoming(body));
    let mut view = store.data_mut().http();
    let request = view.new_incoming_request(if https { Scheme::Https } else { Scheme::Http }, request)?;
    let out = view.new_response_outparam(head)?;
    proxy.wasi_http_incoming_handler().call_handle(store, request, out).await
}

pub(crate) fn settle(shared: &Shared, result: wasmtime::Result<()>, limiter: &StoreLimiter) -> End {
    let Err(error) = result else { return Ok(()) };
    if matches!(error.downcast_ref::<I32Exit>(), Some(I32Exit(0))) {
        return Ok(());
    }
    shared.log_end(&error, limiter);
    if limiter.exceeded().is_some() {
        return Err(Failure::Memory);
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => Err(Failure::Fuel),
        _ => Err(Failure::Trap),
    }
}
