//! `agnhost netexec`: a server of HTTP and UDP whose responses tell about itself, its clients and other servers.
//!
//! Not as upstream: it has no TLS and no SCTP, `/shell` and `/upload` report errors, and no signal delays its end.
use super::{exit, not_listening};
use crate::client;
use crate::duration::nanoseconds;
use crate::flags::Flags;
use crate::http::{Request, Response, canonical, header};
use crate::net::{Udp, resolve, socket_address};
use crate::task::{sleep, spawn};
use crate::web::{self, Call, Handler, hostname, log};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use core::cell::Cell;
use core::net::{IpAddr, SocketAddr};
use guest::wasip2::clocks::wall_clock;
use guest::{Box, String, ToOwned, ToString, Vec, format};
use serde_json::{Map, Value, json};
use unix::process::time_text;
use unix::{Context, Ended};

const FLAGS: [&str; 8] = [
    "http-port",
    "udp-port",
    "sctp-port",
    "tls-cert-file",
    "tls-private-key-file",
    "http-override",
    "udp-listen-addresses",
    "delay-shutdown",
];
const DATAGRAM_TIMEOUT_NS: u64 = 5_000_000_000;
/// Maximum of `tries`: each one takes 5 s at worst.
const TRIES_MAX: u32 = 1000;

struct Server {
    http_port: u16,
    /// Whether the UDP server runs.
    is_ready: Cell<bool>,
}

pub fn netexec(context: &mut Context, args: &[String]) -> Ended {
    super::serve(context, "netexec", async || start(args))
}

fn start(args: &[String]) -> Result<(), String> {
    let flags = Flags::read(args, &FLAGS, &[])?;
    if flags.get("tls-cert-file").is_some() {
        return Err("--tls-cert-file: this port serves no TLS".into());
    }
    if flags.get("sctp-port").is_some_and(|port| port != "-1") {
        return Err("--sctp-port: a module has no SCTP".into());
    }
    let http_port = web::port(flags.get("http-port").unwrap_or("8080"))?;
    let server = Rc::new(Server { http_port, is_ready: Cell::new(false) });
    match flags.get("udp-port").unwrap_or("8081") {
        "-1" => {}
        text => listen_udp(&server, flags.get("udp-listen-addresses"), web::port(text)?)?,
    }
    let handler: Handler = match flags.get("http-override").map(ToOwned::to_owned) {
        None => {
            let server = Rc::clone(&server);
            web::handler(move |call| respond(Rc::clone(&server), call))
        }
        Some(target) => {
            let server = Rc::clone(&server);
            web::handler(move |call| respond(Rc::clone(&server), overridden(&target, call.peer)))
        }
    };
    web::listen(http_port, handler).map_err(|code| not_listening("tcp", http_port, code))?;
    log(&format!("Started HTTP server on port {http_port}"));
    Ok(())
}

/// The call that every request is handled as.
fn overridden(target: &str, peer: String) -> Call {
    let (method, headers) = ("GET".to_owned(), Vec::new());
    let request = Request { method, target: target.to_owned(), headers, body: Vec::new(), keeps_alive: true };
    Call::new(request, peer)
}

fn listen_udp(server: &Rc<Server>, addresses: Option<&str>, port: u16) -> Result<(), String> {
    let failed = |code| not_listening("udp", port, code);
    let mut sockets = Vec::new();
    let mut all: Vec<IpAddr> = Vec::new();
    for address in addresses.iter().flat_map(|text| text.split(',')) {
        let ip = address.parse().map_err(|_| format!("parseAddress: invalid address {address}"))?;
        if !all.contains(&ip) {
            all.push(ip);
            sockets.push(Udp::bind_at(SocketAddr::new(ip, port)).map_err(failed)?);
        }
    }
    if addresses.is_none() {
        sockets.push(Udp::bind(port).map_err(failed)?);
    }
    for socket in sockets {
        log(&format!("Started UDP server on port {port}"));
        server.is_ready.set(true);
        let server = Rc::clone(server);
        spawn(async move {
            while let Ok(datagrams) = socket.receive().await {
                for datagram in datagrams {
                    let client = socket_address(datagram.remote_address);
                    if let Some(response) = respond_to_datagram(&datagram.data, &client.to_string(), port) {
                        let _ = socket.send(response.as_bytes(), Some(datagram.remote_address)).await; // may be lost
                    }
                }
            }
            log("UDP server exited");
            server.is_ready.set(false);
        });
    }
    Ok(())
}

