//! An HTTP client: one request over one connection.
use crate::http::{self, Headers, Reply};
use crate::net::{Failure, Stream, resolve, split_host_port};
use crate::task::within;
use guest::{String, Vec, format};

/// The timeout of a whole exchange, of upstream's programs.
pub const TIMEOUT_NS: u64 = 5_000_000_000;
/// Maximum bytes of a response.
const REPLY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The end of an exchange without a response.
pub enum Problem {
    Connect(Failure),
    /// The server closed the connection without a response.
    Empty,
    /// The response is not HTTP or too large.
    Malformed,
    Timeout,
}

impl Problem {
    pub fn words(&self, authority: &str) -> String {
        match self {
            Self::Connect(failure) => format!("dial tcp {authority}: {}", failure.words()),
            Self::Empty => "EOF".into(),
            Self::Malformed => "malformed HTTP response".into(),
            Self::Timeout => "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into(),
        }
    }
}

pub struct Ask<'a> {
    pub method: &'a str,
    /// The value of `Host`.
    pub authority: &'a str,
    /// Path and query.
    pub target: &'a str,
    pub headers: &'a Headers,
    pub body: &'a [u8],
}

impl Ask<'_> {
    fn encode(&self) -> Vec<u8> {
        let mut head =
            format!("{} {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.method, self.target, self.authority);
        for (name, value) in self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(self.body);
        bytes
    }

    /// Sends the request over a connection and reads the response.
    pub async fn exchange(&self, stream: &Stream) -> Result<Reply, Problem> {
        stream.write(&self.encode()).await.ok_or(Problem::Empty)?;
        let mut received = Vec::new();
        loop {
            let bytes = stream.read().await;
            let is_ended = bytes.is_none();
            received.extend(bytes.unwrap_or_default());
            if is_ended && received.is_empty() {
                return Err(Problem::Empty);
            }
            match http::reply(&received, is_ended) {
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) if received.len() <= REPLY_BYTES_MAX => {}
                _ => return Err(Problem::Malformed),
            }
        }
    }
}

/// A header or a target must not end its line.
pub fn is_one_line(text: &str) -> bool {
    !text.bytes().any(|byte| byte.is_ascii_control() || byte == b' ')
}

/// `GET http://AUTHORITY/REQUEST` within the timeout.
pub async fn get(authority: &str, request: &str) -> Result<String, String> {
    let Some((host, port)) = split_host_port(authority) else {
        return Err(format!("address {authority}: missing port in address"));
    };
    if !is_one_line(request) {
        return Err(format!("parse {request:?}: invalid URL"));
    }
    let target = format!("/{request}");
    let headers = Vec::from([("User-Agent".into(), "Go-http-client/1.1".into())]);
    let ask = Ask { method: "GET", authority, target: &target, headers: &headers, body: &[] };
    let exchange = async {
        let addresses = resolve(host).await.map_err(Problem::Connect)?;
        let stream = Stream::connect(&addresses, port).await.map_err(Problem::Connect)?;
        ask.exchange(&stream).await
    };
    match within(TIMEOUT_NS, exchange).await.unwrap_or(Err(Problem::Timeout)) {
        Ok(reply) => Ok(String::from_utf8_lossy(&reply.body).into_owned()),
        Err(problem) => Err(format!("Get \"http://{authority}{target}\": {}", problem.words(authority))),
    }
}
