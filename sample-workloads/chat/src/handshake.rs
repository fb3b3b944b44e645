//! The HTTP/1.1 requests of clients, the responses, and the opening handshake of both ends (RFC 6455, §4).
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use sha1_smol::Sha1;

/// Maximum bytes of a head. A connection buffers no more before its handshake.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Maximum headers of a head.
const HEADERS_MAX: usize = 64;
/// §1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Characters of a key: 16 bytes in base64.
const KEY_CHARACTERS: usize = 24;
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A request without a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// The query's fields, decoded.
    pub query: Vec<(String, String)>,
    /// The page that sent the request, if a browser did, and `Host`.
    origin: Option<String>,
    host: String,
    pub handshake: Handshake,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Handshake {
    /// The request is for a page.
    None,
    /// `Sec-WebSocket-Accept` of the response.
    Accepted(String),
    /// An upgrade that can't be accepted, with the reason.
    Bad(&'static str),
    /// Another version of the protocol.
    OtherVersion,
}

/// The first bytes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    Incomplete,
    /// A request with a head of so many bytes.
    Request(Request, usize),
    /// A malformed request, with the response's status.
    Bad(u16, &'static str),
}

/// Parses a request's head.
pub fn parse(input: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(input) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if input.len() < HEAD_BYTES_MAX => return Parsed::Incomplete,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Parsed::Bad(431, "the head is too long");
        }
        Err(_) => return Parsed::Bad(400, "no HTTP request"),
    };
    if length > HEAD_BYTES_MAX {
        return Parsed::Bad(431, "the head is too long");
    }
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Parsed::Bad(400, "no HTTP request");
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let fields = query.split('&').filter(|field| !field.is_empty());
    let query = fields
        .map(|field| field.split_once('=').unwrap_or((field, "")))
        .map(|(name, value)| (decode(name), decode(value)));
    let is_1_1 = request.version == Some(1);
    let mut hosts = values(request.headers, "host");
    let (host, others) = (hosts.next(), hosts.next());
    if others.is_some() || is_1_1 && host.is_none() {
        return Parsed::Bad(400, "no Host, or several");
    }
    let mut origins = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("origin"));
    let parsed = Request {
        method: method.into(),
        path: path.into(),
        query: query.collect(),
        // Of several, or of other bytes than text, none is a permitted one.
        origin: origins.next().map(|first| match origins.next() {
            None => String::from_utf8_lossy(first.value).into_owned(),
            Some(_) => String::new(),
        }),
        host: host.unwrap_or_default().into(),
        handshake: handshake(method, is_1_1, request.headers),
    };
    Parsed::Request(parsed, length)
}

impl Request {
    /// Whether the sender is no page of another site: browsers let every page open WebSockets to every server (§10.2).
    pub fn is_permitted_origin(&self, permitted: &[String]) -> bool {
        let Some(origin) = &self.origin else { return true };
        let is_own = origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(&self.host));
        is_own || permitted.iter().any(|other| other == "*" || other.eq_ignore_ascii_case(origin))
    }

    /// A field of the query.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn values<'a>(headers: &'a [httparse::Header<'a>], name: &'a str) -> impl Iterator<Item = &'a str> {
    let named = headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
    named.filter_map(|header| core::str::from_utf8(header.value).ok())
}

/// Whether a header lists a word.
fn lists(headers: &[httparse::Header<'_>], name: &str, word: &str) -> bool {
    values(headers, name).flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(word))
}

fn handshake(method: &str, is_1_1: bool, headers: &[httparse::Header<'_>]) -> Handshake {
    if !lists(headers, "upgrade", "websocket") {
        return Handshake::None;
    }
    if method != "GET" || !is_1_1 {
        return Handshake::Bad("a handshake is a GET of HTTP/1.1");
    }
    if !lists(headers, "connection", "upgrade") {
        return Handshake::Bad("no Connection: Upgrade");
    }
    if !values(headers, "sec-websocket-version").eq(["13"]) {
        return Handshake::OtherVersion;
    }
    let mut keys = values(headers, "sec-websocket-key");
    match (keys.next(), keys.next()) {
        (Some(key), None) if is_key(key) => Handshake::Accepted(accept(key)),
        _ => Handshake::Bad("Sec-WebSocket-Key must be 16 bytes in base64"),
    }
}

/// Whether this is base64 of 16 bytes.
fn is_key(key: &str) -> bool {
    let characters = key.strip_suffix("==").map_or(&[][..], str::as_bytes);
    characters.len() == KEY_CHARACTERS - 2 && characters.iter().all(|character| BASE64.contains(character))
}

/// The response to a key (§4.2.2).
pub fn accept(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(GUID);
    base64(&hash.digest().bytes())
}

/// Base64 with padding.
pub fn base64(bytes: &[u8]) -> String {
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let mut group = [0; 4];
        group[1..=three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes(group);
        for at in 0..4 {
            let character = BASE64[(bits >> (18 - 6 * at)) as usize & 63];
            out.push(if at <= three.len() { char::from(character) } else { '=' });
        }
    }
    out
}

/// `a%20b+c` → `a b c`.
fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let escaped = if *first == b'%' { after.split_first_chunk::<2>() } else { None };
        let digit = |byte: u8| char::from(byte).to_digit(16);
        match escaped.and_then(|([high, low], after)| Some((digit(*high)? * 16 + digit(*low)?, after))) {
            Some((byte, after)) => {
                out.push(byte as u8); // below 256
                rest = after;
            }
            None => out.push(if *first == b'+' { b' ' } else { *first }),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Writes the server's response to an accepted handshake.
pub fn write_accepted(out: &mut Vec<u8>, accept: &str) {
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    out.extend_from_slice(head.as_bytes());
}

/// Writes a response after which the connection ends.
pub fn write_response(out: &mut Vec<u8>, status: u16, headers: &str, content_type: &str, body: &str, is_head: bool) {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        _ => "Service Unavailable",
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    );
    out.extend_from_slice(head.as_bytes());
    if !is_head {
        out.extend_from_slice(body.as_bytes());
    }
}

/// Writes the request of a client's handshake.
pub fn write_request(out: &mut Vec<u8>, host: &str, target: &str, key: &str) {
    let head = format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    );
    out.extend_from_slice(head.as_bytes());
}

