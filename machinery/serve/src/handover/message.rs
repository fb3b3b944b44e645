//! The messages of a handover as text: a verb, and its fields. Pure.

use std::fmt;
use std::net::SocketAddr;

use super::{HandoverError, Introduction};
use crate::net::Protocol;
use crate::sockets::SocketKey;

/// Maximum bytes of a message: 250 sockets with the longest addresses and names.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Maximum bytes of a socket's name (a node's name has 253).
const NAME_BYTES_MAX: usize = 300;
/// Maximum bytes of a program's version and of a refusal.
const TEXT_BYTES_MAX: usize = 1024;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    Takeover {
        version: u32,
        from: Introduction,
    },
    Offer {
        version: u32,
        sockets: usize,
        from: Introduction,
    },
    /// The keys of the descriptors that come with it.
    Sockets(Vec<SocketKey>),
    Commit,
    Released,
    Serving,
    Refused(String),
}

/// The text, without what would be read as another message.
impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Takeover { version, from } => write!(f, "takeover {version} {} {}", from.pid, line(&from.program)),
            Self::Offer { version, sockets, from } => {
                write!(f, "offer {version} {} {sockets} {}", from.pid, line(&from.program))
            }
            Self::Sockets(keys) => {
                f.write_str("sockets")?;
                for SocketKey { protocol, address, name } in keys {
                    let protocol = match protocol {
                        Protocol::Tcp => "tcp",
                        Protocol::Udp => "udp",
                    };
                    write!(f, "\n{protocol} {address} {name}")?;
                }
                Ok(())
            }
            Self::Commit => f.write_str("commit"),
            Self::Released => f.write_str("released"),
            Self::Serving => f.write_str("serving"),
            Self::Refused(why) => write!(f, "refused {}", line(why)),
        }
    }
}

/// A line of printable text of bounded length.
fn line(text: &str) -> String {
    let mut line = String::new();
    for char in text.chars().filter(|char| !char.is_control()) {
        if line.len() + char.len_utf8() > TEXT_BYTES_MAX {
            break;
        }
        line.push(char);
    }
    line
}

impl Message {
    /// Reads a message.
    ///
    /// # Errors
    /// If it has another form.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, HandoverError> {
        Self::parsed(bytes).ok_or_else(|| {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]);
            HandoverError::Invalid(shown.escape_debug().to_string())
        })
    }

    fn parsed(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (verb, rest) = text.split_once([' ', '\n']).unwrap_or((text, ""));
        match verb {
            "takeover" => {
                let mut fields = rest.splitn(3, ' ');
                let version = fields.next()?.parse().ok()?;
                let pid = fields.next()?.parse().ok()?;
                Some(Self::Takeover { version, from: Introduction { pid, program: plain(fields.next()?)? } })
            }
            "offer" => {
                let mut fields = rest.splitn(4, ' ');
                let version = fields.next()?.parse().ok()?;
                let pid = fields.next()?.parse().ok()?;
                let sockets = fields.next()?.parse().ok()?;
                Some(Self::Offer { version, sockets, from: Introduction { pid, program: plain(fields.next()?)? } })
            }
            "sockets" => {
                let lines = rest.split('\n').filter(|line| !line.is_empty());
                lines.map(socket).collect::<Option<_>>().map(Self::Sockets)
            }
            "commit" if rest.is_empty() => Some(Self::Commit),
            "released" if rest.is_empty() => Some(Self::Released),
            "serving" if rest.is_empty() => Some(Self::Serving),
            "refused" => plain(rest).map(Self::Refused),
            _ => None,
        }
    }
}

fn socket(line: &str) -> Option<SocketKey> {
    let mut fields = line.splitn(3, ' ');
    let protocol = match fields.next()? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    let address: SocketAddr = fields.next()?.parse().ok()?;
    let name = plain(fields.next()?).filter(|name| name.len() <= NAME_BYTES_MAX)?;
    Some(SocketKey { protocol, address, name })
}

/// Text for people, in the form that [`line`] makes.
fn plain(text: &str) -> Option<String> {
    (line(text) == text).then(|| text.to_owned())
}
