//! Logs without end. The node keeps what its rate limit allows, and counts the rest.
#![no_std]
use guest::http::{Answer, Request, Response};
use guest::{log, serve};

serve! {
    "GET" "/" => home,
    "GET" "/flood" => flood,
}

fn home(_: &Request) -> Answer {
    Ok(Response::text("chatter: GET /flood logs until its timeout\n"))
}

/// The lines are numbered, so that a reader sees how many were dropped.
fn flood(_: &Request) -> Answer {
    let mut number: u64 = 0;
    loop {
        number += 1;
        log!("flood {number}: so much to say, so little to tell");
    }
}
