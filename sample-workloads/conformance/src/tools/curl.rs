//! `curl` for one URL of HTTP, with the options that upstream's tests use.
use crate::client::{Ask, Problem, is_one_line};
use crate::http::{Headers, Reply};
use crate::net::{Failure, Stream, resolve};
use crate::task::{self, within};
use guest::{String, ToOwned, Vec, format};
use unix::io::Stop;
use unix::{Context, Ended};

const SECOND_NS: f64 = 1e9;
/// curl's own defaults: 300 s for a connection, no limit for the whole.
const CONNECT_TIMEOUT_NS: u64 = 300_000_000_000;
const TIMEOUT_NS: u64 = 3_600_000_000_000;

#[derive(Default)]
struct Asked {
    url: String,
    is_silent: bool,
    shows_errors: bool,
    shows_head: bool,
    fails: bool,
    output: Option<String>,
    format: Option<String>,
    connect_timeout_ns: Option<u64>,
    timeout_ns: Option<u64>,
    method: Option<String>,
    body: Option<String>,
    headers: Headers,
}

/// Options with a value, by letter and by name.
const VALUES: [(char, &str); 9] = [
    ('o', "output"),
    ('w', "write-out"),
    ('m', "max-time"),
    ('X', "request"),
    ('d', "data"),
    ('H', "header"),
    ('A', "user-agent"),
    ('\0', "connect-timeout"),
    ('\0', "interface"),
];
const SWITCHES: [(char, &str); 10] = [
    ('g', "globoff"),
    ('q', "disable"),
    ('s', "silent"),
    ('S', "show-error"),
    ('i', "include"),
    ('f', "fail"),
    ('k', "insecure"),
    ('v', "verbose"),
    ('L', "location"),
    ('I', "head"),
];

fn read(args: &[String]) -> Result<Asked, String> {
    let mut asked = Asked::default();
    let mut rest = args[1..].iter();
    while let Some(arg) = rest.next() {
        if let Some(name) = arg.strip_prefix("--") {
            if let Some((letter, _)) = SWITCHES.iter().find(|(_, known)| *known == name) {
                asked.switch(*letter);
            } else if VALUES.iter().any(|(_, known)| *known == name) {
                let value = rest.next().ok_or_else(|| format!("option --{name}: requires parameter"))?;
                asked.set(name, value)?;
            } else {
                return Err(format!("option --{name}: is unknown"));
            }
        } else if let Some(letters) = arg.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            for (at, letter) in letters.char_indices() {
                if SWITCHES.iter().any(|(known, _)| *known == letter) {
                    asked.switch(letter);
                    continue;
                }
                let (_, name) = VALUES
                    .iter()
                    .find(|(known, _)| *known == letter)
                    .ok_or_else(|| format!("option -{letter}: is unknown"))?;
                let inline = &letters[at + letter.len_utf8()..];
                let value = if inline.is_empty() { rest.next().map_or("", String::as_str) } else { inline };
                asked.set(name, value)?;
                break;
            }
        } else {
            asked.url.clone_from(arg);
        }
    }
    if asked.url.is_empty() { Err("no URL specified".into()) } else { Ok(asked) }
}

impl Asked {
    fn switch(&mut self, letter: char) {
        match letter {
            's' => self.is_silent = true,
            'S' => self.shows_errors = true,
            'i' => self.shows_head = true,
            'f' => self.fails = true,
            'I' => (self.method, self.shows_head) = (Some("HEAD".into()), true),
            _ => {}
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let seconds = || {
            let seconds = value.parse::<f64>().ok().filter(|seconds| *seconds > 0.0 && *seconds < 1e6);
            seconds
                .map(|seconds| Some((seconds * SECOND_NS) as u64))
                .ok_or_else(|| format!("option --{name}: expected a proper numerical parameter"))
        };
        match name {
            "output" => self.output = Some(value.to_owned()),
            "write-out" => self.format = Some(value.to_owned()),
            "max-time" => self.timeout_ns = seconds()?,
            "connect-timeout" => self.connect_timeout_ns = seconds()?,
            "request" => self.method = Some(value.to_owned()),
            "data" => self.body = Some(value.to_owned()),
            "user-agent" => self.headers.push(("User-Agent".into(), value.to_owned())),
            "header" => {
                let (name, value) = value.split_once(':').ok_or("option --header: expected NAME: VALUE")?;
                self.headers.push((name.trim().to_owned(), value.trim().to_owned()));
            }
            // A pod has one interface.
            _ => {}
        }
        Ok(())
    }
}

/// A URL's host, port, authority and target.
struct Parts<'a> {
    host: &'a str,
    port: u16,
    authority: &'a str,
    target: String,
}

