//! The options of images: pulls, registries, signatures, credential providers, and garbage collection.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use machinery_options::OptionError;

use crate::pull_limiter::PARALLEL_PULLS_DEFAULT;
use crate::{CollectPolicy, CredentialProviders, CredentialProvidersError, FileError, Registries, SignaturePolicy};

/// Options of a node's images.
#[derive(Debug, Clone, Args)]
pub struct ImageOptions {
    /// Folder of allowed file:///… images; can be given several times
    #[arg(long, env = "CORACLE_ALLOW_FILE_IMAGES", value_name = "DIR", value_delimiter = ',')]
    pub allow_file_images: Vec<PathBuf>,
    #[command(flatten)]
    collection: CollectOptions,
    #[command(flatten)]
    sources: SourceOptions,
}

/// Options of image garbage collection.
#[derive(Debug, Clone, Args)]
struct CollectOptions {
    /// Disk usage in percent from which on unused images are removed; 100 = never
    #[arg(long, env = "CORACLE_IMAGE_GC_HIGH_THRESHOLD", default_value_t = CollectPolicy::DEFAULT.high_percent, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    image_gc_high_threshold: u8,
    /// Disk usage in percent down to which unused images are removed
    #[arg(long, env = "CORACLE_IMAGE_GC_LOW_THRESHOLD", default_value_t = CollectPolicy::DEFAULT.low_percent, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=99))]
    image_gc_low_threshold: u8,
    /// Seconds for which a new image is never removed
    #[arg(long, env = "CORACLE_MINIMUM_IMAGE_TTL_DURATION", default_value_t = CollectPolicy::DEFAULT.age_min.as_secs() as u32, value_name = "SECONDS")]
    minimum_image_ttl_duration: u32,
    /// Seconds after which an unused image is removed at any disk usage; 0 = never
    #[arg(long, env = "CORACLE_IMAGE_MAXIMUM_GC_AGE", default_value_t = 0, value_name = "SECONDS")]
    image_maximum_gc_age: u32,
}

impl Default for CollectOptions {
    fn default() -> Self {
        machinery_options::defaults()
    }
}

impl CollectOptions {
    /// The policy.
    ///
    /// # Errors
    /// If the thresholds contradict each other.
    fn policy(&self) -> Result<CollectPolicy, OptionError> {
        let (high, low) = (self.image_gc_high_threshold, self.image_gc_low_threshold);
        if low >= high {
            return Err(OptionError::new(format!(
                "--image-gc-low-threshold {low}: must be below --image-gc-high-threshold {high}"
            )));
        }
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        Ok(CollectPolicy {
            age_min: seconds(self.minimum_image_ttl_duration),
            age_max: Some(seconds(self.image_maximum_gc_age)).filter(|age| !age.is_zero()),
            high_percent: high,
            low_percent: low,
        })
    }
}

/// Options of where images come from.
#[derive(Debug, Clone, Args)]
struct SourceOptions {
    /// Registry configuration: mirrors, private CAs, plain HTTP, the node's accounts (docs/registries.md,
    /// "Registries")
    #[arg(long, env = "CORACLE_REGISTRIES", value_name = "FILE")]
    registries: Option<PathBuf>,
    /// Signature policy in the format of containers-policy.json(5): images that must be signed, and their keys
    /// (docs/registries.md, "Signatures")
    #[arg(long, env = "CORACLE_SIGNATURE_POLICY", value_name = "FILE")]
    signature_policy: Option<PathBuf>,
    /// CredentialProviderConfig, a file or a folder of them: programs that provide credentials for images
    /// (docs/registries.md, "Credential providers")
    #[arg(
        long,
        env = "CORACLE_IMAGE_CREDENTIAL_PROVIDER_CONFIG",
        value_name = "FILE",
        requires = "image_credential_provider_bin_dir"
    )]
    image_credential_provider_config: Option<PathBuf>,
    /// Folder of the programs in the CredentialProviderConfig
    #[arg(
        long,
        env = "CORACLE_IMAGE_CREDENTIAL_PROVIDER_BIN_DIR",
        value_name = "DIR",
        requires = "image_credential_provider_config"
    )]
    image_credential_provider_bin_dir: Option<PathBuf>,
    /// Maximum parallel image pulls; one namespace may use all but one
    #[arg(long, env = "CORACLE_MAX_PARALLEL_IMAGE_PULLS", default_value_t = PARALLEL_PULLS_DEFAULT as u32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    max_parallel_image_pulls: u32,
}

