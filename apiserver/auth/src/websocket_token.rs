//! The bearer token of a WebSocket request, sent as a subprotocol, because browsers can't set headers of a WebSocket.
//! Format and rules are those of upstream's `ProtocolAuthenticator` (apiserver/pkg/authentication/request/websocket).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The begin of the subprotocol; the token follows in base64url without padding.
pub const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// A token among the offered subprotocols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebSocketToken {
    /// The decoded token.
    Valid(String),
    /// Several tokens, an invalid encoding, or no other subprotocol, which the server could choose. Authentication fails.
    Malformed,
}

impl WebSocketToken {
    /// Reads the token from the values of `Sec-WebSocket-Protocol`; `None` without one.
    #[must_use]
    pub fn read<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let offered = headers.flat_map(|value| value.split(',').map(str::trim)).filter(|name| !name.is_empty());
        let (tokens, others): (Vec<_>, Vec<_>) = offered.partition(|name| name.starts_with(PREFIX));
        let (first, more) = tokens.split_first()?;
        let encoded = &first[PREFIX.len()..];
        if !more.is_empty() {
            return Some(Self::Malformed);
        }
        if encoded.is_empty() {
            return None;
        }
        let decoded = URL_SAFE_NO_PAD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        Some(decoded.filter(|_| !others.is_empty()).map_or(Self::Malformed, Self::Valid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_of_several_subprotocols() {
        let valid = || Some(WebSocketToken::Valid("secret".into()));
        for (headers, read) in [
            (vec!["base64url.bearer.authorization.k8s.io.c2VjcmV0, v5.channel.k8s.io"], valid()),
            (vec!["v5.channel.k8s.io", "base64url.bearer.authorization.k8s.io.c2VjcmV0"], valid()),
            (vec!["v5.channel.k8s.io"], None),
            (vec![], None),
            (vec!["base64url.bearer.authorization.k8s.io., v5.channel.k8s.io"], None),
            (vec!["base64url.bearer.authorization.k8s.io.c2VjcmV0"], Some(WebSocketToken::Malformed)),
            (vec!["base64url.bearer.authorization.k8s.io.c2VjcmV0=, a"], Some(WebSocketToken::Malformed)),
            (vec!["base64url.bearer.authorization.k8s.io._w, a"], Some(WebSocketToken::Malformed)),
            (
                vec!["base64url.bearer.authorization.k8s.io.YQ, base64url.bearer.authorization.k8s.io.YQ, a"],
                Some(WebSocketToken::Malformed),
            ),
        ] {
            assert_eq!(WebSocketToken::read(headers.iter().copied()), read, "{headers:?}");
        }
    }
}
