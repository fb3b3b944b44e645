//! What a node says about a compiled module, and what it signs. Pure.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use oci_registry::blobs;
use proxy::tunnel::NodeSignature;
use wasm_runtime::engine::{CompiledName, DESCRIPTION_BYTES_MAX};

const PATH: &str = "/compiled/";
const SUM: HeaderName = HeaderName::from_static("coracle-compiled-sum");
const SIGNATURE: HeaderName = HeaderName::from_static("coracle-compiled-signature");
const DESCRIPTION_BYTES: HeaderName = HeaderName::from_static("coracle-compiled-description-bytes");
/// Length of a SHA-256 in hexadecimal digits.
const SUM_DIGITS: usize = 64;

/// The target of the request for a module.
pub(crate) fn path(name: &CompiledName) -> String {
    format!("{PATH}{}/{}", name.digest(), name.fingerprint())
}

/// The module that a target names.
pub(crate) fn named(path: &str) -> Option<CompiledName> {
    let (digest, fingerprint) = path.strip_prefix(PATH)?.split_once('/')?;
    CompiledName::new(digest, fingerprint)
}

/// The signed bytes: everything that decides what runs.
pub(crate) fn signed_bytes(key: &str, name: &CompiledName, sum: &str, description: Option<&[u8]>) -> Vec<u8> {
    let description = description.map_or_else(|| "none".to_owned(), blobs::digest);
    let (digest, fingerprint) = (name.digest(), name.fingerprint());
    format!("coracle compiled module\n{key}\n{digest}\n{fingerprint}\n{sum}\n{description}\n").into_bytes()
}

/// The head of an answer. Its body is the description, then the artifact.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The artifact's SHA-256 in hexadecimal digits.
    pub(crate) sum: String,
    pub(crate) signature: NodeSignature,
    /// Length of the description; `None` without one.
    pub(crate) description_bytes: Option<usize>,
}

impl Offer {
    /// The header fields; `None` if the sum is no header value.
    pub(crate) fn headers(&self) -> Option<HeaderMap> {
        let mut headers = HeaderMap::new();
        headers.insert(SUM, HeaderValue::from_str(&self.sum).ok()?);
        headers.insert(SIGNATURE, HeaderValue::from_str(&self.signature.to_text()).ok()?);
        if let Some(bytes) = self.description_bytes {
            headers.insert(DESCRIPTION_BYTES, HeaderValue::from(bytes));
        }
        Some(headers)
    }

    /// Reads the header fields; `None` if one is missing, malformed or too large.
    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &HeaderName| headers.get(name)?.to_str().ok();
        let sum =
            text(&SUM).filter(|sum| sum.len() == SUM_DIGITS && sum.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        let description_bytes = match headers.get(DESCRIPTION_BYTES) {
            Some(_) => {
                Some(text(&DESCRIPTION_BYTES)?.parse().ok().filter(|bytes| *bytes as u64 <= DESCRIPTION_BYTES_MAX)?)
            }
            None => None,
        };
        let signature = NodeSignature::parse(text(&SIGNATURE)?).ok()?;
        Some(Self { sum: sum.to_ascii_lowercase(), signature, description_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> CompiledName {
        CompiledName::new(&"ab".repeat(32), "0123456789abcdef").unwrap()
    }

    #[test]
    fn targets_name_modules_only() {
        assert_eq!(named(&path(&name())), Some(name()));
        for bad in ["/", "/compiled/", "/compiled/a/b", "/compiled/../../etc/passwd", &format!("{}/x", path(&name()))] {
            assert_eq!(named(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_part_is_signed() {
        let all = [
            signed_bytes("1/f", &name(), "s", None),
            signed_bytes("2/f", &name(), "s", None),
            signed_bytes("1/f", &CompiledName::new(&"ac".repeat(32), "0123456789abcdef").unwrap(), "s", None),
            signed_bytes("1/f", &CompiledName::new(&"ab".repeat(32), "0123456789abcdee").unwrap(), "s", None),
            signed_bytes("1/f", &name(), "t", None),
            signed_bytes("1/f", &name(), "s", Some(b"")),
            signed_bytes("1/f", &name(), "s", Some(b"x")),
        ];
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
    }

    #[test]
    fn offers_are_read_as_written_and_others_are_refused() {
        let signature = NodeSignature::parse("0403.AAAA.AAAA").unwrap();
        for description_bytes in [None, Some(0), Some(17)] {
            let offer = Offer { sum: "0f".repeat(32), signature: signature.clone(), description_bytes };
            assert_eq!(Offer::read(&offer.headers().unwrap()), Some(offer));
        }
        let good = Offer { sum: "0f".repeat(32), signature, description_bytes: None }.headers().unwrap();
        for (field, bad) in
            [(SUM, "0f"), (SUM, ""), (SIGNATURE, "x"), (DESCRIPTION_BYTES, "-1"), (DESCRIPTION_BYTES, "99999999999")]
        {
            let mut headers = good.clone();
            headers.insert(field.clone(), HeaderValue::from_static(bad));
            assert_eq!(Offer::read(&headers), None, "{field}: {bad}");
        }
    }

    #[test]
    fn fuzz_offers() {
        bolero::check!().with_type::<(String, String, String)>().for_each(|(sum, signature, bytes)| {
            let mut headers = HeaderMap::new();
            for (name, text) in [(SUM, sum), (SIGNATURE, signature), (DESCRIPTION_BYTES, bytes)] {
                if let Ok(value) = HeaderValue::from_str(text) {
                    headers.insert(name, value);
                }
            }
            if let Some(offer) = Offer::read(&headers) {
                assert_eq!(Offer::read(&offer.headers().unwrap()), Some(offer));
            }
            let _ = named(sum);
        });
    }
}
