//! `dig`, `nslookup` and `getent hosts`; the resolver's settings as `agnhost` prints them.
//!
//! `dig` and `nslookup` query the name servers of `/etc/resolv.conf`. `getent` resolves as the node does, hosts file first.
use crate::dns::{self, Reply, Settings};
use crate::net::{Failure, Stream, Udp, resolve};
use crate::task::{self, within};
use core::net::{IpAddr, SocketAddr};
use guest::wasip2::filesystem::types::{DescriptorFlags, OpenFlags};
use guest::wasip2::random::random::get_random_u64;
use guest::{String, ToOwned, Vec, format};
use unix::{Context, Ended, files};

const PATH: &str = "/etc/resolv.conf";
const PORT: u16 = 53;
/// The defaults of `dig`: 5 s, three attempts.
const TIMEOUT_NS: u64 = 5_000_000_000;
const ATTEMPTS: u32 = 3;
const FILE_BYTES_MAX: u64 = 64 * 1024;
const NAME_ERROR: u8 = 3;

fn settings() -> Option<Settings> {
    let file = files::open(PATH, OpenFlags::empty(), DescriptorFlags::READ).ok()?;
    let (bytes, _) = file.read(FILE_BYTES_MAX, 0).ok()?;
    Some(Settings::parse(&String::from_utf8_lossy(&bytes)))
}

/// `agnhost dns-suffix`
pub fn suffixes(context: &mut Context, _: &[String]) -> Ended {
    match settings() {
        Some(settings) => context.out.line(&settings.searches.join(",")).map(|()| 0),
        None => context.fail("dns-suffix", "Could not find DNS search list!"),
    }
}

/// `agnhost dns-server-list`
pub fn servers(context: &mut Context, _: &[String]) -> Ended {
    match settings() {
        Some(settings) => context.out.line(&settings.servers.join(",")).map(|()| 0),
        None => context.fail("dns-server-list", "Could not find DNS server list!"),
    }
}

/// One query to one server.
async fn ask(server: IpAddr, port: u16, name: &str, kind: u16, by_tcp: bool) -> Result<Reply, Failure> {
    let id = get_random_u64() as u16;
    let malformed = || Failure::Other(guest::net::ErrorCode::InvalidArgument);
    let query = dns::query(id, name, kind).ok_or_else(malformed)?;
    if !by_tcp {
        let socket = Udp::connect(SocketAddr::new(server, port))?;
        let bytes = socket.exchange(&query, TIMEOUT_NS).await?;
        return dns::reply(&bytes, id).ok_or_else(malformed);
    }
    let exchange = async {
        let stream = Stream::connect(&[server], port).await?;
        let framed = [&(query.len() as u16).to_be_bytes()[..], &query].concat();
        stream.write(&framed).await.ok_or_else(malformed)?;
        let mut received: Vec<u8> = Vec::new();
        loop {
            let length = received.get(..2).map(|head| usize::from(u16::from_be_bytes([head[0], head[1]])));
            if let Some(message) = length.and_then(|length| received.get(2..2 + length)) {
                return dns::reply(message, id).ok_or_else(malformed);
            }
            received.extend(stream.read().await.ok_or_else(malformed)?);
        }
    };
    within(TIMEOUT_NS, exchange).await.unwrap_or(Err(Failure::Timeout))
}

/// The arguments of `dig`.
struct Asked {
    name: String,
    kind: u16,
    server: Option<String>,
    port: u16,
    by_tcp: bool,
    searches: bool,
    is_short: bool,
    shows_all: bool,
}

fn read(args: &[String]) -> Result<Asked, String> {
    let mut asked = Asked {
        name: String::new(),
        kind: 1,
        server: None,
        port: PORT,
        by_tcp: false,
        searches: false,
        is_short: false,
        shows_all: true,
    };
    let mut rest = args[1..].iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "+tcp" => asked.by_tcp = true,
            "+notcp" => asked.by_tcp = false,
            "+search" => asked.searches = true,
            "+nosearch" => asked.searches = false,
            "+short" => asked.is_short = true,
            "+noall" => asked.shows_all = false,
            other if other.starts_with('+') => {}
            "-x" => (asked.name, asked.kind) = (dns::reversed(rest.next().ok_or("-x wants an address")?), 12),
            "-p" => asked.port = rest.next().and_then(|port| port.parse().ok()).ok_or("-p wants a port")?,
            "-t" => asked.kind = rest.next().and_then(|kind| dns::type_of(kind)).ok_or("-t wants a type")?,
            other if other.starts_with('@') => asked.server = Some(other[1..].to_owned()),
            other if other.starts_with('-') => return Err(format!("Invalid option: {other}")),
            "IN" => {}
            other => match dns::type_of(other) {
                Some(kind) if !asked.name.is_empty() => asked.kind = kind,
                _ => asked.name = other.to_owned(),
            },
        }
    }
    if asked.name.is_empty() { Err("no name to look up".into()) } else { Ok(asked) }
}

