//! Images: reference -> verified blobs -> a module ready to run. [`Images`] pulls from any registry (or takes a
//! `file:///` of a folder that was allowed) into the blob store that the built-in registry itself serves from, checks the
//! layout, and has the engine compile the module at pull, so that starting a pod never compiles.

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
mod keyring;
mod known;
mod layers;
mod manage;
pub mod manifest;
mod providers;
mod pull;
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
mod turns;
mod unpack;
mod volume;
mod volume_manifest;

pub use account::{Account, AccountIdentity, PodAccount};
pub use collect::{CollectPolicy, Disk};
pub use describe::Describer;
pub use error::ImageError;
pub use file::FileError;
pub(crate) use keyring::PULL_SECRET_TYPES;
pub use keyring::{ConfigForm, Credential, Keyring, KeyringError, SecretIdentity, TrackedCredential};
pub use known::{Image, Purpose};
pub use manage::{ImageClient, ImageKind, ListedImage, ManageError, Removed, router};
pub use manifest::Compression;
pub(crate) use providers::ProviderFigures;
pub use providers::{CredentialProviders, CredentialProvidersError};
pub use pull::{Images, ImagesConfig, PullPolicy, Pulled, RegistryAccess};
pub use push::{Blob, Inspect, PushClient, PushError, Pushed, push, take_back};
pub use registries::Registries;
pub use signatures::SignaturePolicy;
pub use source::{Downloaded, download};
pub use sweep::Collected;
pub use turns::PARALLEL_PULLS_DEFAULT;
pub use volume_manifest::{Content, VolumeLayer};
