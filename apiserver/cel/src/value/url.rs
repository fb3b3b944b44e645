//! Parses absolute URLs and absolute paths as Go's `net/url`, with its errors. Fragments are dropped.

/// An absolute URL or an absolute path, without its fragment.
#[derive(Clone, Debug, PartialEq)]
pub struct Url {
    pub(crate) scheme: String,
    /// Includes the port.
    pub(crate) host: String,
    /// In its escaped form.
    pub(crate) path: String,
    pub(crate) query: String,
}

impl Url {
    /// Parses a URL; the error is Go's.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: String| format!("parse {text:?}: {why}");
        if text.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(wrong("net/url: invalid control character in URL".into()));
        }
        if text.is_empty() {
            return Err(wrong("empty url".into()));
        }
        // A request URI has no fragment; the first read includes it.
        Self::read(text).map_err(wrong)?;
        let (before, fragment) = text.split_once('#').unwrap_or((text, ""));
        unescape(fragment).map_err(wrong)?;
        Self::read(before).map_err(wrong)
    }

    fn read(text: &str) -> Result<Self, String> {
        let (scheme, rest) = scheme(text)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut url = Self { scheme, host: String::new(), path: String::new(), query: query.into() };
        if !rest.starts_with('/') {
            // A scheme without a following slash has neither host nor path.
            return if url.scheme.is_empty() { Err("invalid URI for request".into()) } else { Ok(url) };
        }
        let mut path = rest;
        if let Some(authority) = rest.strip_prefix("//").filter(|_| !url.scheme.is_empty()) {
            let (authority, after) = authority.split_at(authority.find('/').unwrap_or(authority.len()));
            url.host = host(authority)?;
            path = after;
        }
        let plain = unescape(path)?;
        url.path = if path.bytes().all(is_encoded) { path.into() } else { escape(&plain) };
        Ok(url)
    }

    pub(crate) fn hostname(&self) -> &str {
        let host = &self.host[..self.host.len() - self.port().map_or(0, |port| port.len() + 1)];
        host.strip_prefix('[').and_then(|host| host.split_once(']')).map_or(host, |(host, _)| host)
    }

    pub(crate) fn port(&self) -> Option<&str> {
        let (before, port) = self.host.rsplit_once(':')?;
        let within = before.starts_with('[') && !before.ends_with(']');
        (!within && port.bytes().all(|byte| byte.is_ascii_digit())).then_some(port)
    }

    /// The query's names and values; malformed pairs are skipped.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (String, String)> {
        let parts = self.query.split('&').filter(|part| !part.is_empty() && !part.contains(';'));
        parts.filter_map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let read = |text: &str| unescape(&text.replace('+', " ")).ok().map(|bytes| lossy(&bytes));
            Some((read(name)?, read(value)?))
        })
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn scheme(text: &str) -> Result<(String, &str), String> {
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if at > 0 => {}
            b':' if at == 0 => return Err("missing protocol scheme".into()),
            b':' => return Ok((text[..at].to_ascii_lowercase(), &text[at + 1..])),
            _ => break,
        }
    }
    Ok((String::new(), text))
}

fn host(authority: &str) -> Result<String, String> {
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte);
    if user.is_some_and(|user| !user.bytes().all(allowed)) {
        return Err("net/url: invalid userinfo".into());
    }
    let port = if host.starts_with('[') {
        let end = host.rfind(']').ok_or("missing ']' in host")?;
        &host[end + 1..]
    } else {
        host.find(':').map_or("", |at| &host[host.rfind(':').unwrap_or(at)..])
    };
    let valid = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
    if !valid {
        return Err(format!("invalid port {port:?} after host"));
    }
    let strange =
        |byte: &u8| byte.is_ascii() && !byte.is_ascii_alphanumeric() && !b"-_.~!$&'()*+,;=:[]<>\"%".contains(byte);
    if let Some(byte) = host.bytes().find(|byte| strange(byte)) {
        return Err(format!("invalid character {:?} in host name", char::from(byte).to_string()));
    }
    unescape(host).map(|host| lossy(&host))
}

fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'%' {
            out.push(bytes[at]);
            at += 1;
            continue;
        }
        let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(at + 1), digit(at + 2)) else {
            let escape = String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 3)]);
            return Err(format!("invalid URL escape {escape:?}"));
        };
        out.push((high * 16 + low) as u8);
        at += 3;
    }
    Ok(out)
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte)
}

/// Whether a byte may stay unescaped in a path.
fn is_encoded(byte: u8) -> bool {
    is_plain(byte) || b"!'()*[]%".contains(&byte)
}

fn escape(path: &[u8]) -> String {
    let mut out = String::new();
    for byte in path {
        if is_plain(*byte) { out.push(char::from(*byte)) } else { out.push_str(&format!("%{byte:02X}")) }
    }
    out
}
