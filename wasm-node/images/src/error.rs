//! Errors of image pulls, with upstream's reasons and texts.

use super::keyring::KeyringError;
use super::manifest::Refusal;
use oci_registry::blobs::BlobError;
use oci_registry::reference::{BUILT_IN_REGISTRY, ReferenceError, invalid_image_name};
use runtime_api::LoadError;

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
    #[error("{image}: {refusal}")]
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
