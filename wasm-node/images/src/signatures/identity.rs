//! Matches the image name in a signature with the image's name: `signedIdentity` of containers-policy.json(5). Pure.

use oci_registry::reference::Reference;
use serde::Deserialize;

/// The names that match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identity {
    /// The same name, and the same tag or digest.
    Exact,
    /// Like `Exact`; for an image by digest, any version of its repository.
    RepoDigestOrExact,
    /// Any version of its repository.
    Repository,
    /// This name, independent of the image's.
    ExactReference(Signed),
    /// Any version of this repository.
    ExactRepository(String),
    /// Like [`Identity::RepoDigestOrExact`], after a prefix of the image's name is replaced.
    Remap { prefix: String, signed_prefix: String },
}

/// `signedIdentity` in the policy file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Wire {
    #[serde(rename = "type")]
    kind: Option<String>,
    docker_reference: Option<String>,
    docker_repository: Option<String>,
    prefix: Option<String>,
    signed_prefix: Option<String>,
}

/// A name in a signature: unlike an image's, it may have neither tag nor digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signed {
    name: String,
    /// `:TAG` or `@DIGEST`.
    version: String,
}

impl Signed {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let reference = Reference::parse(text).ok()?;
        let name = name(&reference);
        let last = text.rsplit('/').next().unwrap_or_default();
        let version = if last.contains([':', '@']) { version(&reference) } else { String::new() };
        Some(Self { name, version })
    }
}

fn name(reference: &Reference) -> String {
    format!("{}/{}", reference.registry, reference.repository)
}

fn version(reference: &Reference) -> String {
    let tag = reference.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
    let digest = reference.digest.as_ref().map(|digest| format!("@{digest}")).unwrap_or_default();
    tag + &digest
}

impl Identity {
    /// Converts `signedIdentity`; upstream's default if it is absent.
    pub(super) fn of(wire: Option<Wire>) -> Result<Self, String> {
        let Some(wire) = wire else { return Ok(Self::RepoDigestOrExact) };
        let Wire { kind, docker_reference, docker_repository, prefix, signed_prefix } = wire;
        let kind = kind.unwrap_or_default();
        let bad = |field: &str, text: &str| format!("signedIdentity.{field}: {text:?} is no name of an image");
        let signed = |field: &str, text: String| Signed::parse(&text).ok_or_else(|| bad(field, &text));
        match (kind.as_str(), docker_reference, docker_repository, prefix, signed_prefix) {
            ("matchExact", None, None, None, None) => Ok(Self::Exact),
            ("matchRepoDigestOrExact", None, None, None, None) => Ok(Self::RepoDigestOrExact),
            ("matchRepository", None, None, None, None) => Ok(Self::Repository),
            ("exactReference", Some(text), None, None, None) => {
                let found = signed("dockerReference", text.clone())?;
                if found.version.is_empty() {
                    return Err(format!("signedIdentity.dockerReference: {text:?} has neither tag nor digest"));
                }
                Ok(Self::ExactReference(found))
            }
            ("exactRepository", None, Some(text), None, None) => {
                let found = signed("dockerRepository", text.clone())?;
                if !found.version.is_empty() {
                    return Err(format!("signedIdentity.dockerRepository: {text:?} has a tag or digest"));
                }
                Ok(Self::ExactRepository(found.name))
            }
            ("remapIdentity", None, None, Some(prefix), Some(signed_prefix)) => {
                let empty = [&prefix, &signed_prefix].iter().any(|text| text.is_empty() || text.ends_with('/'));
                if empty {
                    return Err("signedIdentity: prefix and signedPrefix are HOST or HOST/PATH".into());
                }
                Ok(Self::Remap { prefix, signed_prefix })
            }
            (
                "matchExact"
                | "matchRepoDigestOrExact"
                | "matchRepository"
                | "exactReference"
                | "exactRepository"
                | "remapIdentity",
                ..,
            ) => Err(format!("signedIdentity: type {kind:?} has other fields (containers-policy.json(5))")),
            _ => Err(format!("signedIdentity.type: unknown type {kind:?}")),
        }
    }

    /// Returns whether a signature with the name `signed` is for `wanted`.
    pub(super) fn matches(&self, wanted: &Reference, signed: &str) -> bool {
        let Some(signed) = Signed::parse(signed) else { return false };
        let own = name(wanted);
        match self {
            Self::Exact => signed.name == own && signed.version == version(wanted),
            Self::RepoDigestOrExact => matches_version(&own, wanted, &signed),
            Self::Repository => signed.name == own,
            Self::ExactReference(exact) => signed == *exact,
            Self::ExactRepository(repository) => signed.name == *repository,
            Self::Remap { prefix, signed_prefix } => {
                let rest = own.strip_prefix(prefix.as_str());
                let name = match rest.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                    Some(rest) => format!("{signed_prefix}{rest}"),
                    None => own,
                };
                matches_version(&name, wanted, &signed)
            }
        }
    }

    /// Returns the type's name for errors.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Exact => "matchExact",
            Self::RepoDigestOrExact => "matchRepoDigestOrExact",
            Self::Repository => "matchRepository",
            Self::ExactReference(_) => "exactReference",
            Self::ExactRepository(_) => "exactRepository",
            Self::Remap { .. } => "remapIdentity",
        }
    }
}

