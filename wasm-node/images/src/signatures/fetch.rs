//! Fetches an image's signatures from the image's registry: the tag `sha256-DIGEST.sig` that cosign writes, or
//! manifests that refer to the image. Bounded in number, bytes and time.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::super::session::{RemoteError, Session};
use super::judge::{Fault, RuleCheck, SignedPayload};
use super::policy::Rule;
use oci_registry::reference::{Reference, is_sha256};

/// The type of a layer with a signature.
const SIGNED: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The type of a signature manifest that refers to the image (cosign's `--registry-referrers-mode=oci-1-1`).
const REFERRER: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// The format of cosign since version 3. It names a digest and no image, so `signedIdentity` can't be checked.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// Maximum signatures of an image that are checked.
const SIGNATURES_MAX: usize = 64;
/// Maximum bytes of a payload: a name, a digest and the signer's additions.
const PAYLOAD_BYTES_MAX: u64 = 64 << 10;
/// Maximum characters of a signature in base64: one of an RSA key of 8192 bits has 1,368.
const SIGNATURE_CHARS_MAX: usize = 4096;
/// Maximum time for all signatures of an image together.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Why an image isn't accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum SignatureError {
    /// The registry is unavailable, so nothing is known about the signatures.
    Unavailable(RemoteError),
    /// The required signatures are missing.
    Refused(String),
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Referrer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    digest: String,
}

impl Referrer {
    fn is(&self, artifact_type: &str) -> bool {
        self.artifact_type.as_deref() == Some(artifact_type)
    }
}

