//! Allocates as much memory as requested. Its manifest allows 64 MiB.
#![no_std]
use guest::http::{Answer, Request, Response};
use guest::{Vec, format, serve, vec};

const MIB: usize = 1024 * 1024;
/// More than a 32-bit memory can hold, so that the memory limit applies and not this bound.
const MEAL_MIB_MAX: u64 = 1024 * 1024;

serve! {
    "GET" "/" => home,
    "GET" "/eat" => eat,
}

fn home(_: &Request) -> Answer {
    Ok(Response::text("glutton: GET /eat?mb=N eats N MiB\n"))
}

/// In pieces of 1 MiB, each written completely: memory that is only reserved may cost nothing.
fn eat(request: &Request) -> Answer {
    let mb = request.number("mb", MEAL_MIB_MAX)?;
    let meal: Vec<Vec<u8>> = (0..mb).map(|_| core::hint::black_box(vec![0xEA; MIB])).collect();
    let eaten: usize = meal.iter().map(|bite| bite.len() / MIB).sum();
    Ok(Response::text(format!("ate {eaten} MiB\n")))
}