fn respond_to_datagram(data: &[u8], client: &str, port: u16) -> Option<String> {
    let text = String::from_utf8_lossy(data).trim().to_lowercase();
    match text.split_once(' ') {
        Some(("echo", message)) => {
            log(&format!("Echoing {message} to UDP client {client}"));
            return Some(message.to_owned());
        }
        _ if text == "hostname" => {
            log("Sending udp hostName response");
            return Some(hostname());
        }
        _ if text == "clientip" => {
            log(&format!("Sending clientip back to UDP client {client}"));
            return Some(client.to_owned());
        }
        _ if text == "serverport" => {
            log(&format!("Sending server port to UDP client {port}"));
            return Some(port.to_string());
        }
        _ if !text.is_empty() => log(&format!("Unknown UDP command received from {client}: {text}")),
        _ => {}
    }
    None
}

async fn respond(server: Rc<Server>, call: Call) -> Response {
    let path = call.path.as_str();
    match path {
        "/clientip" => Response::ok(call.peer.clone()),
        "/serverport" => Response::ok(server.http_port.to_string()),
        "/header" => headers(&call),
        "/dial" => dial(&call).await,
        "/echo" => echo(&call),
        "/exit" => end(&call).await,
        "/healthz" => health(&server, ""),
        "/readyz" => health(&server, "ok"),
        "/hostname" | "/hostName" => {
            log(&format!("GET {path}"));
            Response::ok(hostname())
        }
        "/redirect" => redirect(&call),
        "/shell" => Response::ok(json!({"error": "a module starts no programs"}).to_string()),
        "/upload" => Response::ok(json!({"error": "Unable to open file for write"}).to_string()),
        "/shutdown" => exit(0),
        _ => {
            log("GET /");
            let now = wall_clock::now();
            Response::ok(format!("NOW: {}", time_text("%F %T.%N +0000 UTC", now.seconds, now.nanoseconds)))
        }
    }
}

fn health(server: &Server, body: &str) -> Response {
    if server.is_ready.get() { Response::ok(body) } else { Response::new(412, "") }
}

fn headers(call: &Call) -> Response {
    let key = call.parameter("key");
    if !key.is_empty() {
        return Response::ok(header(&call.request.headers, key).unwrap_or_default());
    }
    let mut all: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, value) in call.request.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
        all.entry(canonical(name)).or_default().push(value);
    }
    Response::ok(json!(all).to_string())
}

/// The code of a parameter; upstream's response to another text.
fn code(call: &Call, otherwise: u16) -> Result<u16, Response> {
    match call.parameter("code") {
        "" => Ok(otherwise),
        // Go's server panics for a status of other than three digits, which closes the connection.
        text => text
            .parse()
            .ok()
            .filter(|code| (200..1000).contains(code))
            .ok_or_else(|| Response::ok(format!("argument 'code' must be an integer or empty, got {text:?}\n"))),
    }
}

fn echo(call: &Call) -> Response {
    let message = call.parameter("msg");
    log(&format!("GET /echo?msg={message}&code={}", call.parameter("code")));
    code(call, 200).map_or_else(|problem| problem, |code| Response::new(code, message))
}

fn redirect(call: &Call) -> Response {
    let location = call.parameter("location");
    log(&format!("{} /redirect?msg={location}&code={}", call.request.method, call.parameter("code")));
    match code(call, 302) {
        Ok(code) => {
            let page = format!("<a href=\"{location}\">{}</a>.\n\n", crate::http::reason(code));
            Response::new(code, page).with("Location", location)
        }
        Err(problem) => problem,
    }
}

