//! Image references: parsed by the rules of the distribution project, with the kubelet's messages for invalid ones.

use std::fmt;
use std::path::PathBuf;

/// The name of the cluster's built-in registry in images.
pub const BUILT_IN_REGISTRY: &str = "registry.local";
/// The registry of names without one.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Maximum bytes of a repository path.
const REPOSITORY_BYTES_MAX: usize = 255;
/// Maximum bytes of a tag.
const TAG_BYTES_MAX: usize = 128;

/// The location of an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageName {
    /// In a registry.
    Registry(Reference),
    /// A module on the node's own disk (`file:///…`).
    File(PathBuf),
}

/// A name in a registry, with a tag or a digest (the digest takes precedence).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// Host and port.
    pub registry: String,
    /// The path in it.
    pub repository: String,
    /// `latest` if neither tag nor digest is given.
    pub tag: Option<String>,
    /// `sha256:…`.
    pub digest: Option<String>,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Why a reference is invalid, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Another syntax error.
    #[error("invalid reference format")]
    Format,
    /// Upper case in the path.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// Looks like an image id.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    HexName(String),
    /// Too long.
    #[error("repository name must not be more than 255 characters")]
    TooLong,
    /// An unknown algorithm.
    #[error("unsupported digest algorithm")]
    DigestAlgorithm,
    /// A digest of the wrong length.
    #[error("invalid checksum digest length")]
    DigestLength,
    /// A digest with letters that aren't lower-case hexadecimal.
    #[error("invalid checksum digest format")]
    DigestFormat,
}

impl ImageName {
    /// Parses a container's `image:`.
    pub fn parse(image: &str) -> Result<Self, ReferenceError> {
        if let Some(path) = image.strip_prefix("file://") {
            return if path.starts_with('/') && !path.contains('\0') {
                Ok(Self::File(PathBuf::from(path)))
            } else {
                Err(ReferenceError::Format)
            };
        }
        Reference::parse(image).map(Self::Registry)
    }
}

/// Returns the whole message of reason `InvalidImageName`.
#[must_use]
pub fn invalid_image_name(image: &str, error: &ReferenceError) -> String {
    format!("Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {error}")
}

impl Reference {
    /// Parses a reference; one with neither tag nor digest gets the tag `latest`.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(ReferenceError::HexName(text.to_owned()));
        }
        let (registry, rest) = split_registry(text);
        let remote = rest.split(':').next().unwrap_or_default();
        if remote.chars().any(char::is_uppercase) {
            return Err(ReferenceError::Uppercase(remote.to_owned()));
        }
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
            None => (rest.as_str(), None),
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if !is_registry(&registry) || !is_repository(repository) || !tag.is_none_or(is_tag) {
            return Err(ReferenceError::Format);
        }
        if repository.len() > REPOSITORY_BYTES_MAX {
            return Err(ReferenceError::TooLong);
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { registry, repository: repository.to_owned(), tag, digest })
    }

    /// Returns the manifest's name in requests: the digest if there is one, else the tag.
    #[must_use]
    pub fn manifest(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

/// Splits off the registry: the first part if it can be a host, else the default.
fn split_registry(text: &str) -> (String, String) {
    let (registry, rest) = match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.chars().any(char::is_uppercase) =>
        {
            (if first == "index.docker.io" { DEFAULT_REGISTRY } else { first }, rest)
        }
        _ => (DEFAULT_REGISTRY, text),
    };
    let official = registry == DEFAULT_REGISTRY && !rest.contains('/');
    (registry.to_owned(), if official { format!("library/{rest}") } else { rest.to_owned() })
}

fn is_registry(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(ipv6) => match ipv6.split_once(']') {
            Some((address, rest)) => {
                let address_ok = !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
                return address_ok && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port));
            }
            None => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

/// Returns whether `name` is a repository's path: lower-case parts joined by `.`, `_`, `__` or dashes, separated by
/// slashes.
#[must_use]
pub fn is_repository(name: &str) -> bool {
    name.split('/').all(is_path_component)
}

fn is_path_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
    let bytes = part.as_bytes();
    if !(bytes.first().copied().is_some_and(alphanumeric) && bytes.last().copied().is_some_and(alphanumeric)) {
        return false;
    }
    let mut separator = String::new();
    for &byte in bytes {
        if alphanumeric(byte) {
            let dashes = !separator.is_empty() && separator.bytes().all(|b| b == b'-');
            if !(dashes || matches!(separator.as_str(), "" | "." | "_" | "__")) {
                return false;
            }
            separator.clear();
        } else {
            separator.push(char::from(byte));
        }
    }
    true
}