/// Checks a server's response to a key: the length of its head, `None` while it is incomplete.
///
/// # Errors
/// The server doesn't accept the handshake.
pub fn check_response(input: &[u8], key: &str) -> Result<Option<usize>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(input) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if input.len() < HEAD_BYTES_MAX => return Ok(None),
        _ => return Err("no HTTP response".into()),
    };
    let status = response.code.unwrap_or_default();
    if status != 101 {
        return Err(format!("the server refuses the upgrade with {status}"));
    }
    let is_upgrade =
        lists(response.headers, "upgrade", "websocket") && lists(response.headers, "connection", "upgrade");
    if !is_upgrade || !values(response.headers, "sec-websocket-accept").eq([accept(key).as_str()]) {
        return Err("the server's response isn't to this handshake".into());
    }
    // Neither was offered (§4.1).
    if values(response.headers, "sec-websocket-extensions")
        .chain(values(response.headers, "sec-websocket-protocol"))
        .next()
        .is_some()
    {
        return Err("the server chose an extension or a protocol that wasn't offered".into());
    }
    Ok(Some(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const HEAD: &str = "GET /ws?room=a%20b&name=%c3%a9+x HTTP/1.1\r\nHost: h\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    fn of(head: &str) -> Handshake {
        match parse(head.as_bytes()) {
            Parsed::Request(request, _) => request.handshake,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_standards_example_is_accepted() {
        assert_eq!(accept(KEY), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let Parsed::Request(request, length) = parse(HEAD.as_bytes()) else { panic!("no request") };
        assert_eq!((request.path.as_str(), length), ("/ws", HEAD.len()));
        assert_eq!(
            (request.field("room"), request.field("name"), request.field("x")),
            (Some("a b"), Some("é x"), None)
        );
        assert_eq!(request.handshake, Handshake::Accepted("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".into()));
        let mut response = Vec::new();
        write_accepted(&mut response, &accept(KEY));
        assert_eq!(check_response(&response, KEY), Ok(Some(response.len())));
        assert_eq!(check_response(&response[..response.len() - 1], KEY), Ok(None));
        assert!(check_response(&response, "AAAAAAAAAAAAAAAAAAAAAA==").is_err());
    }

    #[test]
    fn other_requests_are_no_handshakes() {
        assert_eq!(of("GET / HTTP/1.1\r\nHost: h\r\n\r\n"), Handshake::None);
        assert_eq!(of(&HEAD.replace("Version: 13", "Version: 8")), Handshake::OtherVersion);
        for (from, to) in [
            ("GET", "POST"),
            ("HTTP/1.1", "HTTP/1.0"),
            ("keep-alive, Upgrade", "close"),
            (KEY, "dGhlIHNhbXBsZSBub25jZQ="),
            (KEY, "d*hlIHNhbXBsZSBub25jZQ=="),
            ("Host: h\r\n", "Host: h\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"),
        ] {
            assert!(matches!(of(&HEAD.replace(from, to)), Handshake::Bad(_)), "{to}");
        }
    }

    #[test]
    fn pages_of_other_sites_are_not_permitted() {
        let permits = |headers: &str, permitted: &[&str]| {
            let head = HEAD.replace("Host: h\r\n", headers);
            let Parsed::Request(request, _) = parse(head.as_bytes()) else { panic!("no request: {headers}") };
            request.is_permitted_origin(&permitted.iter().map(|origin| String::from(*origin)).collect::<Vec<_>>())
        };
        assert!(permits("Host: h:81\r\n", &[]));
        assert!(permits("Host: h:81\r\nOrigin: http://H:81\r\n", &[]));
        for other in ["http://h", "http://evil", "null", "", "h:81", "http://h:81\r\nOrigin: http://h:81"] {
            let headers = format!("Host: h:81\r\nOrigin: {other}\r\n");
            assert!(!permits(&headers, &["https://good"]), "{other}");
            assert!(permits(&headers, &["*"]), "{other}");
        }
        assert!(permits("Host: h:81\r\nOrigin: https://good\r\n", &["http://x", "https://good"]));
    }

    #[test]
    fn a_head_is_bounded() {
        assert_eq!(parse(b"GET / HTTP/1.1\r\nHost"), Parsed::Incomplete);
        for bad in
            ["\x16\x03\x01 no HTTP\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"]
        {
            assert!(matches!(parse(bad.as_bytes()), Parsed::Bad(400, _)), "{bad}");
        }
        let long = format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(HEAD_BYTES_MAX));
        assert!(matches!(parse(long.as_bytes()), Parsed::Bad(431, _)));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1));
        assert!(matches!(parse(many.as_bytes()), Parsed::Bad(431, _)));
    }

    #[test]
    fn base64_pads() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
