//! An HTTP service: the host calls `handle` for each request, in an instance of its own.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

/// The longest piece of one write (WASI's limit).
const PIECE_BYTES_MAX: usize = 4096;

struct Service;

impl Guest for Service {
    fn handle(request: IncomingRequest, response_out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let (status, text) = respond(&request.method(), &path);
        send(status, &text, response_out);
    }
}

wasip2::http::proxy::export!(Service);

/// The status and the text of a response.
fn respond(method: &Method, path: &str) -> (u16, String) {
    let path = path.split('?').next().unwrap_or_default();
    match (method, path, path.strip_prefix("/hello/")) {
        (Method::Get, "/", _) => (200, "hello from {{name}}\n".to_owned()),
        (Method::Get, _, Some(name)) if !name.is_empty() => (200, format!("hello {name}\n")),
        (Method::Get, ..) => (404, "not found\n".to_owned()),
        _ => (405, "method not allowed\n".to_owned()),
    }
}

fn send(status: u16, text: &str, response_out: ResponseOutparam) {
    let headers = Fields::from_list(&[("content-type".to_owned(), b"text/plain".to_vec())]);
    let response = OutgoingResponse::new(headers.expect("a valid header"));
    response.set_status_code(status).expect("a valid status");
    let body = response.body().expect("the body's first use");
    ResponseOutparam::set(response_out, Ok(response));
    let stream = body.write().expect("the stream's first use");
    for piece in text.as_bytes().chunks(PIECE_BYTES_MAX) {
        if stream.blocking_write_and_flush(piece).is_err() {
            return; // The client closed the connection.
        }
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_responses() {
        assert_eq!(respond(&Method::Get, "/"), (200, "hello from {{name}}\n".to_owned()));
        assert_eq!(respond(&Method::Get, "/hello/ada?x=1"), (200, "hello ada\n".to_owned()));
        assert_eq!(respond(&Method::Get, "/hello/").0, 404);
        assert_eq!(respond(&Method::Post, "/").0, 405);
    }
}
