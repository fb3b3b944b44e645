//! Public keys of image signers, and the verification of their signatures: ECDSA, RSA and Ed25519 with SHA-256, like
//! `cosign verify --key` and containers' tools. Pure.

use std::fmt;

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey as Parsed;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Object identifiers of key algorithms and curves (RFC 5480, RFC 8410, RFC 8017).
const EC: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";
const ED25519_KEY: &str = "1.3.101.112";
const RSA: &str = "1.2.840.113549.1.1.1";
/// The accepted sizes of RSA keys in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    P256,
    P384,
    Ed25519,
    Rsa,
}

/// A key that verifies signatures.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct PublicKey {
    kind: Kind,
    /// The key in the format of `ring`.
    bits: Vec<u8>,
    /// The digest of the whole key.
    id: String,
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?} {})", self.kind, self.id)
    }
}

impl PublicKey {
    /// Parses the only `PUBLIC KEY` of a PEM text.
    pub(super) fn parse(pem: &[u8]) -> Result<Self, String> {
        let mut all = SubjectPublicKeyInfoDer::pem_slice_iter(pem);
        let der = match all.next() {
            Some(Ok(der)) => der,
            Some(Err(error)) => return Err(format!("not PEM: {error}")),
            None => return Err("holds no PEM of a PUBLIC KEY (cosign.pub is one)".into()),
        };
        if all.next().is_some() {
            return Err("holds more than one PEM of a PUBLIC KEY".into());
        }
        Self::of_der(der.as_ref())
    }

    fn of_der(der: &[u8]) -> Result<Self, String> {
        let unread = || "its PUBLIC KEY can't be read".to_owned();
        let (rest, info) = SubjectPublicKeyInfo::from_der(der).map_err(|_| unread())?;
        if !rest.is_empty() {
            return Err("something follows its PUBLIC KEY".into());
        }
        let algorithm = info.algorithm.algorithm.to_id_string();
        let curve = info.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok()).map(|oid| oid.to_id_string());
        let parsed = info.parsed().map_err(|_| unread())?;
        let bits = info.subject_public_key.data.to_vec();
        let kind = match (algorithm.as_str(), curve.as_deref(), parsed) {
            (EC, Some(P256), _) if is_point(&bits, 32) => Kind::P256,
            (EC, Some(P384), _) if is_point(&bits, 48) => Kind::P384,
            (ED25519_KEY, None, _) if bits.len() == 32 => Kind::Ed25519,
            (RSA, _, Parsed::RSA(key)) if RSA_BITS.contains(&key.key_size()) => Kind::Rsa,
            _ => {
                return Err("not a supported key: ECDSA of P-256 or P-384, Ed25519, RSA of 2048 to 8192 bits".into());
            }
        };
        Ok(Self { kind, bits, id: hex::encode(Sha256::digest(der)) })
    }

    /// Returns an identifier of the key.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Returns whether `signature` is this key's signature of `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &'static dyn VerificationAlgorithm = match self.kind {
            Kind::P256 => &ECDSA_P256_SHA256_ASN1,
            Kind::P384 => &ECDSA_P384_SHA256_ASN1,
            Kind::Ed25519 => &ED25519,
            Kind::Rsa => &RSA_PKCS1_2048_8192_SHA256,
        };
        UnparsedPublicKey::new(algorithm, &self.bits).verify(message, signature).is_ok()
    }
}

/// Returns whether the bits are an uncompressed point of a curve.
fn is_point(bits: &[u8], coordinate_bytes: usize) -> bool {
    bits.len() == 1 + 2 * coordinate_bytes && bits[0] == 4
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    /// Keys and signatures created by `openssl` (`dgst -sha256 -sign`; `pkeyutl -rawin` for Ed25519), each of the text
    /// `signed`.
    const KEYS: &str = include_str!("keys.txt");

    /// Returns name, key and signature of each kind.
    pub(in super::super) fn test_keys() -> Vec<(String, PublicKey, Vec<u8>)> {
        KEYS.lines()
            .map(|line| {
                let parts: Vec<&str> = line.split(' ').collect();
                let pem = pem(parts[1]);
                (parts[0].to_owned(), PublicKey::parse(pem.as_bytes()).unwrap(), STANDARD.decode(parts[2]).unwrap())
            })
            .collect()
    }

    fn pem(key: &str) -> String {
        format!("-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----\n")
    }

    #[test]
    fn keys_of_all_kinds_verify_their_own_signatures_and_no_others() {
        let made = test_keys();
        let names: Vec<&str> = made.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["p256", "p384", "ed25519", "rsa"]);
        for (name, key, signature) in &made {
            assert!(key.verifies(b"signed", signature), "{name}");
            assert!(!key.verifies(b"Signed", signature) && !key.verifies(b"signed", &signature[1..]), "{name}");
            let others = made.iter().filter(|(other, ..)| other != name);
            assert!(others.clone().all(|(_, other, _)| !other.verifies(b"signed", signature)), "{name}");
            assert!(others.clone().all(|(_, other, _)| other.id() != key.id()));
        }
    }

    #[test]
    fn invalid_public_keys_are_named() {
        let line = KEYS.lines().next().unwrap().split(' ').nth(1).unwrap();
        let good = pem(line);
        for (text, says) in [
            (String::new(), "holds no PEM"),
            (good.replace("PUBLIC", "PRIVATE"), "holds no PEM"),
            (good.repeat(2), "more than one"),
            (pem("AAAA"), "can't be read"),
            (good.replace(&line[..4], "%%%%"), "not PEM"),
            // An RSA key of 1024 bits, a curve that is no NIST curve.
            (pem(WEAK), "not a supported key"),
            (pem(SECP256K1), "not a supported key"),
        ] {
            let error = PublicKey::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    const WEAK: &str = "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDyImXBwrpMNj9oykx6la0hjQvkTULYZrnmoPUXf6XwT6hmnWSwShIISSpKBUkpvhecgFCYIBfcJBBSxmSB+sXU4y0794U/31Of8L5PxEiy+FmFetsJXLDlFFDsB2oDCxD/7clHB2keOikSb5VjBf5Zi7QD/Q4LC1mPXBVqL60xkQIDAQAB";
    const SECP256K1: &str = "MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAEXmdLvJ+Q7lnBx8a2sF1TovlxgtAZ6gsXv6cBEkt6qYzpZinqiEMv2MKJxrVm1zPbeGD+uzg84Cby8U6mN5MVRQ==";
}
