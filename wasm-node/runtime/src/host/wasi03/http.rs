//! `wasi:http`: types, and outgoing requests with the limits of 0.2, through the same
//! [`Dial`](machinery_serve::net::Dial).

use std::any::Any;

use wasmtime::component::Linker;
use wasmtime_wasi_http::p3::{Request, Response};

use super::super::http::{INCOMING_BODY_BYTES, OUTGOING_BODY_BYTES, fields_bytes};
use super::super::state::ComponentState;

/// Host memory of an entry of the guest's table. A body may have been made by the guest or by the host: the larger counts.
pub(crate) fn held_bytes(entry: &(dyn Any + Send)) -> Option<u64> {
    let body = INCOMING_BODY_BYTES.max(OUTGOING_BODY_BYTES);
    if let Some(request) = entry.downcast_ref::<Request>() {
        return Some(fields_bytes(&request.headers) + body);
    }
    let response = entry.downcast_ref::<Response>()?;
    Some(fields_bytes(&response.headers) + body)
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    wasmtime_wasi_http::p3::add_to_linker(linker)
}
