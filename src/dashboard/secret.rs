//! The secret of a run of `coracle dashboard`: 256 random bits, which only the opened page has.

use std::hint::black_box;

use machinery_env::Env;

/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;
/// The subprotocol by which a page sends a token to a WebSocket (k8s.io/apiserver,
/// `authentication/request/websocket/protocol.go`), before the token in base64url without padding.
pub(super) const PROTOCOL_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";
/// The digits of base64url (RFC 4648, 5).
const BASE64URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A secret.
#[derive(Clone)]
pub(crate) struct Secret {
    /// In hexadecimal digits.
    text: String,
    /// The subprotocol that has it.
    protocol: String,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    pub(crate) fn new(env: &Env) -> Self {
        let mut bytes = [0; SECRET_BYTES];
        env.fill(&mut bytes);
        Self::of(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn of(text: String) -> Self {
        let protocol = format!("{PROTOCOL_PREFIX}{}", base64url(text.as_bytes()));
        Self { text, protocol }
    }

    /// For the address of the page alone: it must reach no log and no command line.
    pub(crate) fn reveal(&self) -> &str {
        &self.text
    }

    /// The subprotocol that has it.
    #[cfg(test)]
    pub(super) fn reveal_protocol(&self) -> &str {
        &self.protocol
    }

    /// Whether a bearer token is this secret.
    pub(super) fn is_token(&self, token: &str) -> bool {
        is_same(token.as_bytes(), self.text.as_bytes())
    }

    /// Whether a WebSocket's subprotocol has this secret.
    pub(super) fn is_protocol(&self, protocol: &str) -> bool {
        is_same(protocol.trim_end_matches('=').as_bytes(), self.protocol.as_bytes())
    }
}

/// Compares in a time that depends on the lengths alone.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| black_box(difference | (a ^ b)));
    a.len() == b.len() && black_box(difference) == 0
}

/// base64url without padding.
fn base64url(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        let digits = (0..=group.len()).map(|digit| BASE64URL[(bits >> (18 - 6 * digit) & 63) as usize]);
        text.extend(digits.map(char::from));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_has_another_secret_and_no_output_has_it() {
        let (env, _) = Env::seeded(1, jiff::Timestamp::UNIX_EPOCH);
        let (one, two) = (Secret::new(&env), Secret::new(&env));
        assert_ne!(one.reveal(), two.reveal());
        assert_eq!(one.reveal().len(), 2 * SECRET_BYTES);
        assert!(!format!("{one:?}").contains(one.reveal()));
    }

    #[test]
    fn the_secret_alone_is_accepted() {
        let secret = Secret::of("abc123".to_owned());
        assert!(secret.is_token("abc123"));
        for other in ["", "abc12", "abc124", "abc1234", "ABC123"] {
            assert!(!secret.is_token(other), "{other}");
        }
        assert!(secret.is_protocol("base64url.bearer.authorization.k8s.io.YWJjMTIz"));
        assert!(!secret.is_protocol("base64url.bearer.authorization.k8s.io.YWJjMTI0"));
        assert!(!secret.is_protocol("abc123") && !secret.is_protocol("v5.channel.k8s.io"));
    }

    #[test]
    fn base64url_is_that_of_rfc_4648() {
        let texts = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64url(text.as_bytes()));
        assert_eq!(texts, ["", "Zg", "Zm8", "Zm9v", "Zm9vYg", "Zm9vYmE", "Zm9vYmFy"]);
        assert_eq!(base64url(&[0xfb, 0xff]), "-_8");
    }
}
