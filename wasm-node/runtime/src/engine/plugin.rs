//! HTTP handler for calls of a plugin's functions. A call is a request: concurrency, time, memory, fuel, CPU and error
//! responses are a server's (docs/contract.md §4). Functions, types and documents are prepared when a module is loaded; a call
//! parses its arguments, creates an instance, and writes the result.

mod format;
mod sessions;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use machinery_api::names::SESSION_HEADER;
use machinery_env::Deadline;
use machinery_serve::net::{Body, CallRejected, Origin, Peer, Serve};
use machinery_serve::trace::{Scope, Span};
use percent_encoding::percent_decode_str;
use wasmtime::component::{Component, ComponentExportIndex, Instance, InstancePre, Val};

use super::admission::fits_alone;
use super::command::count_fuel;
use super::container::{Container, ContainerState};
use super::failure::{Failure, full};
use super::gate::{Gate, GatePermit};
use super::load::Pre;
use super::metered::MeteredFuture;
use super::request::{self, instantiate, settle};
use super::spans;
use crate::bounds::limits::{
    CALL_VALUES_BYTES_MAX, HOSTCALL_BYTES_MAX, RESULT_FLAGS_BYTES_MAX, RESULT_TEXT_BYTES_MAX, RESULT_VALUES_BYTES_MAX,
};
use crate::host::state::ComponentState;
use crate::plugin::budget::Budget;
use crate::plugin::names::Names;
use crate::plugin::types::{Description, Function};
use crate::plugin::{json, resources, schema, wave};
use format::{Format, JSON};
use runtime_api::ledger::{Ledger, Resource, ResourceGuard};
use runtime_api::{Kind, LoadError, NodeCall};
use sessions::{LiveSession, Resources, Session, SessionState, Sessions, Visit, is_name};

/// Larger arguments are parsed where other tasks of the thread need not wait.
const LARGE_BODY_BYTES: usize = 64 << 10;
/// wasmtime's message for a list over the copy bound; it has no error type for that.
const TOO_MUCH_COPIED: &str = "fuel allocated for hostcalls has been exhausted";

/// A plugin's functions, prepared at load; shared by all its containers.
pub(crate) struct Plugin {
    description: Description,
    names: Names,
    /// Of the functions, in their order.
    exports: Vec<ComponentExportIndex>,
    wit: Bytes,
    functions: Bytes,
    openapi: Bytes,
}

impl Plugin {
    pub(crate) fn new(description: Description, component: &Component) -> Result<Self, String> {
        let export = |function: &Function| {
            let instance = match &function.interface {
                Some(interface) => Some(component.get_export_index(None, interface.as_str())?),
                None => None,
            };
            component.get_export_index(instance.as_ref(), function.name.as_str())
        };
        let exports = description.functions.iter().map(|function| {
            export(function).ok_or_else(|| format!("its function {} is not there", function.full_name()))
        });
        let exports = exports.collect::<Result<_, String>>()?;
        let title =
            description.functions.first().and_then(|function| function.interface.as_deref()).unwrap_or("plugin");
        let texts = schema::texts(&description, title)?;
        Ok(Self {
            names: Names::new(&description.functions),
            exports,
            wit: description.wit.clone().into(),
            functions: texts.functions.into(),
            openapi: texts.openapi.into(),
            description,
        })
    }
}

/// Serves calls of one container; cheap to clone.
#[derive(Clone)]
pub struct PluginServer {
    inner: Arc<PluginServerInner>,
}

struct PluginServerInner {
    shared: Arc<ContainerState>,
    plugin: Arc<Plugin>,
    gate: Gate,
    sessions: Sessions,
}

impl Container {
    /// Creates a server of a plugin's container. Nothing runs before the first call.
    pub fn serve_plugin(&self) -> Result<PluginServer, LoadError> {
        let shared = self.shared.clone();
        let plugin = shared.loaded.plugin.clone().filter(|_| self.kind() == Kind::Plugin);
        let plugin = plugin.ok_or_else(|| LoadError::Unsupported("the module is not a plugin".into()))?;
        let inner = PluginServerInner { gate: Gate::new(&shared), sessions: Sessions::default(), plugin, shared };
        Ok(PluginServer { inner: Arc::new(inner) })
    }
}

