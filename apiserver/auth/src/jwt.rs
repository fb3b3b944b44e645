//! JSON Web Tokens with the ES256 algorithm, for service account tokens (RFC 7515, RFC 7518 §3.4).
//!
//! The algorithm is fixed and only compared with the header's, so that a token cannot select its own verification.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The maximum token length in bytes. The server's own are about 1 KiB.
const TOKEN_BYTES_MAX: usize = 32 * 1024;
/// The DER of a `SubjectPublicKeyInfo` for P-256 up to the point itself (RFC 5480 §2).
const SPKI_P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Why a key is invalid or signing failed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text is not a PEM document with one PKCS#8 key.
    #[error("not a private key in PEM: {0}")]
    Pem(String),
    /// The key is not on P-256.
    #[error("not a P-256 key")]
    Key,
    /// The system provides no randomness.
    #[error("signing failed")]
    Sign,
}

/// The key that signs and verifies tokens.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    id: String,
    spki: Vec<u8>,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.id)
    }
}

impl SigningKey {
    /// Reads a PKCS#8 key.
    ///
    /// # Errors
    /// The text holds no PKCS#8 key on P-256.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| KeyError::Pem(e.to_string()))?;
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random)
            .map_err(|_| KeyError::Key)?;
        let mut spki = SPKI_P256.to_vec();
        spki.extend_from_slice(pair.public_key().as_ref());
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(&spki));
        Ok(Self { pair, id, spki })
    }

    /// The key ID: the hash of the public key, as upstream.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The public key in PEM.
    #[must_use]
    pub(crate) fn public_pem(&self) -> String {
        let body = STANDARD.encode(&self.spki);
        let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
        for line in body.as_bytes().chunks(64) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem.push_str("-----END PUBLIC KEY-----\n");
        pem
    }

    /// The public key as a JSON Web Key (RFC 7517).
    #[must_use]
    pub(crate) fn jwk(&self) -> Value {
        // An uncompressed point: the byte 4, then x and y with 32 bytes each.
        let point = self.pair.public_key().as_ref();
        let (x, y) = (point.get(1..33).unwrap_or_default(), point.get(33..65).unwrap_or_default());
        json!({
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        })
    }

    /// Signs claims.
    ///
    /// # Errors
    /// The system provides no randomness.
    pub fn sign(&self, claims: &Value) -> Result<String, KeyError> {
        let header = json!({"alg": "ES256", "kid": self.id});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(claims));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).map_err(|_| KeyError::Sign)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Returns the claims if this key signed the token.
    #[must_use]
    pub(crate) fn verify(&self, token: &str) -> Option<Value> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if header.get("alg") != Some(&json!("ES256")) {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_pem(&rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap()
    }

    #[test]
    fn only_tokens_of_this_key_are_accepted() {
        let (key, other) = (key(), key());
        let claims = json!({"sub": "a"});
        let token = key.sign(&claims).unwrap();
        assert_eq!(key.verify(&token), Some(claims.clone()));
        assert_eq!(other.verify(&token), None);
        let parts: Vec<&str> = token.split('.').collect();
        let forged = URL_SAFE_NO_PAD.encode(json!({"sub": "b"}).to_string());
        let none = URL_SAFE_NO_PAD.encode(json!({"alg": "none"}).to_string());
        for bad in [
            format!("{}.{forged}.{}", parts[0], parts[2]),
            format!("{none}.{}.", parts[1]),
            format!("{none}.{}.{}", parts[1], parts[2]),
            format!("{}.{}", parts[0], parts[1]),
            format!("{token}."),
            "a.b.c".into(),
            "..".into(),
            String::new(),
            "x".repeat(TOKEN_BYTES_MAX + 1),
        ] {
            assert_eq!(key.verify(&bad), None, "{bad:.60}");
        }
    }
}
