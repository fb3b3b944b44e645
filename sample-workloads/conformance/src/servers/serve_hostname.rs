//! `agnhost serve-hostname`: the pod's name by HTTP, or raw by TCP and UDP.
use super::not_listening;
use crate::flags::Flags;
use crate::http::Response;
use crate::net::{Listener, Udp, socket_address};
use crate::task::spawn;
use crate::web::{self, hostname, log};
use guest::{String, format};
use unix::{Context, Ended};

pub fn serve_hostname(context: &mut Context, args: &[String]) -> Ended {
    super::serve(context, "serve-hostname", async || start(args))
}

fn start(args: &[String]) -> Result<(), String> {
    let flags = Flags::read(args, &["port"], &["tcp", "udp", "http", "close"])?;
    let is_set = |name: &str| flags.get(name) == Some("true");
    let port = web::port(flags.get("port").unwrap_or("9376"))?;
    let (tcp, udp, closes) = (is_set("tcp"), is_set("udp"), is_set("close"));
    let http = flags.get("http").is_none_or(|value| value == "true");
    if http && (tcp || udp) {
        return Err("Can't server TCP/UDP mode and HTTP mode at the same time".into());
    }
    if tcp {
        let listener = Listener::bind(port).map_err(|code| not_listening("tcp", port, code))?;
        spawn(async move {
            while let Ok(stream) = listener.accept().await {
                log(&format!("TCP request from {}", stream.peer()));
                spawn(async move {
                    let _ = stream.write(hostname().as_bytes()).await; // it is closed in any case
                    stream.finish();
                });
            }
        });
    }
    if udp {
        let socket = Udp::bind(port).map_err(|code| not_listening("udp", port, code))?;
        spawn(async move {
            while let Ok(datagrams) = socket.receive().await {
                for datagram in datagrams {
                    log(&format!("UDP request from {}", socket_address(datagram.remote_address)));
                    let _ = socket.send(hostname().as_bytes(), Some(datagram.remote_address)).await; // may be lost
                }
            }
        });
    }
    if http {
        let respond = web::handler(move |call| async move {
            log(&format!("HTTP request from {}", call.peer));
            let response = Response::ok(hostname());
            if closes { response.with("Connection", "close") } else { response }
        });
        web::listen(port, respond).map_err(|code| not_listening("tcp", port, code))?;
    }
    log(&format!("Serving on port {port}."));
    Ok(())
}
