//! Image signatures, checked by the node's policy: [`policy`] lists the images that need one; [`key`], [`payload`] and
//! [`identity`] check a signature; [`fetch`] downloads signatures from the image's registry
//! (docs/decisions/0070-signatures.md).

mod fetch;
#[cfg(test)]
mod fuzz;
mod identity;
mod judge;
mod key;
mod payload;
mod policy;
#[cfg(test)]
mod tests;

pub(super) use self::fetch::{SignatureError, verify};
pub(super) use self::policy::Rule;
pub use self::policy::SignaturePolicy;
