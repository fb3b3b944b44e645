//! A common bug: one path that never returns. Fuel or a timeout ends the request; neighbours are not affected.
#![no_std]
use guest::http::{Answer, Request, Response};
use guest::serve;

serve! {
    "GET" "/" => home,
    "GET" "/loop" => turn,
}

fn home(_: &Request) -> Answer {
    Ok(Response::text("endless: GET /loop never answers\n"))
}

fn turn(_: &Request) -> Answer {
    let mut round: u64 = 0;
    loop {
        round = core::hint::black_box(round.wrapping_add(1)); // work that the compiler can't remove
    }
}
