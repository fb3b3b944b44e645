//! Whether what was found of an image's signatures meets what is demanded. Pure.

use oci_registry::reference::{ImageName, Reference};

use super::payload::{self, PayloadError};
use super::policy::{Requirement, Rule, Signers};

/// Faults that are told; the rest is counted.
const TOLD_MAX: usize = 3;
/// Characters that are told of a name in a signature.
const NAME_CHARS_MAX: usize = 128;

/// A signature, and what it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) payload: Vec<u8>,
    pub(super) signature: Vec<u8>,
}

/// Why a signature doesn't count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// Nobody has signed it.
    #[error("it has no signature (no {0:?} beside it)")]
    None(String),
    /// It can't be read.
    #[error("{0}")]
    Unread(String),
    /// All that it has is a signature of another form.
    #[error(
        "it has a Sigstore bundle, as cosign writes since version 3, which names no image and is not taken: sign it with \
         `cosign sign --new-bundle-format=false --key`"
    )]
    Bundle,
    /// Of nobody who is named.
    #[error("it is signed by none of the policy's keys")]
    Key,
    /// What is signed is no payload.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// Of another image.
    #[error("its signature is of another image, {0}")]
    Digest(String),
    /// Of the image under another name.
    #[error("its signature is for {name:?}, which signedIdentity {kind} doesn't take")]
    Identity { name: String, kind: &'static str },
}

/// What is still to be met of a rule, and what stood against it.
pub(super) struct Judgement<'a> {
    rule: &'a Rule,
    reference: &'a Reference,
    open: Vec<&'a Signers>,
    faults: Vec<Fault>,
    more: usize,
}

impl<'a> Judgement<'a> {
    pub(super) fn new(rule: &'a Rule, reference: &'a Reference) -> Self {
        let open = rule.requirements.iter().filter_map(|requirement| match requirement {
            Requirement::Signed(signers) => Some(signers),
            Requirement::Nothing | Requirement::Impossible => None,
        });
        Self { rule, reference, open: open.collect(), faults: Vec::new(), more: 0 }
    }

    /// Whether nothing more is wanted.
    pub(super) fn is_met(&self) -> bool {
        self.open.is_empty() && !self.rule.is_impossible()
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        if self.faults.contains(&fault) {
            return;
        }
        if self.faults.len() < TOLD_MAX {
            self.faults.push(fault);
        } else {
            self.more += 1;
        }
    }

    /// Looks at a signature of the manifest with that digest.
    pub(super) fn look(&mut self, digest: &str, found: &Found) {
        let (reference, mut faults) = (self.reference, Vec::new());
        self.open.retain(|signers| match check(signers, reference, digest, found) {
            Ok(()) => false,
            Err(fault) => {
                faults.push(fault);
                true
            }
        });
        faults.into_iter().for_each(|fault| self.fault(fault));
    }

    /// What to say where it isn't met.
    pub(super) fn told(&self, digest: &str) -> String {
        let Reference { registry, repository, .. } = self.reference;
        let (image, scope) = (format!("{registry}/{repository}@{digest}"), &self.rule.scope);
        if let Some(why) = self.rule.refuses(&ImageName::Registry(self.reference.clone())) {
            return why;
        }
        let mut why: Vec<String> = self.faults.iter().map(Fault::to_string).collect();
        if self.more > 0 {
            why.push(format!("{} more", self.more));
        }
        format!(
            "{image}: {}; rule {scope:?} of the node's signature policy wants a signature: `cosign sign --key` it with a key that \
             the rule names, or change the file of --signature-policy",
            why.join("; ")
        )
    }
}

fn check(signers: &Signers, reference: &Reference, digest: &str, found: &Found) -> Result<(), Fault> {
    // Before anything is read of it.
    if !signers.keys.iter().any(|key| key.verifies(&found.payload, &found.signature)) {
        return Err(Fault::Key);
    }
    let payload = payload::parse(&found.payload)?;
    if payload.digest != digest {
        return Err(Fault::Digest(payload.digest));
    }
    if !signers.identity.fits(reference, &payload.reference) {
        let name = payload.reference.chars().take(NAME_CHARS_MAX).collect();
        return Err(Fault::Identity { name, kind: signers.identity.kind() });
    }
    Ok(())
}
