//! `wget`, over the outgoing requests of the container's guests: Services by name, and other permitted destinations.
use crate::io::{Output, Stop};
use crate::{Context, Ended, files};
use guest::wasip2::http::outgoing_handler::handle;
use guest::wasip2::http::types::{
    Fields, FutureIncomingResponse, IncomingBody, IncomingResponse, Method, OutgoingBody, OutgoingRequest,
    RequestOptions, Scheme,
};
use guest::wasip2::io::streams::StreamError;
use guest::{String, ToOwned, Vec, format};

/// Maximum redirects.
const REDIRECTS_MAX: usize = 10;
const TIMEOUT_S: u64 = 30;

#[derive(Default)]
struct Asked {
    url: String,
    output: Option<String>,
    quiet: bool,
    shows_head: bool,
    spider: bool,
    timeout_s: Option<u64>,
    headers: Vec<(String, String)>,
    body: Option<String>,
}

fn read(args: &[String]) -> Result<Asked, String> {
    let mut asked = Asked::default();
    let mut rest = args[1..].iter();
    while let Some(arg) = rest.next() {
        let (option, inline) = match arg.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, Some(value.to_owned())),
            _ => (arg.as_str(), None),
        };
        let mut value =
            || inline.clone().or_else(|| rest.next().cloned()).ok_or_else(|| format!("{option} wants a value"));
        match option {
            "--header" => {
                let header = value()?;
                let (name, value) = header.split_once(':').ok_or("--header wants NAME: VALUE")?;
                asked.headers.push((name.trim().to_owned(), value.trim().to_owned()));
            }
            "--post-data" => asked.body = Some(value()?),
            "--spider" => asked.spider = true,
            "--timeout" => asked.timeout_s = value()?.parse().ok(),
            "--tries" | "-t" => drop(value()?),
            "--quiet" | "--no-check-certificate" | "--no-verbose" => asked.quiet = true,
            "--server-response" => asked.shows_head = true,
            "--output-document" => asked.output = Some(value()?),
            _ if option.starts_with("--") => return Err(format!("unknown option {option}")),
            _ if option.len() > 1 && option.starts_with('-') => {
                let letters: Vec<char> = option[1..].chars().collect();
                for (at, letter) in letters.iter().enumerate() {
                    match letter {
                        'q' => asked.quiet = true,
                        'S' => asked.shows_head = true,
                        'c' => {}
                        'O' | 'T' => {
                            let inline: String = letters[at + 1..].iter().collect();
                            let value = if inline.is_empty() { value()? } else { inline };
                            if *letter == 'O' {
                                asked.output = Some(value);
                            } else {
                                asked.timeout_s = value.parse().ok();
                            }
                            break;
                        }
                        other => return Err(format!("unknown option -{other}")),
                    }
                }
            }
            _ => asked.url = arg.clone(),
        }
    }
    if asked.url.is_empty() {
        Err("usage: wget [-qS] [-O FILE] [-T SECONDS] [--header H] URL".into())
    } else {
        Ok(asked)
    }
}

pub fn wget(context: &mut Context, args: &[String]) -> Ended {
    let asked = match read(args) {
        Ok(asked) => asked,
        Err(why) => return context.fail("wget", &why),
    };
    let mut url = if asked.url.contains("://") { asked.url.clone() } else { format!("http://{}", asked.url) };
    for _ in 0..REDIRECTS_MAX {
        let answer = match head(context, ask(&url, &asked))? {
            Ok(answer) => answer,
            Err(why) => return context.fail("wget", &format!("{url}: {why}")).map(|_| 4),
        };
        let (status, headers) = (answer.status(), answer.headers().entries());
        if asked.shows_head {
            context.err.line(&format!("  HTTP/1.1 {status}"))?;
            for (name, value) in &headers {
                context.err.line(&format!("  {name}: {}", String::from_utf8_lossy(value)))?;
            }
        }
        let location = headers.iter().find(|(name, _)| name == "location").map(|(_, value)| value);
        if let (301 | 302 | 303 | 307 | 308, Some(to)) = (status, location) {
            url = resolve(&url, &String::from_utf8_lossy(to));
            continue;
        }
        if status >= 400 {
            return context.fail("wget", &format!("server returned error: HTTP/1.1 {status}")).map(|_| 8);
        }
        if asked.spider {
            return Ok(0);
        }
        return save(context, &asked, &url, &answer);
    }
    context.fail("wget", "too many redirections")
}