/// Returns the entries of an index; `None` = it is no index.
fn manifests(index: &[u8]) -> Option<Vec<Referrer>> {
    serde_json::from_slice(index).ok().map(|Index { manifests }| manifests)
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Checks whether an image meets a rule. `chain` has the digests from the reference to the manifest that is run. A
/// signature of any of them counts, as each names the next by its digest.
pub(in super::super) async fn verify(
    session: &Session,
    rule: &Rule,
    reference: &Reference,
    chain: &[String],
) -> Result<(), SignatureError> {
    let mut rule_check = RuleCheck::new(rule, reference);
    let mut search = SignatureSearch { session, rule_check: &mut rule_check, left: SIGNATURES_MAX };
    let all = async {
        for digest in chain.iter().filter(|_| !rule.is_impossible()) {
            search.manifest(digest).await?;
            if search.is_finished() {
                break;
            }
        }
        Ok(())
    };
    let looked = session.env().timeout(TIME_MAX, all).await;
    looked.unwrap_or_else(|_| {
        rule_check.fault(Fault::Unread(format!("its signatures take more than {} s", TIME_MAX.as_secs())));
        Ok(())
    })?;
    if rule_check.is_met() {
        return Ok(());
    }
    Err(SignatureError::Refused(rule_check.failure_text(chain.first().map_or("", String::as_str))))
}

/// Checks signatures until the rule is met.
struct SignatureSearch<'a, 'b> {
    session: &'a Session,
    rule_check: &'a mut RuleCheck<'b>,
    /// The remaining number of signatures and signature manifests to check.
    left: usize,
}

impl SignatureSearch<'_, '_> {
    fn is_finished(&self) -> bool {
        self.rule_check.is_met() || self.left == 0
    }

    /// Checks a manifest's signatures: by their tag, then by the registry's list of referrers, in cosign's order.
    async fn manifest(&mut self, digest: &str) -> Result<(), SignatureError> {
        let tag = format!("{}.sig", digest.replace(':', "-"));
        match self.session.manifest(&tag).await {
            Ok((manifest, _)) => self.layers(digest, &tag, &manifest).await?,
            Err(RemoteError::NotFound) => self.rule_check.fault(Fault::None(tag)),
            Err(error) => record_unreadable(self.rule_check, error)?,
        }
        if self.is_finished() {
            return Ok(());
        }
        for name in self.referrers(digest).await? {
            if self.is_finished() {
                return Ok(());
            }
            self.left -= 1;
            match self.session.manifest(&name).await {
                Ok((manifest, _)) => self.layers(digest, &name, &manifest).await?,
                Err(error) => record_unreadable(self.rule_check, error)?,
            }
        }
        Ok(())
    }

    /// Returns the signature manifests that refer to the image.
    async fn referrers(&mut self, digest: &str) -> Result<Vec<String>, SignatureError> {
        let (index, is_listed) = match self.session.referrers(digest, REFERRER).await {
            // A registry without the referrers API has the list under a tag, with all types together.
            Err(RemoteError::NotFound) => {
                (self.session.manifest(&digest.replace(':', "-")).await.map(|(bytes, _)| bytes), false)
            }
            listed => (listed, true),
        };
        let index = match index {
            Ok(index) => index,
            Err(RemoteError::NotFound) => return Ok(Vec::new()),
            Err(error) => return record_unreadable(self.rule_check, error).map(|()| Vec::new()),
        };
        let Some(all) = manifests(&index) else {
            self.rule_check.fault(Fault::Unread("its list of referrers is no index".into()));
            return Ok(Vec::new());
        };
        let is_signature = |manifest: &Referrer| manifest.is(REFERRER) && is_sha256(&manifest.digest);
        let mut is_bundled = all.iter().any(|manifest| manifest.is(BUNDLE));
        let signatures: Vec<String> = all.into_iter().filter(is_signature).map(|manifest| manifest.digest).collect();
        if is_listed && signatures.is_empty() && !is_bundled {
            // Only for a better error, so a failure is ignored.
            let bundles = self.session.referrers(digest, BUNDLE).await.ok().and_then(|index| manifests(&index));
            is_bundled = bundles.is_some_and(|all| all.iter().any(|manifest| manifest.is(BUNDLE)));
        }
        if is_bundled {
            self.rule_check.fault(Fault::Bundle);
        }
        Ok(signatures)
    }

    async fn layers(&mut self, digest: &str, name: &str, manifest: &[u8]) -> Result<(), SignatureError> {
        let Ok(Manifest { layers }) = serde_json::from_slice(manifest) else {
            self.rule_check.fault(Fault::Unread(format!("{name:?} is no manifest of signatures")));
            return Ok(());
        };
        let signed: Vec<Layer> = layers.into_iter().filter(|layer| layer.media_type == SIGNED).collect();
        if signed.is_empty() {
            self.rule_check.fault(Fault::Unread(format!("{name:?} holds no signature")));
        }
        for layer in signed {
            if self.left == 0 {
                self.rule_check.fault(Fault::Unread(format!("it has more than {SIGNATURES_MAX} signatures")));
                return Ok(());
            }
            self.left -= 1;
            match fetch_payload(self.session, &layer).await {
                Ok(found) => self.rule_check.check_signature(digest, &found),
                Err(FetchFailure::Fault(fault)) => self.rule_check.fault(fault),
                Err(FetchFailure::Remote(error)) => record_unreadable(self.rule_check, error)?,
            }
            if self.rule_check.is_met() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// A transient error doesn't decide whether the image is signed.
fn record_unreadable(rule_check: &mut RuleCheck<'_>, error: RemoteError) -> Result<(), SignatureError> {
    if matches!(error, RemoteError::Unavailable(_)) {
        return Err(SignatureError::Unavailable(error));
    }
    rule_check.fault(Fault::Unread(format!("its signatures can't be had: {error}")));
    Ok(())
}

enum FetchFailure {
    Fault(Fault),
    Remote(RemoteError),
}

/// Fetches a signature's payload.
async fn fetch_payload(session: &Session, layer: &Layer) -> Result<SignedPayload, FetchFailure> {
    let unread = |why: &str| FetchFailure::Fault(Fault::Unread(why.to_owned()));
    let text = layer.annotations.get(SIGNATURE).ok_or_else(|| unread("a layer of signatures has no signature"))?;
    if text.len() > SIGNATURE_CHARS_MAX {
        return Err(unread("its signature is too long"));
    }
    let signature = STANDARD.decode(text).map_err(|_| unread("its signature is not base64"))?;
    if !is_sha256(&layer.digest) {
        return Err(unread("its signature's payload has no sha256 digest"));
    }
    if layer.size > PAYLOAD_BYTES_MAX {
        return Err(FetchFailure::Fault(Fault::Unread(format!(
            "its signature's payload has {} bytes, at most {PAYLOAD_BYTES_MAX} are accepted",
            layer.size
        ))));
    }
    let payload = session.small_blob(&layer.digest, PAYLOAD_BYTES_MAX, "its signature's payload").await;
    Ok(SignedPayload { payload: payload.map_err(FetchFailure::Remote)?, signature })
}
