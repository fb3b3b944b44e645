//! One request's guest: creates its instance, calls its handler, maps its end.

use std::any::Any;
use std::sync::Arc;

use http::{HeaderValue, Request, Response, header};
use machinery_serve::framing::strip_hop_by_hop;
use machinery_serve::net::Body;
use tokio::sync::oneshot;
use wasmtime::component::InstancePre;
use wasmtime::{PoolConcurrencyLimitError, Store, Trap};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p2::body::{HostOutgoingBody, HyperOutgoingBody};
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};

use super::admission::{Admission, fits_alone};
use super::command::count_fuel;
use super::container::{ContainerState, LiveInstance};
use super::failure::Failure;
use super::load::Pre;
use super::warm::{WarmInstance, WarmPool};
use crate::bounds::growth::StoreLimiter;
use crate::host::exchange::Exchange;
use crate::host::http::incoming;
use crate::host::outgoing_body::EndOnDrop;
use crate::host::state::ComponentState;
use runtime_api::NodeCall;

/// Result of a guest's run.
pub(crate) type GuestResult = Result<(), Failure>;
/// A guest's response head.
pub(crate) type ResponseHead = Result<Response<HyperOutgoingBody>, ErrorCode>;

/// Runs one request's guest, from its instance to its end.
pub(crate) async fn guest(
    shared: Arc<ContainerState>,
    (request, call): (Request<Body>, Option<NodeCall>),
    exchange: Arc<Exchange>,
    head: oneshot::Sender<ResponseHead>,
    (warm, held): (Option<Arc<WarmPool>>, impl Send),
) -> GuestResult {
    let Pre::Server(pre) = &*shared.pre else { return Err(Failure::NoResponse) };
    let warm = warm.filter(|_| call.is_none());
    let used = match warm.as_ref().and_then(|warm| warm.take()) {
        Some(used) => used.reset_for_reuse(&shared),
        None => {
            let made = instantiate(&shared, pre, call.as_ref()).await;
            made.map(|instance| WarmInstance { instance, requests: 0 })
        }
    };
    exchange.trace_elapsed("coracle.instance.ready_ms");
    let end = match used {
        Ok(WarmInstance { mut instance, requests }) => {
            exchange.span.set("coracle.instance.reused", requests > 0);
            let result = handle(&mut instance.store, &instance.bound, request, head).await;
            if let Some(used) = count_fuel(&shared, &instance.store) {
                exchange.span.set("coracle.fuel.used", i64::try_from(used).unwrap_or(i64::MAX));
            }
            if result.is_err() {
                instance.store.data_mut().count_handles();
            }
            let limiter = &instance.store.data().limiter;
            shared.admission.ended(fits_alone(limiter, &shared).unwrap_or_else(|| limiter.held_bytes()));
            let returned = result.is_ok();
            let end = settle(&shared, result, limiter);
            // Before the store is dropped: see `Exchange::end`.
            exchange.end(end.is_err());
            match warm.filter(|_| returned) {
                Some(warm) => warm.park(WarmInstance { instance, requests: requests + 1 }, &shared),
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

/// A live instance. Resources are released after it: fields drop in their order.
pub(crate) struct Instance<B> {
    _end: Option<EndOnDrop>,
    pub(crate) store: Store<ComponentState>,
    pub(crate) bound: B,
    _live: LiveInstance,
    _admission: Admission,
}

/// The export of a server, of either WASI version.
pub(crate) enum HttpExport {
    Proxy(Proxy),
    Service(Service),
}

impl Instance<HttpExport> {
    /// Whether it can be reused: no body in progress, at most this many handles and streams, and no rejected growth.
    pub(crate) fn is_reusable(&mut self, handles_max: usize) -> bool {
        let concurrent = self.store.concurrent_resource_table().map_or(0, |table| table.iter_mut().count());
        if concurrent > handles_max {
            return false;
        }
        let state = self.store.data_mut();
        state.account_now();
        let refused = state.limiter.exceeded().is_some() || state.limiter.has_debt();
        let writes = |entry: &dyn Any| entry.is::<HostOutgoingBody>();
        let handles = state.table.iter_mut().map(|entry| !writes(&*entry));
        let rest = handles.take(handles_max + 1).try_fold(0, |count, reusable| reusable.then_some(count + 1));
        !refused && rest.is_some_and(|count| count <= handles_max)
    }
}

impl WarmInstance {
    /// Resets the budgets for the next request.
    fn reset_for_reuse(mut self, shared: &ContainerState) -> Result<Self, InstantiateError> {
        let store = &mut self.instance.store;
        store.set_epoch_deadline(1);
        if let Some(fuel) = shared.guest.fuel {
            store.set_fuel(fuel).map_err(|error| InstantiateError { failure: Failure::Trap, error })?;
        }
        Ok(self)
    }
}

/// Pre-instantiated forms.
pub(crate) trait Prepared: Send + Sync {
    /// An instance with its callable exports.
    type Bound: Send;

    fn instantiate(
        &self,
        store: &mut Store<ComponentState>,
    ) -> impl Future<Output = wasmtime::Result<Self::Bound>> + Send;
}

/// The pre-instantiated form of a server, of either WASI version.
pub(crate) enum ServerPre {
    Proxy(ProxyPre<ComponentState>),
    Service(ServicePre<ComponentState>),
}

impl Prepared for ServerPre {
    type Bound = HttpExport;

    async fn instantiate(&self, store: &mut Store<ComponentState>) -> wasmtime::Result<HttpExport> {
        Ok(match self {
            Self::Proxy(pre) => HttpExport::Proxy(pre.instantiate_async(store).await?),
            Self::Service(pre) => HttpExport::Service(pre.instantiate_async(store).await?),
        })
    }
}

impl Prepared for InstancePre<ComponentState> {
    type Bound = wasmtime::component::Instance;

    async fn instantiate(&self, store: &mut Store<ComponentState>) -> wasmtime::Result<Self::Bound> {
        self.instantiate_async(store).await
    }
}

/// Creates one instance as a trial: whether the module's start works under its container's limits.
pub(crate) async fn attempt(shared: &Arc<ContainerState>, call: &NodeCall) -> Result<(), InstantiateError> {
    match &*shared.pre {
        Pre::Server(pre) => instantiate(shared, pre, Some(call)).await.map(drop),
        Pre::Plugin(pre) => instantiate(shared, pre, Some(call)).await.map(drop),
        Pre::Command(_) | Pre::ConcurrentCommand(_) | Pre::Core(_) => {
            Err(InstantiateError { failure: Failure::Trap, error: wasmtime::Error::msg("not a container that serves") })
        }
    }
}

pub(crate) async fn instantiate<P: Prepared>(
    shared: &Arc<ContainerState>,
    pre: &P,
    call: Option<&NodeCall>,
) -> Result<Instance<P::Bound>, InstantiateError> {
    let trap = |error| InstantiateError { failure: Failure::Trap, error };
    let mut need = 0;
    loop {
        let admission = shared.admit(call, need).await;
        let live = LiveInstance::new(shared);
        let mut store = ComponentState::store(&shared.guest).map_err(trap)?;
        let error = match pre.instantiate(&mut store).await {
            Ok(bound) => {
                shared.admission.started(store.data().limiter.held_bytes());
                shared.record_instantiation();
                return Ok(Instance {
                    _end: store.data().end_on_drop(),
                    store,
                    bound,
                    _live: live,
                    _admission: admission,
                });
            }
            Err(error) => error,
        };
        // Slots are counted to prevent this; if it happens, it is no failure of the guest.
        if error.is::<PoolConcurrencyLimitError>() {
            tracing::warn!(container = shared.name, "instance pool exhausted before its slots: {error:#}");
            let slots = shared.admission.share.slots().clone();
            drop(store);
            drop((live, admission));
            slots.released().await;
            continue;
        }
        // Other live instances took the memory meanwhile, which doesn't depend on the module. Retry once this start's
        // known need is free.
        if let Some(least) = fits_alone(&store.data().limiter, shared) {
            need = least;
            shared.admission.started(least);
            drop(store);
            continue;
        }
        store.data_mut().count_handles();
        let limiter = &store.data().limiter;
        let why = shared.record_instantiation_failure(&error, limiter);
        let end = settle(shared, Err(error), limiter);
        let error = wasmtime::Error::msg(why);
        return Err(InstantiateError { failure: end.err().unwrap_or(Failure::Trap), error });
    }
}

async fn handle(
    store: &mut Store<ComponentState>,
    export: &HttpExport,
    request: Request<Body>,
    head: oneshot::Sender<ResponseHead>,
) -> wasmtime::Result<()> {
    let (mut parts, body) = request.into_parts();
    strip_hop_by_hop(&mut parts.headers);
    let https = parts.uri.scheme() == Some(&http::uri::Scheme::HTTPS);
    // A request without an authority, or with a non-text one, is still valid.
    let readable = parts.headers.get(header::HOST).is_some_and(|host| host.to_str().is_ok());
    if parts.uri.authority().is_none() && !readable {
        parts.headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    }
    let request = Request::from_parts(parts, incoming(body));
    let proxy = match export {
        HttpExport::Proxy(proxy) => proxy,
        HttpExport::Service(service) => return super::service::handle(store, service, request, head).await,
    };
    let mut view = store.data_mut().http();
    let request = view.new_incoming_request(if https { Scheme::Https } else { Scheme::Http }, request)?;
    let out = view.new_response_outparam(head)?;
    proxy.wasi_http_incoming_handler().call_handle(store, request, out).await
}

pub(crate) fn settle(shared: &ContainerState, result: wasmtime::Result<()>, limiter: &StoreLimiter) -> GuestResult {
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
