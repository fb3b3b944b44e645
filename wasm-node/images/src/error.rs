//! Errors of image pulls, with upstream's reasons and texts.

use super::keyring::KeyringError;
use super::manifest::Refusal;
use oci_registry::blobs::BlobError;
use oci_registry::reference::{BUILT_IN_REGISTRY, ReferenceError, invalid_image_name};
use runtime_api::LoadError;

/// Images of Linux tools that charts' tests and people run: the node's toolbox has most of their tools.
const TOOL_IMAGES: [&str; 10] =
    ["alpine", "busybox", "curl", "curl-container", "curlimages", "debian", "netshoot", "nicolaka", "ubuntu", "wget"];

/// The advice for an image of Linux tools; empty for others.
fn replacement(image: &str, refusal: &Refusal) -> &'static str {
    let repository = image.split('@').next().unwrap_or(image);
    let (_, path) = repository.split_once('/').unwrap_or(("", repository));
    let name = |part: &str| TOOL_IMAGES.contains(&part.split(':').next().unwrap_or(part));
    if matches!(refusal, Refusal::Platform { .. }) && path.split('/').any(name) {
        "; for a test with sh, wget or nc use the toolbox instead (docs/registries.md, \"Images of Linux tools\")"
    } else {
        ""
    }
}

/// Why an image can't be used. [`ImageError::reason`] is the waiting reason.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name can't be parsed.
    #[error("{}", invalid_image_name(.image, .error))]
    InvalidName {
        /// The name in the pod's spec.
        image: String,
        /// The parse error.
        error: ReferenceError,
    },
    /// The pull policy is `Never`, and the image is absent.
    #[error("Container image {image:?} is not present with pull policy of Never")]
    NeverPull {
        /// The name in the pod's spec.
        image: String,
    },
    /// The node was started without the cluster's registry.
    #[error("{BUILT_IN_REGISTRY} is not reached from this node")]
    NoBuiltIn,
    /// A pull secret that is no docker config. The error contains nothing of its content.
    #[error("unable to use image pull secret {secret:?}: {error}")]
    Secret {
        /// The secret's name.
        secret: String,
        /// The parse error.
        error: KeyringError,
    },
    /// A file outside the allowed folders.
    #[error("{path} is not under a folder given by --allow-file-images")]
    FileNotAllowed {
        /// The path.
        path: String,
    },
    /// The registry has no such image.
    #[error("{image}: not found")]
    NotFound {
        /// Normalized name.
        image: String,
    },
    /// The image is not a module.
    #[error("{image}: {refusal}{}", replacement(.image, .refusal))]
    Refused {
        /// Normalized name.
        image: String,
        /// What was found instead.
        refusal: Refusal,
    },
    /// The registry is unreachable, in upstream's words.
    #[error("image pull failed for {image} because the registry is unavailable: {registry}: {why}")]
    Unavailable {
        /// The name in the pod's spec.
        image: String,
        /// The registry's name.
        registry: String,
        /// The cause.
        why: String,
    },
    /// The registry rejected the pull, or violated the protocol.
    #[error("failed to pull {image} from {registry}: {why}")]
    Transfer {
        /// Normalized name.
        image: String,
        /// The registry's name.
        registry: String,
        /// The cause.
        why: String,
    },
    /// One error for each credential that was tried.
    #[error("[{}]", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Several(Vec<ImageError>),
    /// The node's signature policy rejected the image, in upstream's words.
    #[error("image pull failed for {image} because the signature validation failed: {why}")]
    Signature {
        /// The name in the pod's spec.
        image: String,
        /// What is missing, and what to do.
        why: String,
    },
    /// The image could not be stored.
    #[error("keeping {image}: {source}")]
    Blob {
        /// Normalized name.
        image: String,
        /// The cause.
        source: BlobError,
    },
    /// The module doesn't compile, or has imports that aren't offered.
    #[error("{image}: {source}")]
    Module {
        /// Normalized name.
        image: String,
        /// The cause.
        source: LoadError,
    },
}

impl ImageError {
    /// Returns the waiting reason of a container that uses this image.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidName { .. } => "InvalidImageName",
            Self::NeverPull { .. } => "ErrImageNeverPull",
            Self::Unavailable { .. } => "RegistryUnavailable",
            Self::Signature { .. } => "SignatureValidationFailed",
            _ => "ErrImagePull",
        }
    }

    /// Appends the errors of mirrors that were tried before the registry: they show a wrong mirror configuration.
    pub(super) fn append_mirror_errors(&mut self, mirrors: &[String]) {
        if let Self::Unavailable { why, .. } | Self::Transfer { why, .. } = self
            && !mirrors.is_empty()
        {
            *why = format!("{why} (its mirrors before: {})", mirrors.join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_linux_tools_have_a_replacement() {
        let linux = || Refusal::Platform { found: "linux/amd64".into() };
        let says = |image: &str, refusal: Refusal| {
            ImageError::Refused { image: image.into(), refusal }.to_string().contains("use the toolbox")
        };
        for image in [
            "docker.io/library/busybox:1.36",
            "docker.io/curlimages/curl:8.1",
            "quay.io/team/busybox@sha256:00",
            "registry.example:5000/alpine",
        ] {
            assert!(says(image, linux()), "{image}");
        }
        for image in ["docker.io/library/nginx:1", "busybox.example/nginx", "docker.io/library/busyboxes"] {
            assert!(!says(image, linux()), "{image}");
        }
        assert!(!says("docker.io/library/busybox", Refusal::Malformed("x".into())));
    }
}
