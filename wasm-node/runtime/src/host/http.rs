//! `wasi:http`: types, and outgoing requests through the data plane's [`Dial`](machinery_serve::net::Dial), bounded in
//! number and time. The data plane decides where a name leads and what policy allows; nothing here touches a socket.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Request, header};
use http_body_util::BodyExt;
use machinery_serve::net::framing::strip_hop_by_hop;
use machinery_serve::net::{BoxError, DialError};
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::p2::bindings::http::types::{self, ErrorCode};
use wasmtime_wasi_http::p2::body::HostOutgoingBody;
use wasmtime_wasi_http::{Error, FieldMap, RequestOptions, Result, WasiBody, WasiHttpHooks, WasiHttpView};

use crate::engine::container::Shared;
use crate::engine::limits::BODY_CHUNK_BYTES;
use crate::engine::state::{ComponentState, incoming};
use runtime_api::ledger;

/// The version that wasmtime's bindings register, as the shadowing below must name it exactly.
const TYPES: &str = "wasi:http/types@0.2.12";
/// Wall clock of an outgoing request to its head, where the guest asks for no shorter one.
const OUTGOING_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// What a guest is refused to say, and never sees: its words are the authority of a request, and a proxy's own.
const REFUSED: [HeaderName; 3] = [header::HOST, header::PROXY_AUTHENTICATE, header::PROXY_AUTHORIZATION];

/// One instance's way out.
pub(crate) struct Outgoing {
    shared: Arc<Shared>,
}

impl Outgoing {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

type Sent = (http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

impl WasiHttpHooks for Outgoing {
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        REFUSED.contains(name)
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _errors: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<Sent>> + Send> {
        let shared = self.shared.clone();
        Box::new(send(shared, request, options.unwrap_or_default()))
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }
}

async fn send(shared: Arc<Shared>, request: Request<WasiBody>, options: RequestOptions) -> Result<Sent> {
    let Some(dial) = shared.dial.clone() else { return Err(Error::HttpRequestDenied) };
    let permit = shared.ledger.hold(ledger::Resource::Connections, 1).map_err(|_| Error::ConnectionLimitReached)?;
    let wanted = options.connect_timeout.unwrap_or(OUTGOING_TIMEOUT_MAX);
    let wanted = wanted.saturating_add(options.first_byte_timeout.unwrap_or(Duration::ZERO));
    let timeout = match (options.connect_timeout, options.first_byte_timeout) {
        (None, Some(first_byte)) => first_byte,
        _ => wanted,
    };
    let request = request.map(|body| body.map_err(|error| Box::new(error) as BoxError).boxed_unsync());
    let sent = tokio::time::timeout(timeout.min(OUTGOING_TIMEOUT_MAX), dial.http(&shared.caller, request)).await;
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

/// What a guest is told when its call got no response.
fn code(error: DialError) -> Error {
    match error {
        DialError::NameNotFound(_) => Error::DnsError { rcode: Some("NXDOMAIN".into()), info_code: None },
        // As a Service without endpoints refuses connections.
        DialError::NoEndpoint(_) => Error::ConnectionRefused,
        DialError::Denied(_) => Error::DestinationIpProhibited,
        DialError::Connection { source, .. } => match refused(&*source) {
            true => Error::ConnectionRefused,
            false => Error::ConnectionTerminated,
        },
        DialError::Timeout(_) => Error::ConnectionTimeout,
    }
}

fn refused(error: &(dyn std::error::Error + 'static)) -> bool {
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
    // The same function, told on: a body whose channel closes without it was cut, which the bindings can't tell apart
    // from an end when a store is dropped.
    linker.instance(TYPES)?.func_wrap(
        "[static]outgoing-body.finish",
        |mut store: StoreContextMut<'_, ComponentState>,
         (body, trailers): (Resource<HostOutgoingBody>, Option<Resource<FieldMap>>)| {
            let state = store.data_mut();
            // Told before, as the body may be read on another thread: where finishing fails, it sends an abort.
            if let Some(exchange) = &state.exchange {
                exchange.finish_body();
            }
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
