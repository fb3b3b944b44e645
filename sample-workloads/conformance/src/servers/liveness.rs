//! `agnhost liveness`: a server that is healthy for ten seconds.
use super::not_listening;
use crate::http::Response;
use crate::web;
use guest::wasip2::clocks::monotonic_clock::now;
use guest::{String, format};
use unix::{Context, Ended};

const PORT: u16 = 8080;
const HEALTHY_S: f64 = 10.0;

pub fn liveness(context: &mut Context, _: &[String]) -> Ended {
    let started = now();
    let respond = web::handler(move |call| {
        let seconds = (now() - started) as f64 / 1e9;
        let response = match call.path.as_str() {
            "/started" => Response::ok(format!("{seconds}s")),
            "/healthz" if seconds > HEALTHY_S => Response::new(500, format!("error: {seconds}")),
            "/healthz" => Response::ok("ok"),
            "/redirect" => Response::new(302, "").with("Location", call.parameter("loc")),
            _ => Response::error(404, "404 page not found"),
        };
        core::future::ready(response)
    });
    super::serve(context, "liveness", async || {
        web::listen(PORT, respond).map_err(|code| not_listening("tcp", PORT, code))
    })
}
