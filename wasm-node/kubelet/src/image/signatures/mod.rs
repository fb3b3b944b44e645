//! Signatures of images, by the node's policy: [`policy`] says which images have to have one, [`key`], [`payload`] and
//! [`identity`] whether one is good, [`fetch`] gets them from where the image is from (docs/decisions/0070-signatures.md).

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

pub(super) use self::fetch::{Unproven, verify};
pub(super) use self::policy::Rule;
pub use self::policy::SignaturePolicy;
