//! Becomes ready 3 s after its first probe: a service that warms a cache.
//!
//! Instances live as long as their requests, so the time of the first probe is in a volume (an emptyDir), shared by all
//! instances and the next run of the container.
#![no_std]
use guest::http::{Answer, Request, Response};
use guest::wasip2::filesystem::types::ErrorCode;
use guest::{String, files, format, process, serve};

const FIRST_PROBE: &str = "/state/first-probe";
const WARM_UP_MS: u64 = 3000;

serve! {
    "GET" "/" => home,
    "GET" "/ready" => ready,
}

fn home(_: &Request) -> Answer {
    Ok(Response::text("late: GET /ready answers 503 until 3 s after its first request\n"))
}

fn ready(_: &Request) -> Answer {
    let now_ms = process::now_ms();
    let first_ms = first_probe_ms(now_ms).map_err(|problem| Response::error(500, &format!("{FIRST_PROBE}: {problem}")))?;
    match (first_ms + WARM_UP_MS).saturating_sub(now_ms) {
        0 => Ok(Response::text("ready\n")),
        left => Err(Response::error(503, &format!("ready in {left} ms"))),
    }
}

/// The stored time; stores and returns `now_ms` if there is none. Of two concurrent probes one creates the file.
fn first_probe_ms(now_ms: u64) -> Result<u64, ErrorCode> {
    match files::create(FIRST_PROBE, format!("{now_ms}\n").as_bytes()) {
        Ok(()) => Ok(now_ms),
        Err(ErrorCode::Exist) => {
            let kept = String::from_utf8(files::read(FIRST_PROBE)?).unwrap_or_default();
            Ok(kept.trim().parse().unwrap_or(now_ms)) // empty between the other probe's create and write
        }
        Err(problem) => Err(problem),
    }
}
