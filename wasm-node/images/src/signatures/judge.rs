//! Decides whether an image's signatures meet a rule. Pure.

use oci_registry::reference::{ImageName, Reference};

use super::payload::{self, PayloadError};
use super::policy::{Requirement, Rule, Signers};

/// Maximum faults listed in an error; the rest is counted.
const FAULTS_MAX: usize = 3;
/// Maximum characters of a signature's name in an error.
const NAME_CHARS_MAX: usize = 128;

/// A signature and the payload that it signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SignedPayload {
    pub(super) payload: Vec<u8>,
    pub(super) signature: Vec<u8>,
}

/// Why a signature doesn't count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// The image has no signature.
    #[error("it has no signature (no {0:?} beside it)")]
    None(String),
    /// The signature can't be read.
    #[error("{0}")]
    Unread(String),
    /// The image only has signatures in another format.
    #[error(
        "it has a Sigstore bundle, as cosign writes since version 3, which names no image and is not taken: sign it with \
         `cosign sign --new-bundle-format=false --key`"
    )]
    Bundle,
    /// No key of the policy has made it.
    #[error("it is signed by none of the policy's keys")]
    Key,
    /// The signed payload is invalid.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The signature is of another image.
    #[error("its signature is of another image, {0}")]
    Digest(String),
    /// The signature is of the image under another name.
    #[error("its signature is for {name:?}, which signedIdentity {kind} doesn't take")]
    Identity { name: String, kind: &'static str },
}

/// The requirements of a rule that are not met yet, with the faults found.
pub(super) struct RuleCheck<'a> {
    rule: &'a Rule,
    reference: &'a Reference,
    open: Vec<&'a Signers>,
    faults: Vec<Fault>,
    more: usize,
}

impl<'a> RuleCheck<'a> {
    pub(super) fn new(rule: &'a Rule, reference: &'a Reference) -> Self {
        let open = rule.requirements.iter().filter_map(|requirement| match requirement {
            Requirement::Signed(signers) => Some(signers),
            Requirement::Nothing | Requirement::Impossible => None,
        });
        Self { rule, reference, open: open.collect(), faults: Vec::new(), more: 0 }
    }

    /// Returns whether all requirements are met.
    pub(super) fn is_met(&self) -> bool {
        self.open.is_empty() && !self.rule.is_impossible()
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        if self.faults.contains(&fault) {
            return;
        }
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(fault);
        } else {
            self.more += 1;
        }
    }

    /// Checks a signature of the manifest with that digest.
    pub(super) fn check_signature(&mut self, digest: &str, found: &SignedPayload) {
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

    /// Returns the error text for a rule that isn't met.
    pub(super) fn failure_text(&self, digest: &str) -> String {
        let Reference { registry, repository, .. } = self.reference;
        let (image, scope) = (format!("{registry}/{repository}@{digest}"), &self.rule.scope);
        if let Some(why) = self.rule.rejection(&ImageName::Registry(self.reference.clone())) {
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

fn check(signers: &Signers, reference: &Reference, digest: &str, found: &SignedPayload) -> Result<(), Fault> {
    // The signature is verified before the payload is parsed.
    if !signers.keys.iter().any(|key| key.verifies(&found.payload, &found.signature)) {
        return Err(Fault::Key);
    }
    let payload = payload::parse(&found.payload)?;
    if payload.digest != digest {
        return Err(Fault::Digest(payload.digest));
    }
    if !signers.identity.matches(reference, &payload.reference) {
        let name = payload.reference.chars().take(NAME_CHARS_MAX).collect();
        return Err(Fault::Identity { name, kind: signers.identity.type_name() });
    }
    Ok(())
}
