//! `agnhost porter`: values of environment variables, on the ports that the variables' names have.
//!
//! Not as upstream: `SERVE_TLS_PORT_` and `SERVE_SCTP_PORT_` are logged as failed servers.
use crate::flags::Flags;
use crate::http::Response;
use crate::net::Udp;
use crate::task::spawn;
use crate::web::{self, log};
use guest::wasip2::cli::environment::get_environment;
use guest::{String, ToString, format};
use serde_json::json;
use unix::{Context, Ended};

pub fn porter(context: &mut Context, args: &[String]) -> Ended {
    super::serve(context, "porter", async || {
        let flags = Flags::read(args, &[], &["json-response"])?;
        let is_json = flags.get("json-response") == Some("true");
        for (name, value) in get_environment() {
            start(&name, value, is_json);
        }
        Ok(())
    })
}

/// As upstream's, it goes on without a server that fails to start.
fn start(name: &str, value: String, is_json: bool) {
    let Some(rest) = name.strip_prefix("SERVE_") else { return };
    let Some((kind, port)) = rest.rsplit_once('_') else { return };
    let started = web::port(port).and_then(|port| match kind {
        "PORT" | "TCP_PORT" => serve_tcp(port, value, is_json),
        "UDP_PORT" => serve_udp(port, value),
        "TLS_PORT" => Err("this port serves no TLS".into()),
        "SCTP_PORT" => Err("a module has no SCTP".into()),
        _ => Ok(()),
    });
    if let Err(problem) = started {
        log(&format!("server on port {port:?} failed: {problem}"));
    }
}

fn serve_tcp(port: u16, value: String, is_json: bool) -> Result<(), String> {
    let respond = web::handler(move |call| {
        let response = if is_json {
            let body = json!({"Method": call.request.method, "Body": value});
            Response::ok(body.to_string()).with("Content-Type", "application/json")
        } else {
            Response::ok(value.clone())
        };
        core::future::ready(response)
    });
    web::listen(port, respond).map_err(|code| format!("{code}"))
}

fn serve_udp(port: u16, value: String) -> Result<(), String> {
    let socket = Udp::bind(port).map_err(|code| format!("{code}"))?;
    log(&format!("Started UDP server on port {port}"));
    spawn(async move {
        while let Ok(datagrams) = socket.receive().await {
            for datagram in datagrams {
                let _ = socket.send(value.as_bytes(), Some(datagram.remote_address)).await; // may be lost
            }
        }
    });
    Ok(())
}
