//! Traps on request. This costs one request, not the pod.
#![no_std]
use guest::http::{Answer, Request, Response};
use guest::serve;

serve! {
    "GET" "/" => home,
    "GET" "/trap" => spring,
}

fn home(_: &Request) -> Answer {
    Ok(Response::text("trap: GET /trap executes unreachable\n"))
}

/// The result of a failed assertion, an index out of bounds or `unreachable!()`.
fn spring(_: &Request) -> Answer {
    core::arch::wasm32::unreachable()
}
