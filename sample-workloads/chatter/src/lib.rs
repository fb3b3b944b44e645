//! Logs in an endless loop. The node keeps what the rate limit allows, and counts the dropped bytes.
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

/// The lines are numbered, so that the number of dropped lines is visible.
fn flood(_: &Request) -> Answer {
    let mut number: u64 = 0;
    loop {
        number += 1;
        log!("flood {number}: so much to say, so little to tell");
    }
}
