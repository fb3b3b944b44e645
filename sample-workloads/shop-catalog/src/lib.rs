//! The shop's products, from a ConfigMap that is mounted as a volume and read at each request, so that an edit of the
//! ConfigMap needs no restart.
#![no_std]
use guest::http::{Answer, Request, Response};
use guest::{Vec, files, format, serve};
use serde_json::Value;

const PRODUCTS: &str = "/etc/catalog/products.json";

serve! {
    "GET" "/" => home,
    "GET" "/products" => all,
    "GET" "/products/*" => one,
}

fn home(_: &Request) -> Answer {
    Ok(Response::text("catalog: GET /products, GET /products/ID\n"))
}

fn all(_: &Request) -> Answer {
    Ok(Response::json(Value::Array(products()?)))
}

fn one(request: &Request) -> Answer {
    let product = products()?.into_iter().find(|product| product["id"] == request.rest.as_str());
    product.map(Response::json).ok_or_else(|| Response::error(404, &format!("no product {}", request.rest)))
}

fn products() -> Result<Vec<Value>, Response> {
    let failed = |problem: &dyn core::fmt::Display| Response::error(500, &format!("{PRODUCTS}: {problem}"));
    let content = files::read(PRODUCTS).map_err(|problem| failed(&problem))?;
    serde_json::from_slice(&content).map_err(|problem| failed(&problem))
}
