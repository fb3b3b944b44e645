//! `nslookup` and `nc`, as in busybox, over the pod's network: for the node's own toolbox, the only module with
//! `coracle:host/net`.
use crate::coracle::host::net::{Answer, Attempt, Names, Problem, connect, look_up, name_server};
use crate::io::{READ_BYTES, Stdin, Stop};
use crate::{Context, Ended, Tool};
use guest::wasip2::clocks::monotonic_clock::subscribe_duration;
use guest::wasip2::io::poll::{Pollable, poll};
use guest::wasip2::io::streams::{InputStream, OutputStream, StreamError};
use guest::{String, ToOwned, Vec, format};

/// The tools in addition to [`crate::TOOLS`].
pub static TOOLS: [(&str, Tool); 2] = [("nc", nc), ("nslookup", nslookup)];

const DNS_PORT: u16 = 53;
const SECOND_NS: u64 = 1_000_000_000;
/// The default connection timeout of `nc`, without `-w`.
const CONNECT_TIMEOUT_S: u64 = 60;

fn is_address(text: &str) -> bool {
    text.parse::<core::net::IpAddr>().is_ok()
}

/// An address with a port, in the form of URLs.
fn with_port(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// The messages of the kernel's errors.
fn words(problem: Problem) -> &'static str {
    match problem {
        Problem::NotFound => "Name does not resolve",
        Problem::Refused => "Connection refused",
        Problem::Denied => "Permission denied",
        Problem::Timeout => "Connection timed out",
        Problem::Limit => "Too many open connections",
        Problem::Broken => "Connection reset by peer",
    }
}

/// Waits for it; ^C aborts.
fn wait<T>(stdin: &mut Stdin, subscribed: &Pollable, get: impl Fn() -> Option<T>) -> Result<T, Stop> {
    loop {
        stdin.wait(subscribed)?;
        if let Some(came) = get() {
            return Ok(came);
        }
    }
}

fn ask(context: &mut Context, name: &str, server: Option<&str>) -> Result<Result<Names, Problem>, Stop> {
    let answer: Answer = look_up(name, server);
    wait(&mut context.stdin, &answer.subscribe(), || answer.get())
}

/// The query.
#[derive(Clone, Copy, PartialEq)]
enum Type {
    A,
    Aaaa,
    Ptr,
}

impl Type {
    fn has(self, address: &str) -> bool {
        match self {
            Self::A => !address.contains(':'),
            Self::Aaaa => address.contains(':'),
            Self::Ptr => false,
        }
    }
}

/// `nslookup [-type=a|aaaa|ptr] HOST [SERVER]`: queries DNS only, without a hosts file.
pub fn nslookup(context: &mut Context, args: &[String]) -> Ended {
    const USAGE: &str = "usage: nslookup [-type=a|aaaa|ptr] HOST [DNS_SERVER]";
    let mut types: Vec<Type> = Vec::new();
    let mut operands: Vec<&str> = Vec::new();
    for arg in &args[1..] {
        let wanted = ["-type=", "-query=", "-querytype=", "-q="].iter().find_map(|option| arg.strip_prefix(option));
        match wanted.map(str::to_ascii_lowercase).as_deref() {
            Some("a") => types.push(Type::A),
            Some("aaaa") => types.push(Type::Aaaa),
            Some("ptr") => types.push(Type::Ptr),
            Some(other) => return context.fail("nslookup", &format!("invalid query type \"{other}\"")),
            None if arg == "-debug" => {}
            None if arg.starts_with('-') && arg.len() > 1 => return context.fail("nslookup", USAGE),
            None => operands.push(arg),
        }
    }
    let (name, server) = match operands.as_slice() {
        [name] => (*name, None),
        [name, server] => (*name, Some(*server)),
        _ => return context.fail("nslookup", USAGE),
    };
    if types.is_empty() {
        types = if is_address(name) { Vec::from([Type::Ptr]) } else { Vec::from([Type::A, Type::Aaaa]) };
    }
    let asked = match server {
        None => name_server(),
        Some(server) => match server_address(context, server)? {
            Some(address) => Some(address),
            None => return context.fail("nslookup", &format!("bad address '{server}'")),
        },
    };
    let found = match &asked {
        Some(address) => ask(context, name, Some(address))?,
        None => Err(Problem::Timeout),
    };
    let (Some(address), false) = (asked, matches!(found, Err(Problem::Timeout))) else {
        context.err.line(";; connection timed out; no servers could be reached\n")?;
        return Ok(1);
    };
    context.out.line(&format!("Server:\t\t{}", server.unwrap_or(&address)))?;
    context.out.line(&format!("Address:\t{}\n", with_port(&address, DNS_PORT)))?;
    report(context, name, &types, found)
}

