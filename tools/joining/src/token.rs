//! The tokens of joining machines: a node's is a bootstrap token `ID.SECRET`, and a new API server's is `ID.SECRET.KEY`, whose
//! third part decrypts.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::str::FromStr;

use apiserver_storage::store::embedded::sealed::SealingKey;
use machinery_env::Env;

/// The letters of a bootstrap token (upstream's `[a-z0-9]{6}.[a-z0-9]{16}`).
const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const ID_LETTERS: usize = 6;
const SECRET_LETTERS: usize = 16;

/// Far above any token.
const FILE_BYTES_MAX: u64 = 4096;

/// Reads a token from a file; `None` if there is no such file, as it may be removed once a node has joined.
///
/// # Errors
/// If the file can't be read or holds no token. The error doesn't repeat its content.
pub fn read_file<T: FromStr<Err = &'static str>>(file: &Path) -> Result<Option<T>, String> {
    let mut text = String::new();
    let opened = match File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened,
    };
    let read = opened.and_then(|opened| opened.take(FILE_BYTES_MAX).read_to_string(&mut text));
    let failed = |why: &dyn fmt::Display| format!("--token-file {}: {why}", file.display());
    read.map_err(|error| failed(&error))?;
    text.trim().parse().map(Some).map_err(|form: &str| failed(&form))
}

/// A parsed bootstrap token.
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    pub(crate) id: String,
    pub(crate) secret: String,
}

impl fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootstrapToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl BootstrapToken {
    pub(crate) fn new(env: &Env) -> Self {
        Self { id: letters(env, ID_LETTERS), secret: letters(env, SECRET_LETTERS) }
    }
}

impl fmt::Display for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.secret)
    }
}

impl FromStr for BootstrapToken {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('.').filter(|(id, secret)| is_id(id) && is_plain(secret, SECRET_LETTERS));
        let (id, secret) = parts.ok_or("not a bootstrap token: ID.SECRET")?;
        Ok(Self { id: id.to_owned(), secret: secret.to_owned() })
    }
}

/// Whether a text is the first part of a token.
pub(crate) fn is_id(text: &str) -> bool {
    is_plain(text, ID_LETTERS)
}

fn is_plain(part: &str, letters: usize) -> bool {
    part.len() == letters && part.bytes().all(|byte| LETTERS.contains(&byte))
}

fn letters(env: &Env, count: usize) -> String {
    let letter = |_| char::from(LETTERS[usize::try_from(env.below(LETTERS.len() as u64)).unwrap_or(0)]);
    (0..count).map(letter).collect()
}

/// A parsed token of a new API server.
#[derive(Clone, PartialEq, Eq)]
pub struct ControlPlaneToken {
    pub(crate) id: String,
    pub(crate) secret: String,
    key: [u8; SealingKey::BYTES],
}

impl fmt::Debug for ControlPlaneToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlaneToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl ControlPlaneToken {
    pub(crate) fn new(env: &Env) -> Self {
        let mut key = [0; SealingKey::BYTES];
        env.fill(&mut key);
        Self { id: letters(env, ID_LETTERS), secret: letters(env, SECRET_LETTERS), key }
    }

    /// The part that the API server authenticates.
    pub(crate) fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    pub(crate) fn key(&self) -> SealingKey {
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
        let mut parts = text.split('.');
        let (Some(id), Some(secret), Some(hex), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(FORM);
        };
        if !is_id(id) || !is_plain(secret, SECRET_LETTERS) || hex.len() != 2 * SealingKey::BYTES {
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
    fn a_file_holds_a_token_or_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        assert_eq!(read_file::<BootstrapToken>(&file), Ok(None));
        std::fs::write(&file, " abcdef.0123456789abcdef\n").unwrap();
        let token: BootstrapToken = "abcdef.0123456789abcdef".parse().unwrap();
        assert_eq!(read_file(&file), Ok(Some(token)));
        for wrong in [b"abcdef.short".as_slice(), b"", b"\xff", &[b'a'; 5000]] {
            std::fs::write(&file, wrong).unwrap();
            let error = read_file::<BootstrapToken>(&file).unwrap_err();
            assert!(error.starts_with("--token-file ") && !error.contains("short"), "{error}");
        }
    }

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

    #[test]
    fn a_nodes_token_has_two_parts() {
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let token = BootstrapToken::new(&env);
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert!(is_id(&text[..6]) && !is_id(&text[..7]));
        assert!(!format!("{token:?}").contains(&token.secret));
        let whole = ControlPlaneToken::new(&env).to_string();
        for bad in ["", ".", "abcdef", &text.to_uppercase(), &text[1..], &format!("{text}0"), &whole] {
            assert!(bad.parse::<BootstrapToken>().is_err(), "{bad}");
        }
    }
}
