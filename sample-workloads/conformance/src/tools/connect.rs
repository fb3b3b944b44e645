//! `agnhost connect`: tries a connection, and reports a failure by a word that tests expect.
//!
//! Not as upstream: a module has no SCTP.
use crate::duration::nanoseconds;
use crate::flags::Flags;
use crate::net::{Failure, Stream, Udp, resolve, split_host_port};
use crate::task::{self, within};
use core::net::SocketAddr;
use guest::{String, Vec, format};
use unix::{Context, Ended};

const FLAGS: [&str; 4] = ["timeout", "protocol", "udp-data", "sctp-data"];
/// Without `--timeout`: the kernel's connection timeout.
const TIMEOUT_NS: u64 = 127_000_000_000;

pub fn connect(context: &mut Context, args: &[String]) -> Ended {
    let (operands, flags): (Vec<String>, Vec<String>) =
        args.iter().skip(1).cloned().partition(|arg| !arg.starts_with("--"));
    // `--timeout 3s` has its value in a word of its own.
    let (destination, args) = match operands.as_slice() {
        [destination] => (destination.clone(), [&args[..1], &flags].concat()),
        _ => match separate(args) {
            Some(separated) => separated,
            None => return usage(context, "accepts 1 arg(s)"),
        },
    };
    let flags = match Flags::read(&args, &FLAGS, &[]) {
        Ok(flags) => flags,
        Err(why) => return usage(context, &why),
    };
    let Some(timeout) = flags.get("timeout").map_or(Some(0), nanoseconds) else {
        return usage(context, "invalid argument for \"--timeout\"");
    };
    let timeout = if timeout == 0 { TIMEOUT_NS } else { timeout };
    let protocol = flags.get("protocol").unwrap_or("tcp");
    let result = match protocol {
        "tcp" => task::run(tcp(&destination, timeout)),
        "udp" => task::run(udp(&destination, timeout, flags.get("udp-data").unwrap_or("hostname"))),
        _ => Err(format!("Unsupported protocol {protocol}")),
    };
    match result {
        Ok(()) => Ok(0),
        Err(line) => {
            context.err.line(&line)?;
            Ok(1)
        }
    }
}

fn usage(context: &mut Context, problem: &str) -> Ended {
    context.err.line(&format!("Error: {problem}"))?;
    Ok(1)
}

/// The destination is the word that is neither a flag nor a flag's value.
fn separate(args: &[String]) -> Option<(String, Vec<String>)> {
    let mut destination = None;
    let mut flags = Vec::from([args.first()?.clone()]);
    let mut rest = args[1..].iter();
    while let Some(arg) = rest.next() {
        if arg.starts_with("--") {
            flags.push(arg.clone());
            if !arg.contains('=') {
                flags.push(rest.next()?.clone());
            }
        } else if destination.replace(arg.clone()).is_some() {
            return None;
        }
    }
    Some((destination?, flags))
}

async fn addresses(destination: &str) -> Result<(Vec<core::net::IpAddr>, u16), String> {
    let missing = || format!("UNKNOWN: address {destination}: missing port in address");
    let (host, port) = split_host_port(destination).ok_or_else(missing)?;
    let addresses = resolve(host).await.map_err(|failure| format!("DNS: lookup {host}: {}", failure.words()))?;
    Ok((addresses, port))
}

async fn tcp(destination: &str, timeout: u64) -> Result<(), String> {
    let (addresses, port) = addresses(destination).await?;
    match within(timeout, Stream::connect(&addresses, port)).await {
        Some(Ok(_)) => Ok(()),
        None | Some(Err(Failure::Timeout)) => Err("TIMEOUT".into()),
        Some(Err(Failure::Refused)) => Err("REFUSED".into()),
        Some(Err(other)) => Err(format!("OTHER: dial tcp {destination}: {}", other.words())),
    }
}

async fn udp(destination: &str, timeout: u64, data: &str) -> Result<(), String> {
    let (addresses, port) = addresses(destination).await?;
    let socket = Udp::connect(SocketAddr::new(addresses[0], port)).map_err(|code| format!("OTHER: {code}"))?;
    match socket.exchange(format!("{data}\n").as_bytes(), timeout).await {
        Ok(data) if data.is_empty() => Err("OTHER: No data received from the server.".into()),
        Ok(_) => Ok(()),
        Err(Failure::Timeout) => Err("TIMEOUT: i/o timeout".into()),
        Err(Failure::Refused) => Err("REFUSED: connection refused".into()),
        Err(other) => Err(format!("UNKNOWN: {}", other.words())),
    }
}
