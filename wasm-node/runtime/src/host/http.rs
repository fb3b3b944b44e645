//! `wasi:http`: types, and outgoing requests through the data plane's [`Dial`](machinery_serve::net::Dial), limited in
//! number and time. The data plane resolves names and applies policy; this module opens no socket.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Request, header};
use http_body::Body as _;
use http_body_util::{BodyExt, Empty};
use machinery_serve::framing::strip_hop_by_hop;
use machinery_serve::net::{BoxError, DialError};
use machinery_serve::trace;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::p2::DynOutputStream;
use wasmtime_wasi_http::p2::bindings::http::types::{self, ErrorCode};
use wasmtime_wasi_http::p2::body::{HostIncomingBody, HostOutgoingBody};
use wasmtime_wasi_http::p2::types::{
    HostIncomingRequest, HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse,
};
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error, FieldMap, ForbiddenHeaderFilter, RequestOptions, Result, WasiBody, WasiHttpCtx,
    WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

use super::guest::Guest;
use super::io::NonEmptyWrites;
use super::outgoing_body::{CheckedBody, LiveBody, OpenBodies, StoreEnd};
use super::state::{ComponentState, InterfaceState};
use crate::bounds::limits::{BODY_CHUNK_BYTES, HTTP_FIELDS_BYTES_MAX};
use runtime_api::ledger;

/// The version that wasmtime's bindings register; the overrides below must use exactly it.
const TYPES: &str = "wasi:http/types@0.2.12";
/// Wall clock of an outgoing request to its head, unless the guest sets a shorter one.
pub(super) const OUTGOING_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// A request's authority, and a proxy's own headers. Libraries of 0.2 set hop-by-hop fields, which are removed on their way.
static REFUSED_BY_0_2: [HeaderName; 3] = [header::HOST, header::PROXY_AUTHENTICATE, header::PROXY_AUTHORIZATION];
/// The same and the hop-by-hop fields: a guest of 0.3 learns that it cannot set them.
static REFUSED_BY_0_3: [HeaderName; 9] = DEFAULT_FORBIDDEN_HEADERS;

/// Bytes of one header besides its content.
const HEADER_BYTES: u64 = 64;
/// Buffered bytes of an incoming body: one read of the connection.
pub(super) const INCOMING_BODY_BYTES: u64 = 16 << 10;
/// Buffered bytes of an outgoing body: one chunk in flight and one buffered.
pub(super) const OUTGOING_BODY_BYTES: u64 = 2 * BODY_CHUNK_BYTES as u64;

/// Outgoing requests of one instance.
struct Outgoing {
    guest: Arc<Guest>,
    /// The end of a store of WASI 0.3.
    store: Option<StoreEnd>,
}

/// State of one instance.
pub(crate) struct Http {
    context: WasiHttpCtx,
    outgoing: Outgoing,
    /// Bodies that the guest writes.
    open: OpenBodies,
}

impl InterfaceState for Http {
    fn of(guest: &Arc<Guest>) -> Self {
        let mut context = WasiHttpCtx::new();
        context.set_field_size_limit(HTTP_FIELDS_BYTES_MAX);
        Self { context, outgoing: Outgoing { guest: guest.clone(), store: None }, open: OpenBodies::default() }
    }
}

impl WasiHttpView for ComponentState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.account();
        let Http { context, outgoing, .. } = self.states.get(&self.guest);
        if outgoing.store.is_none() {
            outgoing.store.clone_from(&self.end);
        }
        WasiHttpCtxView { ctx: context, table: &mut self.table, hooks: outgoing }
    }
}