async fn end(call: &Call) -> Response {
    let duration = |name: &str| match call.parameter(name) {
        "" => Ok(0),
        text => nanoseconds(text).ok_or_else(|| {
            Response::ok(format!("argument '{name}' must be a valid golang duration or empty, got {text:?}\n"))
        }),
    };
    let (wait, timeout) = match (duration("wait"), duration("timeout")) {
        (Ok(wait), Ok(timeout)) => (wait, timeout),
        (Err(problem), _) | (_, Err(problem)) => return problem,
    };
    let code = match call.parameter("code") {
        "" => 0,
        text => match text.parse::<u8>().ok().filter(|code| *code < 128) {
            Some(code) => code,
            None => {
                let problem = format!("argument 'code' must be an integer [0-127] or empty, got {text:?}\n");
                return Response::ok(problem);
            }
        },
    };
    log(&format!(
        "Will begin shutdown in {wait}ns, allowing {timeout}ns for connections to close, then will exit with {code}"
    ));
    sleep(wait).await;
    if timeout == 0 {
        exit(code);
    }
    // This response ends its connection; others have the time.
    spawn(async move {
        sleep(timeout.min(1_000_000_000)).await;
        exit(code);
    });
    Response::ok("").with("Connection", "close")
}

/// Dials another server as many times as requested; the response has all results.
async fn dial(call: &Call) -> Response {
    let [host, port, request, protocol, tries] =
        ["host", "port", "request", "protocol", "tries"].map(|name| call.parameter(name));
    log(&format!("GET /dial?host={host}&protocol={protocol}&port={port}&request={request}&tries={tries}"));
    let tries = match tries {
        "" => 1,
        text => match text.parse::<u32>() {
            Ok(tries) => tries.min(TRIES_MAX),
            Err(error) => return Response::error(400, &format!("tries parameter is invalid. {error}")),
        },
    };
    if request.is_empty() {
        return Response::error(400, "request parameter not specified. <nil>");
    }
    let is_udp = match protocol.to_ascii_lowercase().as_str() {
        "" | "http" => false,
        "udp" => true,
        _ => return Response::error(400, &format!("unsupported protocol. {protocol}")),
    };
    let address = match (resolve(host).await, port.parse::<u16>()) {
        (Ok(addresses), Ok(port)) => SocketAddr::new(addresses[0], port),
        (Err(failure), _) => return invalid(&failure.words()),
        (_, Err(error)) => return invalid(&error.to_string()),
    };
    let (mut responses, mut errors) = (Vec::new(), Vec::new());
    for _ in 0..tries {
        let result =
            if is_udp { dial_udp(request, address).await } else { client::get(&address.to_string(), request).await };
        match result {
            Ok(response) => responses.push(Value::from(response)),
            Err(error) => errors.push(Value::from(error)),
        }
    }
    let mut output = Map::new();
    if !responses.is_empty() {
        output.insert("responses".into(), responses.into());
    }
    if !errors.is_empty() {
        output.insert("errors".into(), errors.into());
    }
    Response::ok(Value::from(output).to_string())
}

fn invalid(problem: &str) -> Response {
    Response::error(400, &format!("host and/or port param are invalid. {problem}"))
}

async fn dial_udp(request: &str, address: SocketAddr) -> Result<String, String> {
    let socket = Udp::connect(address).map_err(|code| format!("udp dial failed. err:{code}"))?;
    match Box::pin(socket.exchange(request.as_bytes(), DATAGRAM_TIMEOUT_NS)).await {
        Ok(response) if !response.is_empty() => Ok(String::from_utf8_lossy(&response).into_owned()),
        Ok(_) => Err("reading from udp connection failed. err:'<nil>'".into()),
        Err(failure) => {
            Err(format!("reading from udp connection failed. err:'read udp {address}: {}'", failure.words()))
        }
    }
}