/// Queries the names in order until one has answers; the last reply otherwise.
async fn look_up(servers: &[IpAddr], port: u16, names: &[String], kind: u16, by_tcp: bool) -> Result<Reply, Failure> {
    let mut last = Err(Failure::Timeout);
    for name in names {
        for attempt in 0..ATTEMPTS as usize * servers.len() {
            last = ask(servers[attempt % servers.len()], port, name, kind, by_tcp).await;
            if last.is_ok() {
                break;
            }
        }
        match &last {
            Ok(reply) if reply.is_truncated && !by_tcp => last = ask(servers[0], port, name, kind, true).await,
            _ => {}
        }
        if last.as_ref().is_ok_and(|reply| !reply.answers.is_empty()) {
            break;
        }
    }
    last
}

/// `dig [@SERVER] [-p PORT] [+tcp] [+search] [+short] [+noall] [-x] NAME [TYPE]`
pub fn dig(context: &mut Context, args: &[String]) -> Ended {
    let asked = match read(args) {
        Ok(asked) => asked,
        Err(why) => return context.fail("dig", &why),
    };
    let settings = settings().unwrap_or_else(|| Settings::parse(""));
    let names = if asked.searches { settings.candidates(&asked.name) } else { Vec::from([asked.name.clone()]) };
    let result = task::run(async {
        let servers = match &asked.server {
            Some(server) => resolve(server).await?,
            None => settings.servers.iter().filter_map(|server| server.parse().ok()).collect(),
        };
        if servers.is_empty() {
            return Err(Failure::Timeout);
        }
        look_up(&servers, asked.port, &names, asked.kind, asked.by_tcp).await
    });
    let reply = match result {
        Ok(reply) => reply,
        Err(failure) => {
            context.out.line(&format!(";; no servers could be reached: {}", failure.words()))?;
            return Ok(9);
        }
    };
    if asked.shows_all && !asked.is_short {
        context.out.line(&format!(";; ->>HEADER<<- opcode: QUERY, status: {}", status(reply.code)))?;
    }
    for record in &reply.answers {
        let line = if asked.is_short {
            record.data.clone()
        } else {
            format!("{}\t{}\tIN\t{}\t{}", record.name, record.ttl, record.kind, record.data)
        };
        context.out.line(&line)?;
    }
    Ok(0)
}

fn status(code: u8) -> &'static str {
    match code {
        0 => "NOERROR",
        NAME_ERROR => "NXDOMAIN",
        5 => "REFUSED",
        _ => "SERVFAIL",
    }
}

/// `nslookup NAME [SERVER]`: the addresses of a name, or the name of an address.
pub fn nslookup(context: &mut Context, args: &[String]) -> Ended {
    let operands: Vec<&String> = args[1..].iter().filter(|arg| !arg.starts_with('-')).collect();
    let (name, server) = match operands.as_slice() {
        [name] => (*name, None),
        [name, server] => (*name, Some(*server)),
        _ => return context.fail("nslookup", "usage: nslookup NAME [SERVER]"),
    };
    let settings = settings().unwrap_or_else(|| Settings::parse(""));
    let is_address = name.parse::<IpAddr>().is_ok();
    let names = settings.candidates(&dns::reversed(name));
    let kinds: &[u16] = if is_address { &[12] } else { &[1, 28] };
    let (asked, replies) = task::run(async {
        let servers: Vec<IpAddr> = match server {
            Some(server) => resolve(server).await.unwrap_or_default(),
            None => settings.servers.iter().filter_map(|server| server.parse().ok()).collect(),
        };
        let mut replies = Vec::new();
        for kind in kinds.iter().filter(|_| !servers.is_empty()) {
            replies.push(look_up(&servers, PORT, &names, *kind, false).await);
        }
        (servers.first().copied(), replies)
    });
    let (Some(asked), true) = (asked, replies.iter().any(Result::is_ok)) else {
        context.out.line(";; connection timed out; no servers could be reached\n")?;
        return Ok(1);
    };
    context.out.line(&format!("Server:\t\t{asked}\nAddress:\t{asked}#{PORT}\n"))?;
    let replies: Vec<Reply> = replies.into_iter().flatten().collect();
    let mut is_found = false;
    for record in replies.iter().flat_map(|reply| &reply.answers) {
        let owner = record.name.trim_end_matches('.');
        let line = match record.kind.as_str() {
            "A" | "AAAA" => format!("Name:\t{owner}\nAddress: {}", record.data),
            "PTR" => format!("{owner}\tname = {}", record.data),
            "CNAME" => format!("{owner}\tcanonical name = {}", record.data),
            _ => continue,
        };
        is_found |= record.kind != "CNAME";
        context.out.line(&line)?;
    }
    if is_found {
        return Ok(0);
    }
    let code = replies.iter().map(|reply| reply.code).find(|code| *code != 0).unwrap_or(0);
    let why = if code == 0 { "No answer" } else { status(code) };
    context.out.line(&format!("** server can't find {name}: {why}\n"))?;
    Ok(1)
}

/// `getent hosts|ahosts NAME`
pub fn getent(context: &mut Context, args: &[String]) -> Ended {
    let [_, base, name] = args else { return context.fail("getent", "usage: getent hosts NAME") };
    if base != "hosts" && base != "ahosts" {
        return context.fail("getent", &format!("Unknown database: {base}"));
    }
    match task::run(resolve(name)) {
        Ok(addresses) => {
            for address in addresses {
                context.out.line(&format!("{address:<16}{name}"))?;
            }
            Ok(0)
        }
        Err(_) => Ok(2),
    }
}