impl PluginServer {
    /// Number of running and queued calls.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inner.gate.in_flight()
    }

    /// The container that serves.
    #[must_use]
    pub fn container(&self) -> Container {
        Container { shared: self.inner.shared.clone() }
    }

    /// Waits until no call is left. A session between calls doesn't count.
    pub async fn drained(&self) {
        self.inner.gate.drained().await;
    }

    /// Cuts off running calls, ends all sessions and rejects later calls.
    pub fn shut(&self) {
        self.inner.gate.shut();
        self.inner.sessions.clear();
    }
}

#[async_trait::async_trait]
impl Serve for PluginServer {
    async fn http(
        &self,
        from: &Origin,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        let shared = &self.inner.shared;
        if self.inner.gate.is_shut() {
            return Err(CallRejected::gone(request));
        }
        shared.counters.requests.fetch_add(1, Ordering::Relaxed);
        if request.extensions().get::<NodeCall>().is_some() {
            shared.counters.probes.fetch_add(1, Ordering::Relaxed);
        }
        let function = match self.inner.plugin.find(&request) {
            Route::Function(function) => function,
            Route::Answer(answer) => return Ok(*answer),
        };
        let span = spans::start(shared, from, &mut request);
        let answer = self.inner.clone().answer(function, client(from), request, span);
        if shared.engine.on_guest_thread() {
            return answer.await;
        }
        match super::server::AbortOnDrop(shared.engine.guest_runtime().spawn(answer)).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(container = shared.name, "a call's task failed: {error}");
                Ok(Failure::Trap.response(shared))
            }
        }
    }
}

/// The owner of sessions: a pod, or the processes of a host.
fn client(from: &Origin) -> String {
    match &from.peer {
        Peer::Pod(caller) => format!("{}/{}", caller.namespace, caller.pod),
        Peer::Host(address) => address.ip().to_string(),
        Peer::Node => String::new(),
    }
}

/// Route of a request.
enum Route {
    Function(usize),
    /// No call: the response.
    Answer(Box<Response<Body>>),
}

impl From<Response<Body>> for Route {
    fn from(answer: Response<Body>) -> Self {
        Self::Answer(Box::new(answer))
    }
}

impl Plugin {
    /// Routes a request by its path.
    fn find(&self, request: &Request<Body>) -> Route {
        let path = request.uri().path().trim_start_matches('/');
        let text = match path {
            "" => Some((&self.functions, JSON)),
            "wit" => Some((&self.wit, "text/plain; charset=utf-8")),
            "openapi.json" => Some((&self.openapi, JSON)),
            _ => None,
        };
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        if let (Some((text, kind)), true) = (text, reads) {
            return answer(StatusCode::OK, kind, text.clone()).into();
        }
        let name = percent_decode_str(path).decode_utf8_lossy();
        match (self.names.find(&name), text) {
            (Some(function), _) if request.method() == Method::POST => Route::Function(function),
            (None, None) => {
                let why =
                    format!("no function {:?}; GET / lists what there is", crate::plugin::error_path::shortened(&name));
                error_response(StatusCode::NOT_FOUND, &why).into()
            }
            (function, _) => {
                let allowed = if function.is_some() { "POST" } else { "GET, HEAD" };
                let mut refused = error_response(StatusCode::METHOD_NOT_ALLOWED, &format!("wanted {allowed}"));
                refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
                refused.into()
            }
        }
    }
}