/// Host memory of an entry of the guest's table.
pub(crate) fn held_bytes(entry: &(dyn Any + Send)) -> Option<u64> {
    if let Some(fields) = entry.downcast_ref::<FieldMap>() {
        Some(fields_bytes(fields))
    } else if let Some(response) = entry.downcast_ref::<HostOutgoingResponse>() {
        Some(fields_bytes(&response.headers) + response.body.as_ref().map_or(0, |_| OUTGOING_BODY_BYTES))
    } else if let Some(request) = entry.downcast_ref::<HostOutgoingRequest>() {
        Some(fields_bytes(&request.headers) + request.body.as_ref().map_or(0, |_| OUTGOING_BODY_BYTES))
    } else if entry.is::<HostOutgoingBody>() {
        Some(OUTGOING_BODY_BYTES)
    } else if entry.is::<HostIncomingBody>() || entry.is::<HostIncomingRequest>() {
        Some(INCOMING_BODY_BYTES)
    } else {
        let response = entry.downcast_ref::<HostIncomingResponse>()?;
        Some(fields_bytes(&response.headers) + INCOMING_BODY_BYTES)
    }
}

pub(super) fn fields_bytes(fields: &FieldMap) -> u64 {
    fields.iter().map(|(name, value)| name.as_str().len() as u64 + value.len() as u64 + HEADER_BYTES).sum()
}

/// Converts a pod network body to wasi:http's.
pub(crate) fn incoming(body: machinery_serve::net::Body) -> WasiBody {
    if body.is_end_stream() {
        return Empty::new().map_err(|never| match never {}).boxed_unsync();
    }
    body.map_err(|error| {
        tracing::debug!("incoming body broke off: {error}");
        Error::ConnectionTerminated
    })
    .boxed_unsync()
}

type Sent = (http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

/// Headers that a guest can neither set nor read, in its headers and its trailers.
fn forbidden_headers(is_0_3: bool) -> &'static [HeaderName] {
    if is_0_3 { &REFUSED_BY_0_3 } else { &REFUSED_BY_0_2 }
}

impl WasiHttpHooks for Outgoing {
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        forbidden_headers(self.store.is_some()).contains(name)
    }

    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        let forbidden = forbidden_headers(self.store.is_some());
        Arc::new(move |name: &HeaderName| forbidden.contains(name))
    }

    fn send_request(
        &mut self,
        mut request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _errors: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<Sent>> + Send> {
        // The guest is polled within its span here.
        trace::continue_in(request.headers_mut());
        if let Some(store) = self.store.clone() {
            request = request.map(|body| LiveBody::of(body, store));
        }
        let guest = self.guest.clone();
        Box::new(send(guest, request, options.unwrap_or_default()))
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }
}

async fn send(guest: Arc<Guest>, request: Request<WasiBody>, options: RequestOptions) -> Result<Sent> {
    let Some(dial) = guest.dial.clone() else { return Err(Error::HttpRequestDenied) };
    let permit = guest.ledger.hold(ledger::Resource::Connections, 1).map_err(|_| Error::ConnectionLimitReached)?;
    let wanted = options.connect_timeout.unwrap_or(OUTGOING_TIMEOUT_MAX);
    let wanted = wanted.saturating_add(options.first_byte_timeout.unwrap_or(Duration::ZERO));
    let timeout = match (options.connect_timeout, options.first_byte_timeout) {
        (None, Some(first_byte)) => first_byte,
        _ => wanted,
    };
    let request = request.map(|body| body.map_err(|error| Box::new(error) as BoxError).boxed_unsync());
    let timeout = timeout.min(OUTGOING_TIMEOUT_MAX);
    let sent = guest.clock().timeout(timeout, dial.http(&guest.caller, request)).await;
    let mut response = match sent {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(code(error)),
        Err(_) => return Err(Error::HttpResponseTimeout),
    };
    strip_hop_by_hop(response.headers_mut());
    // The permit goes with the body: an exchange counts until its response is read or dropped.
    let response = response.map(|body| {
        incoming(body)
            .map_frame(move |frame| {
                let _held = &permit;
                frame
            })
            .boxed_unsync()
    });
    Ok((response, Box::new(std::future::ready(Ok(())))))
}

/// The guest's error code for a call without a response.
fn code(error: DialError) -> Error {
    match error {
        DialError::NameNotFound(_) => Error::DnsError { rcode: Some("NXDOMAIN".into()), info_code: None },
        // A Service without endpoints refuses connections.
        DialError::NoEndpoint(_) => Error::ConnectionRefused,
        DialError::Denied(_) => Error::DestinationIpProhibited,
        DialError::Connection { source, .. } => match is_refusal(&*source) {
            true => Error::ConnectionRefused,
            false => Error::ConnectionTerminated,
        },
        DialError::Timeout(_) => Error::ConnectionTimeout,
    }
}

