//! The secret of a run of `coracle dashboard`: 256 random bits, which only the opened page has.

use machinery_env::Env;
use subtle::ConstantTimeEq as _;

/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;

/// A secret.
#[derive(Clone)]
pub struct Secret {
    /// In hexadecimal digits.
    text: String,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    pub fn new(env: &Env) -> Self {
        let mut bytes = [0; SECRET_BYTES];
        env.fill(&mut bytes);
        Self { text: bytes.iter().map(|byte| format!("{byte:02x}")).collect() }
    }

    /// For the address of the page alone: it must reach no log and no command line.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// The subprotocol by which a page sends it with a WebSocket.
    #[cfg(test)]
    pub(crate) fn as_protocol(&self) -> String {
        use apiserver_auth::websocket_token::PREFIX;
        use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&self.text))
    }

    /// Whether a bearer token is this secret. Compares in a time that depends on the lengths alone.
    pub(crate) fn is_token(&self, token: &str) -> bool {
        token.as_bytes().ct_eq(self.text.as_bytes()).into()
    }
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
        let secret = Secret { text: "abc123".to_owned() };
        assert!(secret.is_token("abc123"));
        for other in ["", "abc12", "abc124", "abc1234", "ABC123"] {
            assert!(!secret.is_token(other), "{other}");
        }
    }
}
