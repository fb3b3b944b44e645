//! The first sample: a greeting, its version, its environment, an echo, a slow answer and a stream.
#![no_std]
use guest::http::{Answer, Request, Response};
use guest::process::{env, sleep_ms};
use guest::{ToOwned, format, serve};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const LINES_MAX: u64 = 1_000_000_000;

serve! {
    "GET" "/" => greet,
    "GET" "/version" => version,
    "GET" "/env/*" => variable,
    "POST" "/echo" => echo,
    "GET" "/slow" => slow,
    "GET" "/stream" => stream,
}

/// Kubernetes passes a pod's name by the downward API, here as `POD_NAME` (and always as `HOSTNAME`).
fn greet(_: &Request) -> Answer {
    let pod = env("POD_NAME").or_else(|| env("HOSTNAME")).unwrap_or_else(|| "nobody".to_owned());
    Ok(Response::text(format!("hello from {pod}\n")).header("x-pod", &pod))
}

fn version(_: &Request) -> Answer {
    Ok(Response::text(format!("{}\n", env("VERSION").unwrap_or_else(|| "unknown".to_owned()))))
}

fn variable(request: &Request) -> Answer {
    match env(&request.rest) {
        Some(value) => Ok(Response::text(format!("{value}\n"))),
        None => Err(Response::error(404, &format!("{} is not set", request.rest))),
    }
}

/// Echoes each piece: a body of any size needs the memory of one piece.
fn echo(request: &Request) -> Answer {
    let content_type = request.header("content-type").unwrap_or_else(|| "application/octet-stream".to_owned());
    let body = request.body();
    Ok(Response::stream(&content_type, move |out| {
        while let Some(piece) = body.read()? {
            out.send(&piece)?;
        }
        Ok(())
    }))
}

fn slow(request: &Request) -> Answer {
    let ms = request.number("ms", DAY_MS)?;
    sleep_ms(ms);
    Ok(Response::text(format!("answered after {ms} ms\n")))
}

/// `?n=3` streams three lines, each sent before the next is generated; `&ms=100` waits between them.
fn stream(request: &Request) -> Answer {
    let lines = request.number("n", LINES_MAX)?;
    let pause_ms = request.query("ms").map(|_| request.number("ms", DAY_MS)).transpose()?.unwrap_or(0);
    Ok(Response::stream("text/plain; charset=utf-8", move |out| {
        for line in 1..=lines {
            if line > 1 && pause_ms > 0 {
                sleep_ms(pause_ms);
            }
            out.send(format!("line {line}\n").as_bytes())?;
        }
        Ok(())
    }))
}
