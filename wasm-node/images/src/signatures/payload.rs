//! The signed document of an image: a "simple signing" payload of containers' atomic signatures, as cosign writes it.
//! Pure.

use serde::Deserialize;
use serde::de::IgnoredAny;

use oci_registry::reference::is_sha256;

/// The document type that cosign and containers' tools write.
const TYPE: &str = "cosign container image signature";

/// Why a payload is invalid. The error contains nothing of its content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum PayloadError {
    /// Not JSON of that form.
    #[error("its payload is no simple signing document")]
    Form,
    /// Of something other than an image.
    #[error("its payload is not of type {TYPE:?}")]
    Type,
    /// No valid digest of an image.
    #[error("its payload names no sha256 digest")]
    Digest,
}

/// The image that a signature is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Payload {
    /// The manifest's digest.
    pub(super) digest: String,
    /// The image's name at signing.
    pub(super) reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    critical: Critical,
    #[serde(rename = "optional", default)]
    _optional: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Identity {
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Image {
    docker_manifest_digest: String,
}

/// Parses a payload. Unknown critical fields are rejected, as the format requires.
pub(super) fn parse(bytes: &[u8]) -> Result<Payload, PayloadError> {
    let Document { critical, .. } = serde_json::from_slice(bytes).map_err(|_| PayloadError::Form)?;
    if critical.kind != TYPE {
        return Err(PayloadError::Type);
    }
    let digest = critical.image.docker_manifest_digest;
    if !is_sha256(&digest) {
        return Err(PayloadError::Digest);
    }
    Ok(Payload { digest, reference: critical.identity.docker_reference })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(digest: &str) -> String {
        format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"a.io/x"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"{TYPE}"}},"optional":null}}"#
        )
    }

    #[test]
    fn payloads_are_read_strictly() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let good = text(&digest);
        let payload = Payload { digest: digest.clone(), reference: "a.io/x".into() };
        assert_eq!(parse(good.as_bytes()), Ok(payload.clone()));
        assert_eq!(parse(good.replace("null", "{\"creator\":\"x\",\"a\":[1]}").as_bytes()), Ok(payload.clone()));
        assert_eq!(parse(good.replace(",\"optional\":null", "").as_bytes()), Ok(payload));
        for (bytes, error) in [
            (String::new(), PayloadError::Form),
            (good.replace("\"type\"", "\"more\":1,\"type\""), PayloadError::Form),
            (good.replace("\"critical\":", "\"critical\":1,\"critical\":"), PayloadError::Form),
            (good.replace("\"docker-reference\":\"a.io/x\"", ""), PayloadError::Form),
            (format!("{good} x"), PayloadError::Form),
            (good.replace("cosign", "atomic"), PayloadError::Type),
            (text("sha256:0"), PayloadError::Digest),
            (text(&digest.replace("256", "512")), PayloadError::Digest),
        ] {
            assert_eq!(parse(bytes.as_bytes()), Err(error), "{bytes}");
        }
    }
}
