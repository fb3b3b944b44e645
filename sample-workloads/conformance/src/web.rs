//! An HTTP/1.1 server: a task for each connection, requests of a connection one after the other.
use crate::http::{self, Request, Response, header};
use crate::net::{Listener, Stream};
use crate::task::{spawn, within};
use alloc::rc::Rc;
use core::cell::Cell;
use core::future::Future;
use core::pin::Pin;
use guest::wasip2::clocks::wall_clock;
use guest::wasip2::sockets::network::ErrorCode;
use guest::{Box, String, ToOwned, Vec, format, text};
use unix::process::time_text;

/// A connection without a request is closed after it.
const IDLE_NS: u64 = 180_000_000_000;
/// Maximum connections of one listener: further ones are closed at once.
const CONNECTIONS_MAX: usize = 256;

/// A request with its decoded parts.
pub struct Call {
    pub request: Request,
    pub path: String,
    /// The parameters of a form in the body, then those of the query.
    parameters: Vec<(String, String)>,
    /// The client's address and port.
    pub peer: String,
}

impl Call {
    pub fn new(request: Request, peer: String) -> Self {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        let path = text::decode(path, false);
        let is_form = header(&request.headers, "content-type")
            .is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded"));
        let form = if is_form { String::from_utf8_lossy(&request.body).into_owned() } else { String::new() };
        let pairs = form.split('&').chain(query.split('&')).filter(|pair| !pair.is_empty());
        let parameters = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (text::decode(name, true), text::decode(value, true))
        });
        let parameters = parameters.collect();
        Self { path, parameters, peer, request }
    }

    /// A parameter; empty if it is missing.
    pub fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

pub type Answer = Pin<Box<dyn Future<Output = Response>>>;
pub type Handler = Rc<dyn Fn(Call) -> Answer>;

/// A handler of a function.
pub fn handler<F: Future<Output = Response> + 'static>(function: impl Fn(Call) -> F + 'static) -> Handler {
    Rc::new(move |call| Box::pin(function(call)))
}

/// Prints a line as Go's `log` does.
pub fn log(line: &str) {
    let now = wall_clock::now();
    guest::process::print_error(&format!("{} {line}", time_text("%Y/%m/%d %T", now.seconds, now.nanoseconds)));
}

/// Listens on a port; each connection gets a task.
pub fn listen(port: u16, handler: Handler) -> Result<(), ErrorCode> {
    let listener = Listener::bind(port)?;
    spawn(async move {
        let count = Rc::new(Cell::new(0_usize));
        while let Ok(stream) = listener.accept().await {
            if count.get() >= CONNECTIONS_MAX {
                continue; // closed by its drop
            }
            count.set(count.get() + 1);
            let (handler, count) = (Rc::clone(&handler), Rc::clone(&count));
            spawn(async move {
                serve(&stream, &handler).await;
                count.set(count.get() - 1);
            });
        }
        log(&format!("port {port}: accepts no more"));
    });
    Ok(())
}

async fn serve(stream: &Stream, handler: &Handler) {
    let mut received: Vec<u8> = Vec::new();
    let peer = stream.peer();
    loop {
        match http::request(&received) {
            Ok(Some((request, length))) => {
                received.drain(..length);
                let (keeps_alive, is_head) = (request.keeps_alive, request.method == "HEAD");
                let response = handler(Call::new(request, peer.clone())).await;
                let closes = !keeps_alive || header(&response.headers, "connection") == Some("close");
                if stream.write(&response.encode(is_head, !closes)).await.is_none() || closes {
                    break;
                }
            }
            Ok(None) => match within(IDLE_NS, stream.read()).await.flatten() {
                Some(bytes) => received.extend(bytes),
                None => break,
            },
            Err(http::Bad(status)) => {
                let problem = format!("{status} {}", http::reason(status));
                let _ = stream.write(&Response::new(status, problem).encode(false, false)).await; // it is closed in any case
                break;
            }
        }
    }
    stream.finish();
}

/// The pod's host name.
pub fn hostname() -> String {
    guest::process::env("HOSTNAME").unwrap_or_else(|| "localhost".to_owned())
}

/// A port of a flag's value.
pub fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| format!("invalid port {text:?}"))
}