fn parts(url: &str) -> Result<Parts<'_>, (i32, String)> {
    let malformed = || (3, "URL using bad/illegal format or missing URL".to_owned());
    let rest = match url.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
        Some((scheme, _)) => return Err((1, format!("Protocol \"{scheme}\" disabled"))),
        None => url,
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    let bracket = authority.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match authority[bracket..].rfind(':') {
        Some(at) => (&authority[..bracket + at], authority[bracket + at + 1..].parse().map_err(|_| malformed())?),
        None => (authority, 80),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() || !is_one_line(rest) {
        return Err(malformed());
    }
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    Ok(Parts { host, port, authority, target })
}

pub fn curl(context: &mut Context, args: &[String]) -> Ended {
    let asked = match read(args) {
        Ok(asked) => asked,
        Err(why) => return context.fail("curl", &why).map(|_| 2),
    };
    let result = match parts(&asked.url) {
        Ok(parts) => task::run(request(&asked, &parts)),
        Err(problem) => Err(problem),
    };
    let status = result.as_ref().map_or(0, |reply| reply.status);
    let code = match result {
        Ok(reply) if asked.fails && reply.status >= 400 => {
            report(context, &asked, &format!("(22) The requested URL returned error: {}", reply.status))?;
            22
        }
        Ok(reply) => save(context, &asked, &reply)?,
        Err((code, problem)) => {
            report(context, &asked, &format!("({code}) {problem}"))?;
            code
        }
    };
    if let Some(format) = &asked.format {
        let text = format
            .replace("%{http_code}", &format!("{status:03}"))
            .replace("%{response_code}", &format!("{status:03}"));
        context.out.write(text.replace("\\n", "\n").as_bytes())?;
    }
    Ok(code)
}

fn report(context: &mut Context, asked: &Asked, problem: &str) -> Result<(), Stop> {
    if asked.is_silent && !asked.shows_errors { Ok(()) } else { context.say("curl", problem) }
}

async fn request(asked: &Asked, parts: &Parts<'_>) -> Result<Reply, (i32, String)> {
    let Parts { host, port, .. } = parts;
    let body = asked.body.as_deref().unwrap_or_default();
    let mut headers = asked.headers.clone();
    if crate::http::header(&headers, "user-agent").is_none() {
        headers.push(("User-Agent".into(), "curl".into()));
    }
    headers.push(("Accept".into(), "*/*".into()));
    if asked.body.is_some() && crate::http::header(&headers, "content-type").is_none() {
        headers.push(("Content-Type".into(), "application/x-www-form-urlencoded".into()));
    }
    if headers.iter().any(|(name, value)| !is_one_line(name) || value.bytes().any(|byte| byte.is_ascii_control())) {
        return Err((43, "A libcurl function was given a bad argument".into()));
    }
    let method = asked.method.as_deref().unwrap_or(if asked.body.is_some() { "POST" } else { "GET" });
    let ask =
        Ask { method, authority: parts.authority, target: &parts.target, headers: &headers, body: body.as_bytes() };
    let late = || (28, "Connection timed out".to_owned());
    let exchange = async {
        let connect = async {
            let addresses = resolve(host).await?;
            Stream::connect(&addresses, *port).await
        };
        let stream = match within(asked.connect_timeout_ns.unwrap_or(CONNECT_TIMEOUT_NS), connect).await {
            Some(Ok(stream)) => stream,
            Some(Err(Failure::Name(_))) => return Err((6, format!("Could not resolve host: {host}"))),
            None | Some(Err(Failure::Timeout)) => return Err(late()),
            Some(Err(failure)) => {
                return Err((7, format!("Failed to connect to {host} port {port}: {}", failure.words())));
            }
        };
        ask.exchange(&stream).await.map_err(|problem| match problem {
            Problem::Empty => (52, "Empty reply from server".to_owned()),
            Problem::Malformed => (1, "Received HTTP/0.9 when not allowed".to_owned()),
            other => (56, other.words(parts.authority)),
        })
    };
    within(asked.timeout_ns.unwrap_or(TIMEOUT_NS), exchange).await.unwrap_or_else(|| Err(late()))
}

fn save(context: &mut Context, asked: &Asked, reply: &Reply) -> Ended {
    let mut bytes = if asked.shows_head { reply.head.clone().into_bytes() } else { Vec::new() };
    bytes.extend_from_slice(&reply.body);
    match asked.output.as_deref() {
        None | Some("-") => context.out.write(&bytes)?,
        Some("/dev/null") => {}
        Some(path) => {
            let written = context.create(path, false).map(|mut file| file.write(&bytes));
            if !matches!(written, Ok(Ok(()))) {
                report(context, asked, "(23) Failure writing output to destination")?;
                return Ok(23);
            }
        }
    }
    Ok(0)
}
