//! What upstream's test images serve over HTTP, as far as tests look at it: the first page of its web server images.
#![no_std]
use guest::http::{Answer, Request, Response};
use guest::serve;

serve! {
    "GET" "/" => page,
    "GET" "/index.html" => page,
}

fn page(_: &Request) -> Answer {
    Ok(Response::html("<!doctype html>\n<title>Welcome</title>\n<p>The web server of the conformance tests is running.</p>\n"))
}
