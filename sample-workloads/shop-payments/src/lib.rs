//! Takes payments. Its key comes from a Secret, as an environment variable; without the key it rejects requests.
#![no_std]
use guest::http::{Answer, Request, Response};
use guest::{format, process::env, serve, wasip2::random::random::get_random_u64};
use serde_json::{Value, json};

const BODY_BYTES_MAX: usize = 16 * 1024;

serve! {
    "GET" "/" => home,
    "POST" "/payments" => pay,
}

fn home(_: &Request) -> Answer {
    Ok(Response::text("payments: POST /payments {\"user\": NAME, \"amount\": NUMBER}\n"))
}

fn pay(request: &Request) -> Answer {
    // A real service would sign its call to the bank with the key. The key is in no response and in no log.
    let _key = env("PAYMENTS_KEY")
        .filter(|key| !key.trim().is_empty())
        .ok_or_else(|| Response::error(503, "no key: PAYMENTS_KEY of the Secret payments is missing"))?;
    let order: Value = serde_json::from_slice(&request.bytes(BODY_BYTES_MAX)?)
        .map_err(|problem| Response::error(400, &format!("the body is not JSON: {problem}")))?;
    let user = order["user"].as_str().ok_or_else(|| Response::error(422, "user must be a name"))?;
    let amount = order["amount"]
        .as_f64()
        .filter(|amount| *amount > 0.0)
        .ok_or_else(|| Response::error(422, "amount must be a positive number"))?;
    let id = format!("payment-{:016x}", get_random_u64());
    Ok(Response::json(json!({"id": id, "status": "paid", "user": user, "amount": amount})))
}