/// Why the options of images can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageOptionsError {
    /// Options contradict each other.
    #[error("{0}")]
    Options(#[source] OptionError),
    /// A file can't be used.
    #[error("--{flag}: {why}")]
    File {
        /// The flag that names it.
        flag: &'static str,
        /// What is wrong.
        why: FileError,
    },
    /// The credential providers can't be used.
    #[error("--image-credential-provider-config: {0}")]
    Providers(CredentialProvidersError),
}

/// The options of images, with the content of their files.
#[derive(Debug, Clone)]
pub struct ImageSettings {
    /// Folders of allowed `file:///…` images.
    pub file_dirs: Vec<PathBuf>,
    /// Policy of garbage collection.
    pub collection: CollectPolicy,
    /// Access to registries.
    pub registries: Registries,
    /// The file that it is reloaded from.
    pub registries_file: Option<PathBuf>,
    /// The images that must be signed.
    pub signature_policy: SignaturePolicy,
    /// The file that they are reloaded from.
    pub signature_policy_file: Option<PathBuf>,
    /// The providers of the node's credentials.
    pub credential_providers: CredentialProviders,
    /// Maximum concurrent pulls.
    pub parallel_pulls: usize,
}

impl Default for ImageSettings {
    fn default() -> Self {
        Self {
            file_dirs: Vec::new(),
            collection: CollectPolicy::default(),
            registries: Registries::default(),
            registries_file: None,
            signature_policy: SignaturePolicy::default(),
            signature_policy_file: None,
            credential_providers: CredentialProviders::default(),
            parallel_pulls: PARALLEL_PULLS_DEFAULT,
        }
    }
}

impl Default for ImageOptions {
    fn default() -> Self {
        machinery_options::defaults()
    }
}

impl ImageOptions {
    /// Reads the files.
    ///
    /// # Errors
    /// If options contradict each other, or a file can't be read or is invalid.
    pub fn settings(&self) -> Result<ImageSettings, ImageOptionsError> {
        let SourceOptions {
            registries,
            signature_policy,
            image_credential_provider_config,
            image_credential_provider_bin_dir,
            max_parallel_image_pulls,
        } = &self.sources;
        let providers = match (image_credential_provider_config, image_credential_provider_bin_dir) {
            (Some(config), Some(programs)) => {
                CredentialProviders::read(config, programs).map_err(ImageOptionsError::Providers)?
            }
            _ => CredentialProviders::default(),
        };
        Ok(ImageSettings {
            file_dirs: self.allow_file_images.clone(),
            collection: self.collection.policy().map_err(ImageOptionsError::Options)?,
            registries: read_registries(registries.as_deref())?,
            registries_file: registries.clone(),
            signature_policy: read_signature_policy(signature_policy.as_deref())?,
            signature_policy_file: signature_policy.clone(),
            credential_providers: providers,
            parallel_pulls: *max_parallel_image_pulls as usize,
        })
    }
}

/// Reads the file of `--registries`.
///
/// # Errors
/// If it can't be read or is invalid.
pub fn read_registries(file: Option<&Path>) -> Result<Registries, ImageOptionsError> {
    let of = |why| ImageOptionsError::File { flag: "registries", why };
    file.map_or_else(|| Ok(Registries::default()), |path| Registries::read(path).map_err(of))
}

/// Reads the file of `--signature-policy`.
///
/// # Errors
/// If it can't be read or is invalid.
pub fn read_signature_policy(file: Option<&Path>) -> Result<SignaturePolicy, ImageOptionsError> {
    let of = |why| ImageOptionsError::File { flag: "signature-policy", why };
    file.map_or_else(|| Ok(SignaturePolicy::default()), |path| SignaturePolicy::read(path).map_err(of))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_upstreams() {
        let policy = CollectOptions::default().policy().unwrap();
        assert_eq!((policy.high_percent, policy.low_percent, policy.age_max), (85, 80, None));
        assert_eq!(policy, CollectPolicy::default());
    }
}