fn answer(status: StatusCode, kind: &'static str, text: Bytes) -> Response<Body> {
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The response to an invalid call.
fn error_response(status: StatusCode, why: &str) -> Response<Body> {
    answer(status, JSON, serde_json::json!({"error": why}).to_string().into())
}

/// Reason of a call without a result: the guest's failure, or the client's error.
enum CallError {
    Failed(Failure),
    Wrong(StatusCode, String),
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl CallError {
    fn argument(why: String) -> Self {
        Self::Wrong(StatusCode::BAD_REQUEST, why)
    }
}

/// One call: function, caller, and response format.
struct Call {
    function: usize,
    format: Format,
    /// The session named by the client.
    session: Option<String>,
    client: String,
    node: Option<NodeCall>,
}

/// Host memory of a call, charged to its container.
#[derive(Default)]
struct Charge(Vec<ResourceGuard>, u64);

impl Charge {
    fn grow_to(&mut self, ledger: &Arc<Ledger>, bytes: usize) -> Result<(), Failure> {
        let bytes = bytes as u64;
        if bytes > self.1 {
            self.0.push(ledger.hold(Resource::Memory, bytes - self.1).map_err(|_| Failure::Memory)?);
            self.1 = bytes;
        }
        Ok(())
    }
}

impl PluginServerInner {
    async fn answer(
        self: Arc<Self>,
        function: usize,
        client: String,
        mut request: Request<Body>,
        span: Span,
    ) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        let deadline = self.shared.engine.env().deadline(self.shared.limits.timeout);
        let node = request.extensions_mut().remove::<NodeCall>();
        let permit = match self.gate.acquire(node.is_some(), deadline).await {
            Ok(permit) => permit,
            // No byte of the request was read: another pod can take it.
            Err(Failure::Stopped) => return Err(CallRejected::gone(request)),
            Err(Failure::Overload) => return Err(CallRejected::busy(request)),
            Err(failure) => {
                let response = failure.response(&self.shared);
                spans::answered(&span, &response);
                return Ok(response);
            }
        };
        span.set_text("coracle.plugin.function", || self.plugin.description.functions[function].full_name());
        let session = match request.headers().get(SESSION_HEADER) {
            Some(name) if !is_name(name.as_bytes()) => {
                let why = "coracle-session: wanted at most 128 visible characters of ASCII";
                return Ok(error_response(StatusCode::BAD_REQUEST, why));
            }
            name => name.and_then(|name| name.to_str().ok()).map(str::to_owned),
        };
        let call = Call { function, format: Format::of(request.headers()), session, client, node };
        let response = self.serve(call, request.into_body(), (deadline, permit), span.scope()).await;
        spans::answered(&span, &response);
        Ok(response)
    }

    /// Serves an admitted call until its deadline.
    async fn serve(
        self: Arc<Self>,
        call: Call,
        body: Body,
        (deadline, permit): (Deadline, GatePermit),
        scope: Option<Scope>,
    ) -> Response<Body> {
        let bypasses_queue = call.node.is_some();
        let guest = MeteredFuture::new(self.clone().call(call, body), self.shared.clone());
        let mut guest = guest.bypassing_queue(bypasses_queue).within(scope);
        let mut sleep = None;
        let mut cut = std::pin::pin!(self.gate.cut());
        let end = poll_fn(|cx| {
            if let Poll::Ready(end) = Pin::new(&mut guest).poll(cx) {
                return Poll::Ready(end);
            }
            if cut.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Failure::Stopped.into()));
            }
            // A timer is registered only for calls that don't end at once.
            let sleep = sleep.get_or_insert_with(|| Box::pin(self.shared.engine.env().sleep_until(deadline)));
            sleep.as_mut().poll(cx).map(|()| Err(Failure::Timeout.into()))
        })
        .await;
        drop((guest, permit));
        match end {
            Ok(response) => response,
            Err(CallError::Wrong(status, why)) => error_response(status, &why),
            Err(CallError::Failed(failure)) => {
                if failure == Failure::Timeout {
                    self.shared.log_system(&format!("no result within {:?}", self.shared.limits.timeout));
                }
                failure.response(&self.shared)
            }
        }
    }

    async fn call(self: Arc<Self>, call: Call, body: Body) -> Result<Response<Body>, CallError> {
        let plugin = self.plugin.clone();
        let function = &plugin.description.functions[call.function];
        let mut charge = Charge::default();
        let body = self.read(body, call.format.body_max(), &mut charge).await?;
        let arguments = self.arguments(function, call.format, &body, &mut charge)?;
        drop(body);
        let takes = function.parameter_types.iter().any(|ty| plugin.description.has_resources(*ty));
        let gives = function.result.is_some_and(|ty| plugin.description.has_resources(ty));
        if call.session.is_some() || takes || gives {
            let name = call.session.clone().unwrap_or_else(|| self.session_name());
            return self.in_session(&call, &name, arguments, charge).await;
        }
        let Pre::Plugin(pre) = &*self.shared.pre else { return Err(Failure::Trap.into()) };
        let mut instance = self.instance(pre, call.node.as_ref()).await?;
        let result = self.run(&mut instance, call.function, &arguments).await?;
        drop(instance);
        self.respond(call.format, function, result, None, charge)
    }

    /// Reads a call's body and charges it as it arrives.
    async fn read(&self, mut body: Body, max: usize, charge: &mut Charge) -> Result<Vec<u8>, CallError> {
        let mut read = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| CallError::argument("the body broke off".into()))?;
            let Ok(data) = frame.into_data() else { continue };
            if read.len() + data.len() > max {
                let why = format!("the body has more than {max} bytes");
                return Err(CallError::Wrong(StatusCode::PAYLOAD_TOO_LARGE, why));
            }
            charge.grow_to(&self.shared.ledger, read.len() + data.len())?;
            read.extend_from_slice(&data);
        }
        Ok(read)
    }

    fn arguments(
        &self,
        function: &Function,
        format: Format,
        body: &[u8],
        charge: &mut Charge,
    ) -> Result<Vec<Val>, CallError> {
        let description = &self.plugin.description;
        let budget = Budget::new(CALL_VALUES_BYTES_MAX);
        let read = || match format {
            Format::Json => json::arguments(description, function, body, &budget),
            Format::Wave => wave::arguments(description, function, body, &budget),
        };
        let read = if body.len() > LARGE_BODY_BYTES { tokio::task::block_in_place(read) } else { read() };
        let arguments = read.map_err(CallError::argument)?;
        charge.grow_to(&self.shared.ledger, body.len() + budget.used())?;
        Ok(arguments)
    }

    async fn instance(
        &self,
        pre: &InstancePre<ComponentState>,
        node: Option<&NodeCall>,
    ) -> Result<request::Instance<Instance>, Failure> {
        instantiate(&self.shared, pre, node).await.map_err(|error| error.failure)
    }

    /// Calls a function of an instance.
    async fn run(
        &self,
        instance: &mut request::Instance<Instance>,
        function: usize,
        arguments: &[Val],
    ) -> Result<Option<Val>, Failure> {
        let (shared, plugin) = (&self.shared, &self.plugin);
        let result = plugin.description.functions[function].result;
        let store = &mut instance.store;
        let Some(called) = instance.bound.get_func(&mut *store, plugin.exports[function]) else {
            shared.log_system("the function is not there");
            return Err(Failure::Trap);
        };
        let result_max = match result {
            Some(ty) if plugin.description.has_flags(ty) => RESULT_FLAGS_BYTES_MAX,
            _ => RESULT_VALUES_BYTES_MAX,
        };
        store.set_hostcall_fuel(result_max.max(HOSTCALL_BYTES_MAX));
        let mut results = vec![Val::Bool(false); usize::from(result.is_some())];
        let ran = called.call_async(&mut *store, arguments, &mut results).await;
        count_fuel(shared, store);
        if ran.is_err() {
            store.data_mut().count_handles();
        }
        let limiter = &store.data().limiter;
        shared.admission.ended(fits_alone(limiter, shared).unwrap_or_else(|| limiter.held_bytes()));
        let too_large = ran.as_ref().is_err_and(|error| error.root_cause().to_string().ends_with(TOO_MUCH_COPIED));
        let exited = ran.as_ref().is_err_and(|error| error.is::<wasmtime_wasi::I32Exit>());
        match settle(shared, ran, limiter) {
            Ok(()) if exited => Err(Failure::NoResponse),
            Ok(()) => Ok(results.pop()),
            Err(Failure::Trap) if too_large => Err(Failure::ResultTooLarge),
            Err(failure) => Err(failure),
        }
    }

    fn respond(
        &self,
        format: Format,
        function: &Function,
        result: Option<Val>,
        session: Option<&Session>,
        mut charge: Charge,
    ) -> Result<Response<Body>, CallError> {
        let max = RESULT_TEXT_BYTES_MAX;
        let text = match format {
            Format::Json => json::result(&self.plugin.description, function.result, result.as_ref(), max),
            Format::Wave => wave::result(result.as_ref(), max),
        };
        drop(result);
        let Some(text) = text else {
            self.shared.log_system(&format!("the result of {} takes more than {max} bytes", function.full_name()));
            return Err(Failure::ResultTooLarge.into());
        };
        let large = text.len() > LARGE_BODY_BYTES;
        if large {
            charge.grow_to(&self.shared.ledger, text.len())?;
        }
        let mut response = answer(StatusCode::OK, format.word(), text.into());
        if let Some(name) = session.and_then(|session| HeaderValue::from_str(&session.name).ok()) {
            response.headers_mut().insert(HeaderName::from_static(SESSION_HEADER), name);
        }
        // A large text is charged until it has been sent.
        Ok(if large { response.map(|body| held(body, charge)) } else { response })
    }

    fn session_name(&self) -> String {
        let mut name = [0; 16];
        self.shared.engine.env().fill(&mut name);
        hex::encode(name)
    }
}