/// Whether the connection was refused.
pub(super) fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::ConnectionRefused;
        }
        cause = error.source();
    }
    false
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    // Wraps the same functions: a body whose channel closes without its own finish was cut off, which the bindings
    // can't distinguish from an end when a store is dropped.
    let mut types = linker.instance(TYPES)?;
    types.func_wrap(
        "[method]outgoing-response.body",
        |mut store: StoreContextMut<'_, ComponentState>, (response,): (Resource<HostOutgoingResponse>,)| {
            let (state, rep) = (store.data_mut(), response.rep());
            let made = types::HostOutgoingResponse::body(&mut state.http(), response)?;
            if let Ok(body) = &made {
                let slot = &mut state.table.get_mut(&Resource::<HostOutgoingResponse>::new_borrow(rep))?.body;
                let Http { open, .. } = state.states.get(&state.guest);
                *slot = slot.take().map(|made| CheckedBody::of(made, open, body.rep()));
            }
            Ok((made,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.body",
        |mut store: StoreContextMut<'_, ComponentState>, (request,): (Resource<HostOutgoingRequest>,)| {
            let (state, rep) = (store.data_mut(), request.rep());
            let made = types::HostOutgoingRequest::body(&mut state.http(), request)?;
            if let Ok(body) = &made {
                let slot = &mut state.table.get_mut(&Resource::<HostOutgoingRequest>::new_borrow(rep))?.body;
                let Http { open, .. } = state.states.get(&state.guest);
                *slot = slot.take().map(|made| CheckedBody::of(made, open, body.rep()));
            }
            Ok((made,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-body.write",
        |mut store: StoreContextMut<'_, ComponentState>, (body,): (Resource<HostOutgoingBody>,)| {
            let state = store.data_mut();
            state.account();
            let Some(stream) = state.table.get_mut(&body)?.take_output_stream() else { return Ok((Err(()),)) };
            let stream: DynOutputStream = Box::new(NonEmptyWrites(stream));
            Ok((Ok(state.table.push_child(stream, &body)?),))
        },
    )?;
    types.func_wrap(
        "[static]outgoing-body.finish",
        |mut store: StoreContextMut<'_, ComponentState>,
         (body, trailers): (Resource<HostOutgoingBody>, Option<Resource<FieldMap>>)| {
            let state = store.data_mut();
            // Recorded before, as the body may be read on another thread: a failed finish sends an abort.
            state.of::<Http>().open.finish(body.rep());
            match types::HostOutgoingBody::finish(&mut state.http(), body, trailers) {
                Ok(()) => Ok((Ok::<(), ErrorCode>(()),)),
                Err(error) => Ok((Err(error.downcast()?),)),
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_by_hop_fields_are_forbidden_in_0_3() {
        let refuses = |is_0_3, name: &str| forbidden_headers(is_0_3).contains(&HeaderName::try_from(name).unwrap());
        for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings"] {
            assert!(refuses(true, name) && !refuses(false, name), "{name}");
        }
        for is_0_3 in [false, true] {
            assert!(refuses(is_0_3, "host") && refuses(is_0_3, "proxy-authorization"));
            assert!(!refuses(is_0_3, "te") && !refuses(is_0_3, "content-length") && !refuses(is_0_3, "x-own"));
        }
    }

    #[test]
    fn each_dial_error_has_its_code() {
        let io = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let refused = DialError::Connection { address: "a:1".into(), source: Box::new(io) };
        assert!(matches!(code(refused), Error::ConnectionRefused));
        let broken = DialError::Connection { address: "a:1".into(), source: "reset".into() };
        assert!(matches!(code(broken), Error::ConnectionTerminated));
        assert!(matches!(code(DialError::Denied("a".into())), Error::DestinationIpProhibited));
        assert!(matches!(code(DialError::NameNotFound("a".into())), Error::DnsError { .. }));
    }
}