fn resolve(base: &str, to: &str) -> String {
    if to.contains("://") {
        return to.to_owned();
    }
    let host_end = base.find("://").map_or(0, |at| at + 3);
    let path_at = base[host_end..].find('/').map_or(base.len(), |at| host_end + at);
    if to.starts_with('/') { format!("{}{to}", &base[..path_at]) } else { format!("{}/{to}", &base[..path_at]) }
}

fn ask(url: &str, asked: &Asked) -> Result<FutureIncomingResponse, String> {
    let (scheme, rest) = url.split_once("://").ok_or("not a URL")?;
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => return Err(format!("{other}: there are http and https")),
    };
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let headers = Fields::new();
    let set = |name: &str, value: &str| {
        let set = headers.set(name, &[value.as_bytes().to_vec()]);
        set.map_err(|problem| format!("header {name}: {problem:?}"))
    };
    set("user-agent", "Wget")?;
    if asked.body.is_some() {
        set("content-type", "application/x-www-form-urlencoded")?;
    }
    for (name, value) in &asked.headers {
        set(name, value)?;
    }
    let request = OutgoingRequest::new(headers);
    let method = if asked.body.is_some() { Method::Post } else { Method::Get };
    let addressed = request.set_method(&method).and_then(|()| request.set_scheme(Some(&scheme)));
    addressed
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(path)))
        .map_err(|()| "bad address".to_owned())?;
    let options = RequestOptions::new();
    let timeout = Some(asked.timeout_s.unwrap_or(TIMEOUT_S).saturating_mul(1_000_000_000));
    let _ = options.set_connect_timeout(timeout);
    let _ = options.set_first_byte_timeout(timeout);
    let _ = options.set_between_bytes_timeout(timeout);
    let outgoing = request.body().map_err(|()| "no body".to_owned())?;
    let coming = handle(request, Some(options)).map_err(|code| format!("{code:?}"))?;
    if let Some(body) = &asked.body {
        let stream = outgoing.write().map_err(|()| "no body".to_owned())?;
        guest::process::write_all(&stream, body.as_bytes());
    }
    OutgoingBody::finish(outgoing, None).map_err(|code| format!("{code:?}"))?;
    Ok(coming)
}

/// Waits for a response's head; ^C on a terminal aborts.
fn head(
    context: &mut Context,
    coming: Result<FutureIncomingResponse, String>,
) -> Result<Result<IncomingResponse, String>, Stop> {
    let coming = match coming {
        Ok(coming) => coming,
        Err(why) => return Ok(Err(why)),
    };
    context.stdin.wait(&coming.subscribe())?;
    let Some(Ok(answer)) = coming.get() else { return Ok(Err("no answer".to_owned())) };
    Ok(answer.map_err(|code| format!("{code:?}")))
}

fn save(context: &mut Context, asked: &Asked, url: &str, answer: &IncomingResponse) -> Ended {
    let name = match &asked.output {
        Some(name) => name.clone(),
        None => {
            let (_, name) = files::split(url.split('?').next().unwrap_or(url));
            let is_host = url.ends_with(&format!("://{name}")) || name.is_empty();
            if is_host { "index.html".to_owned() } else { name.to_owned() }
        }
    };
    let mut file = if name == "-" {
        None
    } else {
        match context.create(&name, false) {
            Ok(file) => Some(file),
            Err(why) => return context.fail("wget", &why),
        }
    };
    let Ok(body) = answer.consume() else { return context.fail("wget", "no body") };
    let mut code = 0;
    if let Ok(stream) = body.stream() {
        loop {
            match stream.blocking_read(64 * 1024) {
                Ok(bytes) => {
                    let to: &mut Output = file.as_mut().unwrap_or(&mut context.out);
                    to.write(&bytes)?;
                }
                Err(StreamError::Closed) => break,
                Err(StreamError::LastOperationFailed(_)) => {
                    code = context.fail("wget", "the answer was cut short")?;
                    break;
                }
            }
        }
    }
    let _ = IncomingBody::finish(body);
    if !asked.quiet && file.is_some() {
        context.err.line(&format!("'{name}' saved"))?;
    }
    Ok(code)
}
