//! The shop's customers: three constant ones, in place of a database.
#![no_std]
use guest::http::{Answer, Request, Response};
use guest::{Vec, format, serve};
use serde_json::{Value, json};

const USERS: [(&str, &str); 3] = [("ada", "Ada Lovelace"), ("grace", "Grace Hopper"), ("katherine", "Katherine Johnson")];

serve! {
    "GET" "/" => home,
    "GET" "/users" => all,
    "GET" "/users/*" => one,
}

fn home(_: &Request) -> Answer {
    Ok(Response::text("users: GET /users, GET /users/NAME\n"))
}

fn all(_: &Request) -> Answer {
    Ok(Response::json(Value::Array(USERS.iter().map(user).collect::<Vec<_>>())))
}

fn one(request: &Request) -> Answer {
    let found = USERS.iter().find(|(name, _)| *name == request.rest);
    found.map(|found| Response::json(user(found))).ok_or_else(|| Response::error(404, &format!("no user {}", request.rest)))
}

fn user((name, full_name): &(&str, &str)) -> Value {
    json!({"name": name, "fullName": full_name})
}
