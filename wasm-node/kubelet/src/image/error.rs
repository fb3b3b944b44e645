//! Why there is no image, in upstream's reasons and words.

use super::keyring::KeyringError;
use super::manifest::Refusal;
use oci_registry::blobs::BlobError;
use oci_registry::reference::{BUILT_IN_REGISTRY, ReferenceError, invalid_image_name};
use runtime_api::LoadError;

/// Why there is no image. [`ImageError::reason`] is the waiting reason.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name can't be parsed.
    #[error("{}", invalid_image_name(.image, .error))]
    InvalidName {
        /// As in the spec.
        image: String,
        /// What is wrong.
        error: ReferenceError,
    },
    /// Policy `Never`, and it isn't there.
    #[error("Container image {image:?} is not present with pull policy of Never")]
    NeverPull {
        /// As in the spec.
        image: String,
    },
    /// The node was started without the cluster's registry.
    #[error("{BUILT_IN_REGISTRY} is not reached from this node")]
    NoBuiltIn,
    /// A pull secret that is no docker config. Says nothing of what it holds.
    #[error("unable to use image pull secret {secret:?}: {error}")]
    Secret {
        /// Its name.
        secret: String,
        /// What is wrong.
        error: KeyringError,
    },
    /// A file outside what is allowed.
    #[error("{path} is not under a folder given by --allow-file-images")]
    FileNotAllowed {
        /// The path.
        path: String,
    },
    /// The registry doesn't know it.
    #[error("{image}: not found")]
    NotFound {
        /// Normalized name.
        image: String,
    },
    /// It is something else than a module.
    #[error("{image}: {refusal}")]
    Refused {
        /// Normalized name.
        image: String,
        /// What was found instead.
        refusal: Refusal,
    },
    /// The registry can't be reached, in upstream's words.
    #[error("image pull failed for {image} because the registry is unavailable: {registry}: {why}")]
    Unavailable {
        /// As in the spec.
        image: String,
        /// Its name.
        registry: String,
        /// What happened.
        why: String,
    },
    /// The registry refuses, or breaks its protocol.
    #[error("failed to pull {image} from {registry}: {why}")]
    Transfer {
        /// Normalized name.
        image: String,
        /// Its name.
        registry: String,
        /// What happened.
        why: String,
    },
    /// One error for each credential that was tried.
    #[error("[{}]", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Several(Vec<ImageError>),
    /// The node's signature policy doesn't take it, in upstream's words.
    #[error("image pull failed for {image} because the signature validation failed: {why}")]
    Signature {
        /// As in the spec.
        image: String,
        /// What is missing, and what to do.
        why: String,
    },
    /// It could not be kept.
    #[error("keeping {image}: {source}")]
    Blob {
        /// Normalized name.
        image: String,
        /// What happened.
        source: BlobError,
    },
    /// The module doesn't compile, or wants what isn't offered.
    #[error("{image}: {source}")]
    Module {
        /// Normalized name.
        image: String,
        /// What is wrong with it.
        source: LoadError,
    },
}

impl ImageError {
    /// The waiting reason of a container whose image this is.
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

    /// With what mirrors said that were asked before the registry: who set them up looks for that.
    pub(super) fn beside(&mut self, mirrors: &[String]) {
        if let Self::Unavailable { why, .. } | Self::Transfer { why, .. } = self
            && !mirrors.is_empty()
        {
            *why = format!("{why} (its mirrors before: {})", mirrors.join(", "));
        }
    }
}
