//! Images: reference -> verified blobs -> a module ready to run. [`Images`] pulls from any registry (or reads a
//! `file:///` of an allowed folder) into the blob store that the built-in registry serves from. It checks the layout
//! and compiles the module at pull, so that starting a pod never compiles.

mod access;
mod account;
mod address;
mod archive;
mod challenge;
mod collect;
pub(crate) mod compiling;
mod describe;
mod error;
mod fetch;
mod file;
#[cfg(test)]
mod fuzz;
pub(crate) mod histogram;
mod image_config;
mod index;
mod keyring;
mod layers;
mod manage;
pub mod manifest;
mod providers;
mod pull;
mod pull_limiter;
mod push;
mod registries;
mod remote;
mod session;
mod signatures;
mod source;
mod spin;
mod sweep;
mod tar_layer;
#[cfg(test)]
mod tests;
mod toolbox;
mod unpack;
mod volume;
mod volume_manifest;

pub use account::{Account, AccountIdentity, PodAccount};
pub use collect::{CollectPolicy, Disk};
pub use describe::ImportInspector;
pub use error::ImageError;
pub use file::FileError;
pub use index::{Image, Purpose};
pub(crate) use keyring::PULL_SECRET_TYPES;
pub use keyring::{ConfigForm, Credential, Keyring, KeyringError, SecretIdentity, TrackedCredential};
pub use manage::{ImageClient, ImageKind, ListedImage, ManageError, Removed, router};
pub use manifest::Compression;
pub(crate) use providers::ProviderMetrics;
pub use providers::{CredentialProviders, CredentialProvidersError};
pub use pull::{Images, ImagesConfig, PullPolicy, Pulled, RegistryAccess};
pub use pull_limiter::PARALLEL_PULLS_DEFAULT;
pub use push::{Blob, Inspect, PushClient, PushError, Pushed, delete_pushed, push};
pub use registries::Registries;
pub use signatures::SignaturePolicy;
pub use source::{Downloaded, download};
pub use sweep::Collected;
pub use volume_manifest::{Content, VolumeLayer};