/// Returns whether `tag` is a valid tag.
#[must_use]
pub fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    bytes.len() <= TAG_BYTES_MAX
        && bytes.first().copied().is_some_and(word)
        && bytes.iter().all(|&b| word(b) || b == b'.' || b == b'-')
}

fn parse_digest(digest: &str) -> Result<String, ReferenceError> {
    let (algorithm, encoded) = digest.split_once(':').ok_or(ReferenceError::Format)?;
    let component = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic()) && part.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let well_formed = algorithm.split(['-', '_', '+', '.']).all(component)
        && encoded.len() >= 32
        && encoded.bytes().all(|b| b.is_ascii_hexdigit());
    if !well_formed {
        return Err(ReferenceError::Format);
    }
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(ReferenceError::DigestAlgorithm),
    };
    if encoded.len() != length {
        return Err(ReferenceError::DigestLength);
    }
    if encoded.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ReferenceError::DigestFormat);
    }
    Ok(digest.to_owned())
}

/// Returns whether `digest` is supported by the blob store (`sha256:` and 64 lower-case digits).
#[must_use]
pub fn is_sha256(digest: &str) -> bool {
    digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Reference {
        Reference::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn names_are_normalized_as_upstream() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, registry, repository, manifest) in [
            ("hello", "docker.io", "library/hello", "latest"),
            ("registry.local/hello:v1", "registry.local", "hello", "v1"),
            ("registry.local/a/b_c/d--e:V.1-x", "registry.local", "a/b_c/d--e", "V.1-x"),
            ("localhost/x", "localhost", "x", "latest"),
            ("user/x:1", "docker.io", "user/x", "1"),
            ("[::1]:5000/x", "[::1]:5000", "x", "latest"),
            ("index.docker.io/x", "docker.io", "library/x", "latest"),
            (&format!("a.b:5000/x:t@{digest}"), "a.b:5000", "x", &digest),
            (&format!("a.b/x@{digest}"), "a.b", "x", &digest),
        ] {
            let reference = parse(text);
            assert_eq!((reference.registry.as_str(), reference.repository.as_str()), (registry, repository), "{text}");
            assert_eq!(reference.manifest(), manifest, "{text}");
        }
    }

    #[test]
    fn bad_names_get_upstreams_messages() {
        let hex = "0".repeat(64);
        for (text, error) in [
            ("Foo", "invalid reference format: repository name (library/Foo) must be lowercase"),
            ("", "invalid reference format"),
            ("a b", "invalid reference format"),
            ("a//b", "invalid reference format"),
            ("x:", "invalid reference format"),
            ("x@sha256:abc", "invalid reference format"),
            ("x:-t", "invalid reference format"),
            ("a.b/x__-y", "invalid reference format"),
            ("registry.local/", "invalid reference format"),
            (hex.as_str(), &format!("invalid repository name ({hex}), cannot specify 64-byte hexadecimal strings")),
            (&format!("x@md5:{}", "a".repeat(32)), "unsupported digest algorithm"),
            (&format!("x@sha256:{}", "a".repeat(63)), "invalid checksum digest length"),
            (&format!("x@sha256:{}", "A".repeat(64)), "invalid checksum digest format"),
            (&format!("a.b/{}", "a".repeat(256)), "repository name must not be more than 255 characters"),
        ] {
            assert_eq!(Reference::parse(text).unwrap_err().to_string(), error, "{text}");
        }
        let error = Reference::parse("Foo").unwrap_err();
        assert_eq!(
            invalid_image_name("Foo", &error),
            "Failed to apply default image tag \"Foo\": couldn't parse image name \"Foo\": \
             invalid reference format: repository name (library/Foo) must be lowercase"
        );
    }

    #[test]
    fn files_are_absolute() {
        assert_eq!(ImageName::parse("file:///a/b.wasm").unwrap(), ImageName::File("/a/b.wasm".into()));
        assert!(ImageName::parse("file://a/b.wasm").is_err());
    }

    proptest! {
        #[test]
        fn parsed_references_round_trip(text in "\\PC{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(&Reference::parse(&reference.to_string()), &Ok(reference));
            }
        }

        #[test]
        fn plausible_names_never_panic(text in "[a-zA-Z0-9./:@_\\-\\[\\]]{0,100}") {
            let _ = ImageName::parse(&text);
        }
    }
}
