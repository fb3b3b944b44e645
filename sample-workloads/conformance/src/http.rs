//! HTTP/1.1 messages: requests of clients, responses of servers. Pure: bytes in, messages out.
//!
//! A message is complete with its body. Its head and its body are bounded.
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Maximum bytes of a start line with its headers; Go's servers permit 1 MiB.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Maximum bytes of a body: the tests send and expect small ones.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

pub type Headers = Vec<(String, String)>;

#[derive(Debug, PartialEq)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub headers: Headers,
    pub body: Vec<u8>,
    /// Whether the client may send another request over the connection.
    pub keeps_alive: bool,
}

#[derive(Debug, PartialEq)]
pub struct Reply {
    /// The first line and the headers, as they arrived.
    pub head: String,
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
}

/// A message that is not HTTP: the status of the response to it.
#[derive(Debug, PartialEq)]
pub struct Bad(pub u16);

/// The first header of a name in lower case.
pub fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

struct Head {
    start: String,
    headers: Headers,
    bytes: usize,
}

/// `None` for a head that is not complete.
fn head(bytes: &[u8]) -> Result<Option<Head>, Bad> {
    let mut lines = Vec::new();
    let mut at = 0;
    while let Some(length) = bytes[at..].iter().position(|byte| *byte == b'\n') {
        let line = &bytes[at..at + length];
        at += length + 1;
        let line = core::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)).map_err(|_| Bad(400))?;
        if line.is_empty() {
            let mut lines = lines.into_iter();
            let start: &str = lines.next().ok_or(Bad(400))?;
            let pairs = lines.map(|line: &str| {
                let (name, value) = line.split_once(':').ok_or(Bad(400))?;
                let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
                if is_name { Ok((name.to_owned(), value.trim().to_owned())) } else { Err(Bad(400)) }
            });
            return Ok(Some(Head { start: start.to_owned(), headers: pairs.collect::<Result<_, _>>()?, bytes: at }));
        }
        if at > HEAD_BYTES_MAX {
            return Err(Bad(431));
        }
        lines.push(line);
        if lines.len() == 1 && !is_start(line) {
            return Err(Bad(400)); // at once, as Go's servers: the client may wait
        }
    }
    if bytes.len() > HEAD_BYTES_MAX { Err(Bad(431)) } else { Ok(None) }
}

/// A request line or a status line.
fn is_start(line: &str) -> bool {
    line.starts_with("HTTP/1.")
        || (line.ends_with(" HTTP/1.1") || line.ends_with(" HTTP/1.0")) && line.matches(' ').count() == 2
}

/// The body at the start of `bytes`, and its length with framing; `None` if it is not complete.
fn body(headers: &Headers, bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, Bad> {
    match (header(headers, "transfer-encoding"), header(headers, "content-length")) {
        (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => chunks(bytes),
        (Some(_), _) => Err(Bad(501)),
        (None, Some(length)) => {
            let length = length.parse::<usize>().map_err(|_| Bad(400))?;
            if length > BODY_BYTES_MAX {
                return Err(Bad(413));
            }
            Ok(bytes.get(..length).map(|body| (body.to_vec(), length)))
        }
        (None, None) => Ok(Some((Vec::new(), 0))),
    }
}

fn chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, Bad> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let Some(end) = bytes[at..].windows(2).position(|pair| pair == b"\r\n") else {
            // A size is hexadecimal, with an extension at most.
            return if bytes.len() - at > 1024 { Err(Bad(400)) } else { Ok(None) };
        };
        let size = core::str::from_utf8(&bytes[at..at + end]).map_err(|_| Bad(400))?;
        let size = size.split(';').next().unwrap_or("").trim();
        let size = usize::from_str_radix(size, 16).map_err(|_| Bad(400))?;
        at += end + 2;
        if size > BODY_BYTES_MAX - body.len() {
            return Err(Bad(413));
        }
        if size == 0 {
            // Trailers are dropped.
            return match bytes[at..].windows(2).position(|pair| pair == b"\r\n") {
                Some(0) => Ok(Some((body, at + 2))),
                _ if bytes.len() - at > HEAD_BYTES_MAX => Err(Bad(431)),
                _ => Ok(bytes[at..].windows(4).position(|four| four == b"\r\n\r\n").map(|end| (body, at + end + 4))),
            };
        }
        match bytes.get(at..at + size + 2) {
            None => return Ok(None),
            Some(chunk) if chunk.ends_with(b"\r\n") => body.extend_from_slice(&chunk[..size]),
            Some(_) => return Err(Bad(400)),
        }
        at += size + 2;
    }
}

/// The request at the start of `bytes`, and its length; `None` if it is not complete.
pub fn request(bytes: &[u8]) -> Result<Option<(Request, usize)>, Bad> {
    let Some(head) = head(bytes)? else { return Ok(None) };
    let mut parts = head.start.split(' ');
    let (Some(method), Some(target), Some(version)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(Bad(400));
    };
    if method.is_empty() || target.is_empty() || header(&head.headers, "host").is_none() && version == "HTTP/1.1" {
        return Err(Bad(400));
    }
    let Some((body, length)) = body(&head.headers, &bytes[head.bytes..])? else { return Ok(None) };
    let connection = header(&head.headers, "connection").unwrap_or("");
    let keeps_alive = match version {
        "HTTP/1.1" => !connection.eq_ignore_ascii_case("close"),
        _ => connection.eq_ignore_ascii_case("keep-alive"),
    };
    let request =
        Request { method: method.to_owned(), target: target.to_owned(), headers: head.headers, body, keeps_alive };
    Ok(Some((request, head.bytes + length)))
}

