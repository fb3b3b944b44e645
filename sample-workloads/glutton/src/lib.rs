//! Eats as much memory as it is told to. Its manifest allows 64 MiB.
#![no_std]
use guest::http::{Answer, Request, Response};
use guest::{Vec, format, serve, vec};

const MIB: usize = 1024 * 1024;
/// More than any memory of 32 bits has, so that the memory ends the meal and not this number.
const MEAL_MIB_MAX: u64 = 1024 * 1024;

serve! {
    "GET" "/" => home,
    "GET" "/eat" => eat,
}

fn home(_: &Request) -> Answer {
    Ok(Response::text("glutton: GET /eat?mb=N eats N MiB\n"))
}

/// In bites of 1 MiB, each written to all over: memory that is only asked for may cost nothing.
fn eat(request: &Request) -> Answer {
    let mb = request.number("mb", MEAL_MIB_MAX)?;
    let meal: Vec<Vec<u8>> = (0..mb).map(|_| core::hint::black_box(vec![0xEA; MIB])).collect();
    let eaten: usize = meal.iter().map(|bite| bite.len() / MIB).sum();
    Ok(Response::text(format!("ate {eaten} MiB\n")))
}