/// The address of the given name server.
fn server_address(context: &mut Context, server: &str) -> Result<Option<String>, Stop> {
    let bare = server.trim_start_matches('[').trim_end_matches(']');
    if is_address(bare) {
        return Ok(Some(bare.to_owned()));
    }
    let found = ask(context, server, None)?;
    Ok(found.ok().and_then(|names| names.addresses.into_iter().next()))
}

fn report(context: &mut Context, name: &str, types: &[Type], found: Result<Names, Problem>) -> Ended {
    let mut code = 0;
    for wanted in types {
        match &found {
            Ok(names) if *wanted == Type::Ptr && names.addresses.is_empty() => {
                context.out.line(&format!("{}\tname = {}", reversed(name), names.name))?;
            }
            Ok(names) => {
                for address in names.addresses.iter().filter(|address| wanted.has(address)) {
                    context.out.line(&format!("Name:\t{}\nAddress: {address}", names.name))?;
                }
            }
            Err(problem) => {
                let why = match problem {
                    Problem::NotFound => "NXDOMAIN",
                    Problem::Denied => "REFUSED",
                    _ => "SERVFAIL",
                };
                context.out.line(&format!("** server can't find {}: {why}", reversed(name)))?;
                code = 1;
            }
        }
        context.out.line("")?;
    }
    Ok(code)
}

/// The reverse name of an address; other names unchanged.
fn reversed(name: &str) -> String {
    match name.parse() {
        Ok(core::net::IpAddr::V4(ip)) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        Ok(core::net::IpAddr::V6(ip)) => {
            let digits =
                ip.octets().iter().rev().map(|byte| format!("{:x}.{:x}.", byte & 15, byte >> 4)).collect::<String>();
            format!("{digits}ip6.arpa")
        }
        Err(_) => name.to_owned(),
    }
}

/// The arguments of `nc`.
#[derive(Default)]
struct Asked {
    verbose: bool,
    scan: bool,
    numeric: bool,
    wait_s: Option<u64>,
    host: String,
    port: u16,
}

fn read(args: &[String]) -> Result<Asked, String> {
    const USAGE: &str = "usage: nc [-nvz] [-w SECONDS] HOST PORT";
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
                'v' => asked.verbose = true,
                'z' => asked.scan = true,
                'n' => asked.numeric = true,
                'w' => {
                    let inline = &letters[at + 1..];
                    let text = if inline.is_empty() { rest.next().map_or("", String::as_str) } else { inline };
                    let seconds = text.parse().map_err(|_| format!("invalid number '{text}'"))?;
                    asked.wait_s = Some(seconds).filter(|seconds| *seconds > 0);
                    break;
                }
                'l' | 'p' => return Err("it listens on no port: a guest has no sockets".to_owned()),
                'u' => return Err("there is no UDP".to_owned()),
                other => return Err(format!("invalid option -- '{other}'\n{USAGE}")),
            }
        }
    }
    let [host, port] = operands.as_slice() else { return Err(USAGE.to_owned()) };
    asked.host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    asked.port = port.parse().ok().filter(|port| *port > 0).ok_or_else(|| format!("bad port '{port}'"))?;
    if asked.numeric && !is_address(&asked.host) {
        return Err(format!("bad address '{}'", asked.host));
    }
    Ok(asked)
}

/// `nc [-nvz] [-w SECONDS] HOST PORT`
pub fn nc(context: &mut Context, args: &[String]) -> Ended {
    let asked = match read(args) {
        Ok(asked) => asked,
        Err(why) => return context.fail("nc", &why),
    };
    // The address is only printed: the connection uses the name, which may have several addresses.
    let address = if is_address(&asked.host) {
        asked.host.clone()
    } else {
        match ask(context, &asked.host, None)? {
            Ok(names) => names.addresses.into_iter().next().unwrap_or_default(),
            Err(Problem::Timeout) => return context.fail("nc", &format!("{}: name look-up timed out", asked.host)),
            Err(_) => return context.fail("nc", &format!("bad address '{}'", asked.host)),
        }
    };
    let shown = format!("{} ({})", asked.host, with_port(&address, asked.port));
    match dial(context, &asked)? {
        Ok((input, output)) => {
            if asked.verbose {
                context.err.line(&format!("{shown} open"))?;
            }
            if asked.scan { Ok(0) } else { carry(context, &asked, &input, output) }
        }
        Err(problem) => {
            if asked.verbose || !asked.scan {
                context.say("nc", &format!("{shown}: {}", words(problem)))?;
            }
            Ok(1)
        }
    }
}

