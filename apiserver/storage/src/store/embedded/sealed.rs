//! Encryption of backups and of a cluster's keys: AES-256-GCM (NIST SP 800-38D). The result is a magic, a random nonce, and
//! the encrypted bytes with their tag.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};

const MAGIC: &[u8; 8] = b"\xFFCRSEAL\xFE";

/// A key of AES-256-GCM.
#[derive(Debug)]
pub struct SealingKey(LessSafeKey);

impl SealingKey {
    /// The size of a key in bytes.
    pub const BYTES: usize = 32;

    /// From random bytes.
    ///
    /// # Panics
    /// Never: the size is the algorithm's.
    #[must_use]
    pub fn new(bytes: &[u8; Self::BYTES]) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).expect("the algorithm's size")))
    }

    /// From base64 of 32 random bytes, with or without a line's end. `None`: it is something else.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let bytes = STANDARD.decode(text.trim_ascii()).ok()?;
        bytes.as_slice().try_into().ok().map(Self::new)
    }

    /// Encrypts, with a nonce of its own. `None`: the system has no randomness.
    #[must_use]
    pub fn seal(&self, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let unique = Nonce::assume_unique_for_key(nonce);
        self.0.seal_in_place_append_tag(unique, Aad::from(MAGIC), &mut bytes).ok()?;
        Some([MAGIC, &nonce[..], &bytes].concat())
    }

    /// Decrypts. `None`: it was encrypted with another key, or changed since.
    #[must_use]
    pub fn open(&self, file: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = file.strip_prefix(MAGIC)?.split_first_chunk::<NONCE_LEN>()?;
        let mut bytes = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.0.open_in_place(nonce, Aad::from(MAGIC), &mut bytes).ok()?.len();
        bytes.truncate(length);
        Some(bytes)
    }
}

/// Whether a file is encrypted.
pub(super) fn is_sealed(file: &[u8]) -> bool {
    file.starts_with(MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_opens_a_sealed_file() {
        let key = |byte: u8| SealingKey::parse(format!("{}\n", STANDARD.encode([byte; 32])).as_bytes()).unwrap();
        let sealed = key(1).seal(b"secret".to_vec()).unwrap();
        assert!(is_sealed(&sealed) && !sealed.windows(6).any(|part| part == b"secret"));
        assert_ne!(sealed, key(1).seal(b"secret".to_vec()).unwrap(), "a nonce of its own");
        assert_eq!(key(1).open(&sealed).as_deref(), Some(&b"secret"[..]));
        assert_eq!(key(2).open(&sealed), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(key(1).open(&changed), None, "byte {at}");
            assert_eq!(key(1).open(&sealed[..at]), None, "cut at {at}");
        }
        for text in [&b""[..], b"c2hvcnQ=", &[b'A'; 32], b"\xff"] {
            assert!(SealingKey::parse(text).is_none(), "{text:?}");
        }
    }
}