/// A signed name without a version matches no image. An image by digest is identified without its tag.
fn matches_version(name: &str, wanted: &Reference, signed: &Signed) -> bool {
    let same = wanted.digest.is_some() || signed.version == version(wanted);
    signed.name == name && !signed.version.is_empty() && same
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(text: &str) -> Result<Identity, String> {
        Identity::of(Some(serde_json::from_str(text).map_err(|error| error.to_string())?))
    }

    #[test]
    fn names_fit_as_containers_has_it() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let by_digest = &format!("a.io/x@{digest}")[..];
        for (kind, wanted, signed, fits) in [
            ("matchExact", "a.io/x:v1", "a.io/x:v1", true),
            ("matchExact", "a.io/x:v1", "a.io/x", false),
            ("matchExact", by_digest, "a.io/x:v1", false),
            ("matchExact", by_digest, by_digest, true),
            ("matchRepoDigestOrExact", "a.io/x:v1", "a.io/x:v1", true),
            ("matchRepoDigestOrExact", "a.io/x:v1", "a.io/x:v2", false),
            ("matchRepoDigestOrExact", "a.io/x:v1", "a.io/x", false),
            ("matchRepoDigestOrExact", by_digest, "a.io/x:v2", true),
            ("matchRepoDigestOrExact", by_digest, "a.io/x", false),
            ("matchRepoDigestOrExact", by_digest, "a.io/y:v2", false),
            ("matchRepository", "a.io/x:v1", "a.io/x", true),
            ("matchRepository", "x:v1", "docker.io/library/x", true),
            ("matchRepository", "a.io:5000/x", "a.io:5000/x", true),
            ("matchRepository", "a.io/x:v1", "a.io/x/y", false),
            ("matchRepository", "a.io/x:v1", "not a name", false),
            ("matchRepository", "a.io/x:v1", "", false),
        ] {
            let own = identity(&format!(r#"{{"type": "{kind}"}}"#)).unwrap();
            assert_eq!(own.matches(&Reference::parse(wanted).unwrap(), signed), fits, "{kind} {wanted} {signed}");
            assert_eq!(own.type_name(), kind);
        }
        let wanted = Reference::parse("mirror.io/hub/x:v1").unwrap();
        for (text, signed, fits) in [
            (r#"{"type": "exactReference", "dockerReference": "a.io/x:v1"}"#, "a.io/x:v1", true),
            (r#"{"type": "exactReference", "dockerReference": "a.io/x:v1"}"#, "a.io/x:v2", false),
            (r#"{"type": "exactRepository", "dockerRepository": "a.io/x"}"#, "a.io/x:v2", true),
            (r#"{"type": "exactRepository", "dockerRepository": "a.io/x"}"#, "mirror.io/hub/x:v1", false),
            (r#"{"type": "remapIdentity", "prefix": "mirror.io/hub", "signedPrefix": "b.io"}"#, "b.io/x:v1", true),
            (r#"{"type": "remapIdentity", "prefix": "mirror.io/hub", "signedPrefix": "b.io"}"#, "b.io/x", false),
            (
                r#"{"type": "remapIdentity", "prefix": "mirror.io/h", "signedPrefix": "b.io"}"#,
                "mirror.io/hub/x:v1",
                true,
            ),
        ] {
            assert_eq!(identity(text).unwrap().matches(&wanted, signed), fits, "{text} {signed}");
        }
    }

    #[test]
    fn errors_name_the_field() {
        for (text, says) in [
            ("{}", "unknown type \"\""),
            (r#"{"type": "matchAll"}"#, "unknown type \"matchAll\""),
            (r#"{"type": "matchExact", "prefix": "x"}"#, "other fields"),
            (r#"{"type": "exactReference"}"#, "other fields"),
            (r#"{"type": "exactReference", "dockerReference": "a.io/x"}"#, "neither tag nor digest"),
            (r#"{"type": "exactRepository", "dockerRepository": "a.io/x:v1"}"#, "has a tag"),
            (r#"{"type": "exactRepository", "dockerRepository": "A B"}"#, "no name"),
            (r#"{"type": "remapIdentity", "prefix": "", "signedPrefix": "a"}"#, "HOST"),
            (r#"{"type": "matchExact", "more": 1}"#, "more"),
        ] {
            let error = identity(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
