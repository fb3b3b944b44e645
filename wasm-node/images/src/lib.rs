//! The image puller of a node: takes a reference, returns a verified module that is ready to run. [`Images`] pulls from
//! any registry (or reads a `file:///` of an allowed folder) into the blob store that the built-in registry serves from.
//! It checks the layout and compiles the module at pull, so that starting a pod never compiles.
//!
//! - [`Images`]: pulls, image volumes, garbage collection, import and export of one node's images.
//! - [`Keyring`], [`CredentialProviders`], [`PodAccount`]: the credentials of a pull.
//! - [`Registries`], [`SignaturePolicy`]: the operator's files.
//! - [`push()`], [`download`], [`ImageClient`], [`ImportInspector`]: images without a pod, for verbs and admission.
//!
//! Absent on purpose: Kubernetes objects, their client and the life of pods. The caller reads Secrets and
//! ServiceAccounts, and records events.
#![warn(missing_docs)]

mod access;
mod account;
mod archive;
mod challenge;
mod collect;
mod compiling;
mod error;
mod fetch;
mod file;
#[cfg(test)]
mod fuzz;
mod histogram;
mod image_config;
mod import_inspector;
mod index;
mod keyring;
mod layers;
mod manage;
mod manifest;
mod options;
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
pub use compiling::{CompileProgress, report_compilation};
pub use error::ImageError;
pub use file::FileError;
pub use histogram::Histogram;
pub use import_inspector::ImportInspector;
pub use index::{Image, Purpose};
pub use keyring::{
    ConfigForm, Credential, Keyring, KeyringError, PULL_SECRET_TYPES, SecretIdentity, TrackedCredential,
};
pub use manage::{ImageClient, ImageClientError, ImageKind, ListedImage, Removed, router};
pub use manifest::{Compression, Refusal};
pub use options::{ImageOptions, ImageOptionsError, ImageSettings, read_registries, read_signature_policy};
pub use providers::{CredentialProviders, CredentialProvidersError, ProviderMetrics};
pub use pull::{Images, ImagesConfig, PullPolicy, Pulled, RegistryAccess};
pub use push::{Blob, PushClient, PushError, Pushed, delete_pushed, push};
pub use registries::Registries;
pub use signatures::SignaturePolicy;
pub use source::{Downloaded, download};
pub use sweep::Collected;
pub use volume_manifest::{Content, VolumeLayer};
