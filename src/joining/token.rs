//! The token of a new API server: `ID.SECRET.KEY`. The first two parts are a bootstrap token, the third one decrypts.

use std::fmt;
use std::str::FromStr;

use apiserver_storage::store::embedded::sealed::SealingKey;
use machinery_env::Env;

/// The letters of a bootstrap token (upstream's `[a-z0-9]{6}.[a-z0-9]{16}`).
const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const ID_LETTERS: usize = 6;
const SECRET_LETTERS: usize = 16;

/// A parsed token.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ControlPlaneToken {
    pub(super) id: String,
    pub(super) secret: String,
    key: [u8; SealingKey::BYTES],
}

impl fmt::Debug for ControlPlaneToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlaneToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl ControlPlaneToken {
    pub(super) fn new(env: &Env) -> Self {
        let letters = |count: usize| {
            let letter = |_| char::from(LETTERS[usize::try_from(env.below(LETTERS.len() as u64)).unwrap_or(0)]);
            (0..count).map(letter).collect()
        };
        let mut key = [0; SealingKey::BYTES];
        env.fill(&mut key);
        Self { id: letters(ID_LETTERS), secret: letters(SECRET_LETTERS), key }
    }

    /// The part that the API server authenticates.
    pub(super) fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    pub(super) fn key(&self) -> SealingKey {
        SealingKey::new(&self.key)
    }
}

impl fmt::Display for ControlPlaneToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.", self.id, self.secret)?;
        self.key.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for ControlPlaneToken {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "not a token of `coracle token create --control-plane`: ID.SECRET.KEY";
        let plain = |part: &str, letters: usize| part.len() == letters && part.bytes().all(|b| LETTERS.contains(&b));
        let mut parts = text.split('.');
        let (Some(id), Some(secret), Some(hex), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(FORM);
        };
        if !plain(id, ID_LETTERS) || !plain(secret, SECRET_LETTERS) || hex.len() != 2 * SealingKey::BYTES {
            return Err(FORM);
        }
        let mut key = [0; SealingKey::BYTES];
        for (byte, digits) in key.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| FORM)?;
            let lower = digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
            *byte = u8::from_str_radix(digits, 16).ok().filter(|_| lower).ok_or(FORM)?;
        }
        Ok(Self { id: id.to_owned(), secret: secret.to_owned(), key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_one_form() {
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let token = ControlPlaneToken::new(&env);
        let text = token.to_string();
        assert_eq!(text.len(), 6 + 1 + 16 + 1 + 64);
        assert_eq!(text.parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&token.secret));
        assert_ne!(ControlPlaneToken::new(&env), token);
        let more = format!("{text}0");
        for bad in ["", "a.b.c", &token.bearer(), &text.to_uppercase(), &text[1..], &more, &format!("{text}.x")] {
            assert!(bad.parse::<ControlPlaneToken>().is_err(), "{bad}");
        }
        for wide in [text.replacen('.', "é", 1), format!("{}é{}", &text[..24], &text[26..])] {
            assert!(wide.parse::<ControlPlaneToken>().is_err(), "{wide}");
        }
    }
}
