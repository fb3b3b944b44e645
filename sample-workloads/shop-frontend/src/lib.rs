//! The shop's front end: a page for users and an API for clients. It calls services by their Services' names: three required
//! ones, and `orders`, which stores orders if the shop has it.
#![no_std]
use guest::fetch::{self, Reply};
use guest::http::{Answer, Request, Response};
use guest::{String, format, serve, wasip2::random::random::get_random_u64};
use serde_json::{Value, json};

const BODY_BYTES_MAX: usize = 16 * 1024;
const QUANTITY_MAX: u64 = 1000;

serve! {
    "GET" "/" => page,
    "GET" "/api/products" => products,
    "POST" "/api/orders" => order,
    "GET" "/api/orders/*" => kept,
}

fn page(_: &Request) -> Answer {
    Ok(Response::html(include_str!("page.html")))
}

fn products(_: &Request) -> Answer {
    Ok(Response::json(ok("catalog", fetch::get("catalog", &["products"]))?))
}

/// Checks the local conditions first, then calls catalog and users, then the payment.
fn order(request: &Request) -> Answer {
    let order: Value = serde_json::from_slice(&request.bytes(BODY_BYTES_MAX)?)
        .map_err(|problem| Response::error(400, &format!("the body is not JSON: {problem}")))?;
    let quantity = order["quantity"].as_u64().filter(|quantity| (1..=QUANTITY_MAX).contains(quantity));
    let quantity = quantity.ok_or_else(|| invalid(&format!("quantity must be a whole number from 1 to {QUANTITY_MAX}")))?;
    let product = name(&order, "product")?;
    let user = name(&order, "user")?;

    let found = known(fetch::get("catalog", &["products", product]), &format!("no product {product}"))?;
    let found = ok("catalog", found)?;
    let price = found["price"].as_f64().ok_or_else(|| bad_gateway("catalog knows no price", product))?;
    ok("users", known(fetch::get("users", &["users", user]), &format!("no user {user}"))?)?;

    // Amounts are whole cents: 3 × 0.1 is 0.30000000000000004 otherwise.
    let cents = (price * 100.0 + 0.5) as u64 * quantity;
    let total = cents as f64 / 100.0;
    let id = format!("order-{:016x}", get_random_u64());
    let mut order = json!({"id": id, "status": "open", "product": product, "user": user, "quantity": quantity, "total": total});
    // Stored before it is paid: an order that cannot be stored costs no money.
    let keeps = keep(&id, &order)?;
    let payment = json!({"user": user, "amount": total});
    let payment = ok("payments", fetch::post_json("payments", &["payments"], &format!("{payment}")))?;
    order["status"] = payment["status"].clone();
    if keeps {
        keep(&id, &order)?;
    }
    Ok(Response::json(json!({"id": id, "status": order["status"], "total": total})))
}

/// Stores an order; false if the shop has no service for it.
fn keep(id: &str, order: &Value) -> Result<bool, Response> {
    match fetch::put_json("orders", &["orders", id], &format!("{order}")).transpose() {
        Some(reply) => ok("orders", reply).map(|_| true),
        None => Ok(false),
    }
}

/// A stored order.
fn kept(request: &Request) -> Answer {
    let unknown = format!("no order {}", request.rest);
    match fetch::find("orders", &["orders", &request.rest]).transpose() {
        Some(reply) => Ok(Response::json(ok("orders", known(reply, &unknown)?)?)),
        None => Err(Response::error(404, &unknown)),
    }
}

/// A non-empty string of the order.
fn name<'a>(order: &'a Value, key: &str) -> Result<&'a str, Response> {
    order[key].as_str().filter(|name| !name.is_empty()).ok_or_else(|| invalid(&format!("{key} must be a name")))
}

fn invalid(message: &str) -> Response {
    Response::error(422, message)
}

fn bad_gateway(what: &str, detail: &str) -> Response {
    Response::error(502, &format!("{what}: {detail}"))
}

/// 404 with `message` if the service returned 404; other responses are for [`ok`].
fn known(reply: Result<Reply, String>, message: &str) -> Result<Result<Reply, String>, Response> {
    match reply {
        Ok(reply) if reply.status == 404 => Err(Response::error(404, message)),
        reply => Ok(reply),
    }
}

/// The JSON of a successful response. Else 503 without a response, 502 for an unusable one.
fn ok(service: &str, reply: Result<Reply, String>) -> Result<Value, Response> {
    let reply = reply.map_err(|problem| Response::error(503, &problem))?;
    let body = serde_json::from_slice::<Value>(&reply.body);
    match (reply.status, body) {
        (200, Ok(body)) => Ok(body),
        (200, Err(problem)) => Err(bad_gateway(&format!("{service} answered no JSON"), &format!("{problem}"))),
        (status, body) => {
            let detail = body.ok().and_then(|body| body["error"].as_str().map(String::from));
            Err(bad_gateway(&format!("{service} answered {status}"), detail.as_deref().unwrap_or("no reason given")))
        }
    }
}