fn held(body: Body, charge: Charge) -> Body {
    body.map_frame(move |frame| {
        let _held = &charge;
        frame
    })
    .boxed_unsync()
}

/// Calls within a session.
impl PluginServerInner {
    async fn in_session(
        self: &Arc<Self>,
        call: &Call,
        name: &str,
        arguments: Vec<Val>,
        charge: Charge,
    ) -> Result<Response<Body>, CallError> {
        loop {
            let of = (&*call.client, self.shared.is_half_full());
            let find = if call.session.is_some() { Sessions::find_or_create } else { Sessions::create };
            let now = self.shared.engine.env().instant();
            let (session, unwatched) = find(&self.sessions, name, of, now).map_err(|_| Failure::Sessions)?;
            if unwatched {
                self.watch_sessions();
            }
            // One call at a time; this one waits at most until its deadline.
            let mut state = session.state.lock().await;
            if !matches!(*state, SessionState::Ended) {
                return self.call_session(call, &session, &mut state, arguments, charge).await;
            }
            drop(state);
            self.sessions.end(&session);
        }
    }

    async fn call_session(
        &self,
        call: &Call,
        session: &Arc<Session>,
        state: &mut SessionState,
        mut arguments: Vec<Val>,
        charge: Charge,
    ) -> Result<Response<Body>, CallError> {
        let (description, Pre::Plugin(pre)) = (&self.plugin.description, &*self.shared.pre) else {
            return Err(Failure::Trap.into());
        };
        let function = &description.functions[call.function];
        let mut visit = Visit::new(&self.sessions, session.clone());
        // An early return leaves the session ended.
        let (instance, mut known) = match std::mem::replace(state, SessionState::Ended) {
            SessionState::Live(live) => (Some(live.instance), live.resources),
            SessionState::New | SessionState::Ended => (None, Resources::default()),
        };
        let mut taken = Vec::new();
        let put = resources::in_arguments(description, function, &mut arguments, &mut |shape, value| {
            known.put(shape, value, &mut taken)
        });
        if let Err(why) = put {
            if let Some(instance) = instance {
                known.put_back(taken);
                *state = SessionState::Live(Box::new(LiveSession { instance, resources: known }));
                visit.keep_session(self.shared.engine.env().instant());
            }
            return Err(CallError::argument(why));
        }
        let mut instance = match instance {
            Some(mut instance) => {
                if let Some(fuel) = self.shared.guest.fuel {
                    instance.store.set_fuel(fuel).map_err(|_| Failure::Trap)?;
                }
                instance
            }
            None => self.instance(pre, call.node.as_ref()).await?,
        };
        let mut result = self.run(&mut instance, call.function, &arguments).await?;
        if let (Some(ty), Some(value)) = (function.result, &mut result) {
            resources::in_result(description, ty, value, &mut |shape, value| known.keep(shape, value)).map_err(
                |why| {
                    self.shared.log_system(&why);
                    Failure::ResultTooLarge
                },
            )?;
        }
        // A session that the client didn't name and that holds no resources.
        if call.session.is_none() && known.is_empty() {
            return self.respond(call.format, function, result, None, charge);
        }
        *state = SessionState::Live(Box::new(LiveSession { instance, resources: known }));
        visit.keep_session(self.shared.engine.env().instant());
        self.respond(call.format, function, result, Some(session), charge)
    }

    /// Ends idle sessions while there are any.
    fn watch_sessions(self: &Arc<Self>) {
        let (this, env) = (Arc::downgrade(self), self.shared.engine.env().clone());
        self.shared.engine.guest_runtime().spawn(async move {
            while let Some(next) = this.upgrade().and_then(|inner| inner.sessions.expire(env.instant())) {
                env.sleep_until(next).await;
            }
        });
    }
}
