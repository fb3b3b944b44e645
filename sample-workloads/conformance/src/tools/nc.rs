//! `nc` of OpenBSD as a client of TCP and UDP. It reads its input to the end, then sends it.
use crate::net::{Failure, Stream, Udp, resolve};
use crate::task::{self, within};
use core::net::{IpAddr, SocketAddr};
use guest::{String, ToOwned, Vec, format};
use unix::io::Stop;
use unix::{Context, Ended};

const SECOND_NS: u64 = 1_000_000_000;
/// Without `-w`: the kernel's connection timeout, and a day of silence.
const CONNECT_TIMEOUT_NS: u64 = 127 * SECOND_NS;
const IDLE_NS: u64 = 24 * 3600 * SECOND_NS;
/// Maximum bytes of the input.
const INPUT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Maximum bytes of a datagram.
const DATAGRAM_BYTES_MAX: usize = 16 * 1024;

#[derive(Default)]
struct Asked {
    is_verbose: bool,
    scans: bool,
    is_udp: bool,
    wait_ns: Option<u64>,
    host: String,
    port: u16,
}

fn read(args: &[String]) -> Result<Asked, String> {
    const USAGE: &str = "usage: nc [-ntuvz] [-w SECONDS] HOST PORT";
    let mut asked = Asked::default();
    let mut operands: Vec<&String> = Vec::new();
    let mut rest = args[1..].iter();
    while let Some(arg) = rest.next() {
        let Some(letters) = arg.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            operands.push(arg);
            continue;
        };
        for (at, letter) in letters.char_indices() {
            match letter {
                'v' => asked.is_verbose = true,
                'z' => asked.scans = true,
                'u' => asked.is_udp = true,
                'n' | 't' => {} // names are resolved, and no server of these tests negotiates by telnet
                'w' => {
                    let inline = &letters[at + 1..];
                    let text = if inline.is_empty() { rest.next().map_or("", String::as_str) } else { inline };
                    let seconds: u64 = text.parse().map_err(|_| format!("timeout invalid: {text}"))?;
                    asked.wait_ns = Some(seconds.saturating_mul(SECOND_NS));
                    break;
                }
                other => return Err(format!("unknown option -- {other}\n{USAGE}")),
            }
        }
    }
    let [host, port] = operands.as_slice() else { return Err(USAGE.to_owned()) };
    asked.host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    asked.port = port.parse().ok().filter(|port| *port > 0).ok_or_else(|| format!("port number invalid: {port}"))?;
    Ok(asked)
}

pub fn nc(context: &mut Context, args: &[String]) -> Ended {
    let asked = match read(args) {
        Ok(asked) => asked,
        Err(why) => return context.fail("nc", &why),
    };
    let input = if asked.scans { Vec::new() } else { input(context)? };
    task::run(async {
        let addresses = match resolve(&asked.host).await {
            Ok(addresses) => addresses,
            Err(failure) => {
                let why = format!("getaddrinfo for host \"{}\" port {}: {}", asked.host, asked.port, failure.words());
                return context.fail("nc", &why);
            }
        };
        if asked.is_udp {
            udp(context, &asked, addresses[0], &input).await
        } else {
            tcp(context, &asked, &addresses, &input).await
        }
    })
}

fn input(context: &mut Context) -> Result<Vec<u8>, Stop> {
    let mut all = Vec::new();
    loop {
        let bytes = context.input.read(&mut context.stdin)?;
        if bytes.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&bytes);
        if all.len() > INPUT_BYTES_MAX {
            return context.fail("nc", "the input is too long").and(Err(Stop(1)));
        }
    }
}

fn words(failure: &Failure) -> String {
    match failure {
        Failure::Refused => "Connection refused".into(),
        Failure::Timeout => "Operation timed out".into(),
        other => other.words(),
    }
}

async fn tcp(context: &mut Context, asked: &Asked, addresses: &[IpAddr], input: &[u8]) -> Ended {
    let Asked { host, port, .. } = asked;
    let connected = within(asked.wait_ns.unwrap_or(CONNECT_TIMEOUT_NS), Stream::connect(addresses, *port)).await;
    let stream = match connected.unwrap_or(Err(Failure::Timeout)) {
        Ok(stream) => stream,
        Err(failure) => {
            let why = format!("connect to {host} ({}) port {port} (tcp) failed: {}", addresses[0], words(&failure));
            return if asked.is_verbose || !asked.scans { context.fail("nc", &why) } else { Ok(1) };
        }
    };
    if asked.is_verbose {
        context.err.line(&format!("Connection to {host} ({}) {port} port [tcp/*] succeeded!", addresses[0]))?;
    }
    if asked.scans || stream.write(input).await.is_none() {
        return Ok(0);
    }
    while let Some(Some(bytes)) = within(asked.wait_ns.unwrap_or(IDLE_NS), stream.read()).await {
        context.out.write(&bytes)?;
    }
    Ok(0)
}

async fn udp(context: &mut Context, asked: &Asked, address: IpAddr, input: &[u8]) -> Ended {
    let Asked { host, port, .. } = asked;
    let socket = match Udp::connect(SocketAddr::new(address, *port)) {
        Ok(socket) => socket,
        Err(code) => return context.fail("nc", &format!("connect to {host} port {port} (udp) failed: {code}")),
    };
    if asked.is_verbose {
        context.err.line(&format!("Connection to {host} ({address}) {port} port [udp/*] succeeded!"))?;
    }
    for datagram in input.chunks(DATAGRAM_BYTES_MAX) {
        if let Err(code) = socket.send(datagram, None).await {
            return context.fail("nc", &format!("write failed: {code}"));
        }
    }
    if asked.scans {
        return Ok(0);
    }
    while let Some(Ok(datagrams)) = within(asked.wait_ns.unwrap_or(IDLE_NS), socket.receive()).await {
        for datagram in datagrams {
            context.out.write(&datagram.data)?;
        }
    }
    Ok(0)
}
