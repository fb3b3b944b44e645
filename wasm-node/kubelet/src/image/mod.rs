//! Images: reference -> verified blobs -> a module ready to run. [`Images`] pulls from the built-in registry (or a
//! `file:///` folder that was allowed) into the blob store that the registry itself serves from, checks the layout, and
//! has the engine compile the module at pull, so that starting a pod never compiles.

mod collect;
mod layers;
pub mod manifest;
mod pull;
mod push;
mod sweep;
#[cfg(test)]
mod tests;

pub use collect::{CollectPolicy, Disk};
pub use pull::{Image, ImageError, Images, PullPolicy, RegistryAccess};
pub use push::{PushError, Pushed, push};
pub use sweep::Collected;

/// A client for the built-in registry.
fn client(access: &RegistryAccess) -> oci_client::Client {
    // reqwest takes its TLS from the process; a second call finds the first one's provider, which is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    oci_client::Client::new(pull::client_config(access))
}
