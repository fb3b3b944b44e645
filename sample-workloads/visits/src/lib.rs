//! A server with state and settings: `GET /` counts visits in `wasi:keyvalue`, with the current greeting of `wasi:config`.
//! Annotations grant both to its pod (`manifests/visits.yaml`). As a command (`kind.coracle.dev/CONTAINER: command`, for instance
//! in a Job) it prints the number of visits.
#![no_std]
use guest::http::{Answer, Request, Response};
use guest::process::{print, print_error};
use guest::{String, ToOwned, format, serve};

use wasi::config::store as config;
use wasi::keyvalue::{atomics, store};

wit_bindgen::generate!({ path: "wit", world: "stateful", generate_all });

serve! {
    "GET" "/" => visit,
    "GET" "/settings" => settings,
}

fn failed(error: impl core::fmt::Debug) -> Response {
    Response::error(500, &format!("{error:?}"))
}

fn visit(_: &Request) -> Answer {
    let bucket = store::open("visits").map_err(failed)?;
    let visits = atomics::increment(&bucket, "all", 1).map_err(failed)?;
    let greeting = config::get("GREETING").map_err(failed)?.unwrap_or_else(|| "hello".to_owned());
    Ok(Response::text(format!("{greeting}, visit {visits}\n")))
}

struct Report;
guest::wasip2::cli::command::export!(Report);

impl guest::wasip2::exports::cli::run::Guest for Report {
    fn run() -> Result<(), ()> {
        let visits = store::open("visits").and_then(|bucket| atomics::increment(&bucket, "all", 0));
        let visits = visits.map_err(|error| print_error(&format!("visits: {error:?}")))?;
        print(&format!("{visits} visits"));
        Ok(())
    }
}

fn settings(_: &Request) -> Answer {
    let all = config::get_all().map_err(failed)?;
    let lines = all.iter().map(|(name, value)| format!("{name}={value}\n"));
    Ok(Response::text(lines.collect::<String>()))
}