/// The response in `bytes`; `None` if it is not complete. A response without a length ends with the connection.
pub fn reply(bytes: &[u8], is_ended: bool) -> Result<Option<Reply>, Bad> {
    let Some(read) = head(bytes)? else { return if is_ended { Err(Bad(400)) } else { Ok(None) } };
    let status = read.start.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok()).ok_or(Bad(400))?;
    if (100..200).contains(&status) {
        return reply(&bytes[read.bytes..], is_ended);
    }
    let rest = &bytes[read.bytes..];
    let has_length = header(&read.headers, "transfer-encoding").or(header(&read.headers, "content-length")).is_some();
    let body = match status {
        204 | 304 => Vec::new(),
        _ if has_length => match body(&read.headers, rest)? {
            Some((body, _)) => body,
            None => return if is_ended { Err(Bad(400)) } else { Ok(None) },
        },
        _ if rest.len() > BODY_BYTES_MAX => return Err(Bad(413)),
        _ if !is_ended => return Ok(None),
        _ => rest.to_vec(),
    };
    let head = String::from_utf8_lossy(&bytes[..read.bytes]).into_owned();
    Ok(Some(Reply { head, status, headers: read.headers, body }))
}

/// A response of a server.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
}

impl Response {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::new(200, body)
    }

    /// An error's text with a line end, as of Go's `http.Error`.
    pub fn error(status: u16, problem: &str) -> Self {
        Self::new(status, format!("{problem}\n"))
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The response as bytes. A response to `HEAD` has no body.
    pub fn encode(&self, is_head: bool, keeps_alive: bool) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            // A header of a query's parameter must not end the line.
            let value: String = value.chars().filter(|c| !c.is_control()).collect();
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if header(&self.headers, "content-type").is_none() && !self.body.is_empty() {
            let kind = if self.body.starts_with(b"<") { "html" } else { "plain" };
            head.push_str(&format!("Content-Type: text/{kind}; charset=utf-8\r\n"));
        }
        if self.status != 204 && self.status != 304 && self.status >= 200 {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        if !keeps_alive && header(&self.headers, "connection").is_none() {
            head.push_str("Connection: close\r\n");
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        if !is_head && self.status != 204 && self.status != 304 {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        412 => "Precondition Failed",
        413 => "Request Entity Too Large",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "status code",
    }
}

/// A header's name as Go writes it: `x-forwarded-for` → `X-Forwarded-For`.
pub fn canonical(name: &str) -> String {
    let mut starts = true;
    let letter = |c: char| {
        let letter = if starts { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
        starts = c == '-';
        letter
    };
    name.chars().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_when_its_body_is_complete() {
        let bytes = b"POST /write HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcdGET";
        for length in 0..bytes.len() - 3 {
            assert_eq!(request(&bytes[..length]), Ok(None), "{length}");
        }
        let (read, length) = request(bytes).unwrap().unwrap();
        assert_eq!(
            (read.target.as_str(), read.body.as_slice(), length),
            ("/write", b"abcd".as_slice(), bytes.len() - 3)
        );
        assert!(read.keeps_alive);
        let chunked = b"PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nA: b\r\n\r\n";
        for length in 0..chunked.len() {
            assert_eq!(request(&chunked[..length]), Ok(None), "{length}");
        }
        let (read, length) = request(chunked).unwrap().unwrap();
        assert_eq!((read.body.as_slice(), length, read.keeps_alive), (b"abcd".as_slice(), chunked.len(), false));
    }

    #[test]
    fn what_is_no_request_is_rejected_at_its_first_line() {
        for (bytes, status) in [
            ("hostName\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length: x\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n", 413),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", 413),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\n", 400),
            ("\n", 400),
        ] {
            assert_eq!(request(bytes.as_bytes()), Err(Bad(status)), "{bytes}");
        }
        let long = [b'a'; HEAD_BYTES_MAX + 1];
        assert_eq!(request(&long), Err(Bad(431)));
    }

    #[test]
    fn a_reply_ends_with_its_length_or_with_the_connection() {
        let closed = b"HTTP/1.1 200 OK\r\n\r\npod-1";
        assert_eq!(reply(closed, false), Ok(None));
        assert_eq!(reply(closed, true).unwrap().unwrap().body, b"pod-1");
        let framed = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno";
        let read = reply(framed, false).unwrap().unwrap();
        assert_eq!((read.status, read.body.as_slice()), (404, b"no".as_slice()));
        assert_eq!(reply(&framed[..framed.len() - 1], true), Err(Bad(400)));
        assert_eq!(reply(b"", true), Err(Bad(400)));
    }

    #[test]
    fn a_response_has_one_length_and_no_forged_header() {
        let bytes = Response::new(302, "x").with("Location", "/a\r\nSet-Cookie: b").encode(false, false);
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("Location: /aSet-Cookie: b\r\n") && text.contains("Connection: close\r\n"), "{text}");
        assert!(text.ends_with("Content-Length: 1\r\nConnection: close\r\n\r\nx"), "{text}");
        assert!(!Response::ok("abc").encode(true, true).ends_with(b"abc"));
        assert_eq!(canonical("x-FORWARDED-for"), "X-Forwarded-For");
    }
}