type Connected = (InputStream, OutputStream);

fn dial(context: &mut Context, asked: &Asked) -> Result<Result<Connected, Problem>, Stop> {
    let attempt: Attempt = connect(&asked.host, asked.port);
    let (connected, late) =
        (attempt.subscribe(), subscribe_duration(seconds(asked.wait_s.unwrap_or(CONNECT_TIMEOUT_S))));
    loop {
        let ready = context.stdin.wait_for(&[&connected, &late])?;
        if let Some(came) = attempt.get() {
            return Ok(came);
        }
        if ready.contains(&1) {
            return Ok(Err(Problem::Timeout));
        }
    }
}

const fn seconds(seconds: u64) -> u64 {
    seconds.saturating_mul(SECOND_NS)
}

/// Data that was read and not yet sent.
struct Way {
    /// None after the sending half was closed.
    output: Option<OutputStream>,
    unsent: Vec<u8>,
    /// The end of the input was read.
    ended: bool,
    flushed: bool,
}

impl Way {
    /// Sends as much as fits. Whether anything was sent.
    fn send(&mut self) -> bool {
        let Some(output) = &self.output else { return false };
        if self.unsent.is_empty() && !self.ended {
            return false;
        }
        let sent = output.check_write().and_then(|room| {
            let room = self.unsent.len().min(room as usize);
            if room > 0 {
                output.write(&self.unsent[..room])?;
                self.unsent.drain(..room);
                return Ok(true);
            }
            if self.unsent.is_empty() && !self.flushed {
                output.flush()?;
                self.flushed = true;
                return Ok(true);
            }
            Ok(false)
        });
        let done = self.flushed && output.check_write().is_ok_and(|room| room > 0);
        if done || sent.is_err() {
            // The peer is closed, or all data was sent.
            (self.output, self.ended) = (None, true);
            self.unsent.clear();
            return true;
        }
        sent.unwrap_or(false)
    }
}

/// Copies in both directions, to the end of the peer's data.
fn carry(context: &mut Context, asked: &Asked, input: &InputStream, output: OutputStream) -> Ended {
    let mut way = Way { output: Some(output), unsent: Vec::new(), ended: false, flushed: false };
    let incoming = input.subscribe();
    loop {
        let mut moved = way.send();
        match input.read(READ_BYTES) {
            Ok(bytes) if bytes.is_empty() => {}
            Ok(bytes) => {
                context.out.write(&bytes)?;
                moved = true;
            }
            Err(StreamError::Closed) => return Ok(0),
            Err(StreamError::LastOperationFailed(_)) => return context.fail("nc", words(Problem::Broken)),
        }
        if way.unsent.is_empty() && !way.ended {
            match context.input.try_read(&mut context.stdin)? {
                Some(bytes) if bytes.is_empty() => (way.ended, moved) = (true, true),
                Some(bytes) => (way.unsent, moved) = (bytes, true),
                None => {}
            }
        }
        if moved {
            continue;
        }
        let mut waits: Vec<&Pollable> = Vec::from([&incoming]);
        let writable = way.output.as_ref().filter(|_| way.ended || !way.unsent.is_empty()).map(OutputStream::subscribe);
        waits.extend(&writable);
        let typed = (!way.ended && way.unsent.is_empty()).then(|| context.stdin.subscribe());
        let late = asked.wait_s.map(|wait_s| subscribe_duration(seconds(wait_s)));
        waits.extend(&typed);
        waits.extend(&late);
        let ready = if typed.is_some() { poll(&waits) } else { context.stdin.wait_for(&waits)? };
        if late.is_some() && ready.iter().all(|at| *at as usize == waits.len() - 1) && !ready.is_empty() {
            if asked.verbose {
                context.say("nc", &format!("{}: {}", asked.host, words(Problem::Timeout)))?;
            }
            return Ok(0);
        }
    }
}
