//! An image's signatures, from where the image itself is from: the tag `sha256-DIGEST.sig` that cosign writes beside it, or manifests that
//! refer to it. Bounded in number, bytes and time, whatever the registry sends.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::super::session::{RemoteError, Session};
use super::judge::{Fault, Found, Judgement};
use super::policy::Rule;
use oci_registry::reference::{Reference, is_sha256};

/// What a layer of signatures is.
const SIGNED: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// What a manifest of signatures is that names the image itself (cosign's `--registry-referrers-mode=oci-1-1`).
const REFERRER: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// What cosign writes since version 3. It names a digest and no image, so that no `signedIdentity` can be checked.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// Signatures of an image that are looked at.
const SIGNATURES_MAX: usize = 64;
/// A payload: a name, a digest and what the signer adds.
const PAYLOAD_BYTES_MAX: u64 = 64 << 10;
/// A signature in base64: one of an RSA key of 8192 bits has 1,368 characters.
const SIGNATURE_CHARS_MAX: usize = 4096;
/// For all signatures of an image together.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Why an image isn't taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Unproven {
    /// The registry doesn't answer: that says nothing of signatures.
    Unavailable(RemoteError),
    /// What is demanded isn't there.
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

/// What an index lists; `None`: it is none.
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

/// Whether an image is what a rule demands. `chain` are the digests from what the reference names to the manifest that is run: a
/// signature of any of them holds, as each names the next by its digest.
pub(in super::super) async fn verify(
    session: &Session,
    rule: &Rule,
    reference: &Reference,
    chain: &[String],
) -> Result<(), Unproven> {
    let mut judgement = Judgement::new(rule, reference);
    let mut look = Look { session, judgement: &mut judgement, left: SIGNATURES_MAX };
    let all = async {
        for digest in chain.iter().filter(|_| !rule.is_impossible()) {
            look.manifest(digest).await?;
            if look.is_over() {
                break;
            }
        }
        Ok(())
    };
    let looked = tokio::time::timeout(TIME_MAX, all).await;
    looked.unwrap_or_else(|_| {
        judgement.fault(Fault::Unread(format!("its signatures take more than {} s", TIME_MAX.as_secs())));
        Ok(())
    })?;
    if judgement.is_met() {
        return Ok(());
    }
    Err(Unproven::Refused(judgement.told(chain.first().map_or("", String::as_str))))
}

/// Looks at signatures until nothing more is wanted.
struct Look<'a, 'b> {
    session: &'a Session,
    judgement: &'a mut Judgement<'b>,
    /// Signatures, and manifests of them, that may still be looked at.
    left: usize,
}

impl Look<'_, '_> {
    fn is_over(&self) -> bool {
        self.judgement.is_met() || self.left == 0
    }

    /// Those of a manifest: by their tag, then by the registry's list of referrers, as cosign looks for them.
    async fn manifest(&mut self, digest: &str) -> Result<(), Unproven> {
        let tag = format!("{}.sig", digest.replace(':', "-"));
        match self.session.manifest(&tag).await {
            Ok((manifest, _)) => self.layers(digest, &tag, &manifest).await?,
            Err(RemoteError::NotFound) => self.judgement.fault(Fault::None(tag)),
            Err(error) => unread(self.judgement, error)?,
        }
        if self.is_over() {
            return Ok(());
        }
        for name in self.referrers(digest).await? {
            if self.is_over() {
                return Ok(());
            }
            self.left -= 1;
            match self.session.manifest(&name).await {
                Ok((manifest, _)) => self.layers(digest, &name, &manifest).await?,
                Err(error) => unread(self.judgement, error)?,
            }
        }
        Ok(())
    }

    /// Manifests of signatures that name the image themselves.
    async fn referrers(&mut self, digest: &str) -> Result<Vec<String>, Unproven> {
        let (index, is_listed) = match self.session.referrers(digest, REFERRER).await {
            // A registry that has no such list has it under a tag, of all kinds together.
            Err(RemoteError::NotFound) => {
                (self.session.manifest(&digest.replace(':', "-")).await.map(|(bytes, _)| bytes), false)
            }
            listed => (listed, true),
        };
        let index = match index {
            Ok(index) => index,
            Err(RemoteError::NotFound) => return Ok(Vec::new()),
            Err(error) => return unread(self.judgement, error).map(|()| Vec::new()),
        };
        let Some(all) = manifests(&index) else {
            self.judgement.fault(Fault::Unread("its list of referrers is no index".into()));
            return Ok(Vec::new());
        };
        let is_signature = |manifest: &Referrer| manifest.is(REFERRER) && is_sha256(&manifest.digest);
        let mut is_bundled = all.iter().any(|manifest| manifest.is(BUNDLE));
        let signatures: Vec<String> = all.into_iter().filter(is_signature).map(|manifest| manifest.digest).collect();
        if is_listed && signatures.is_empty() && !is_bundled {
            // Only to say what is wrong: whether it can be had doesn't matter.
            let bundles = self.session.referrers(digest, BUNDLE).await.ok().and_then(|index| manifests(&index));
            is_bundled = bundles.is_some_and(|all| all.iter().any(|manifest| manifest.is(BUNDLE)));
        }
        if is_bundled {
            self.judgement.fault(Fault::Bundle);
        }
        Ok(signatures)
    }

    async fn layers(&mut self, digest: &str, name: &str, manifest: &[u8]) -> Result<(), Unproven> {
        let Ok(Manifest { layers }) = serde_json::from_slice(manifest) else {
            self.judgement.fault(Fault::Unread(format!("{name:?} is no manifest of signatures")));
            return Ok(());
        };
        let signed: Vec<Layer> = layers.into_iter().filter(|layer| layer.media_type == SIGNED).collect();
        if signed.is_empty() {
            self.judgement.fault(Fault::Unread(format!("{name:?} holds no signature")));
        }
        for layer in signed {
            if self.left == 0 {
                self.judgement.fault(Fault::Unread(format!("it has more than {SIGNATURES_MAX} signatures")));
                return Ok(());
            }
            self.left -= 1;
            match found(self.session, &layer).await {
                Ok(found) => self.judgement.look(digest, &found),
                Err(Refused::Fault(fault)) => self.judgement.fault(fault),
                Err(Refused::Remote(error)) => unread(self.judgement, error)?,
            }
            if self.judgement.is_met() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// What another try may mend is no answer to whether it is signed.
fn unread(judgement: &mut Judgement<'_>, error: RemoteError) -> Result<(), Unproven> {
    if matches!(error, RemoteError::Unavailable(_)) {
        return Err(Unproven::Unavailable(error));
    }
    judgement.fault(Fault::Unread(format!("its signatures can't be had: {error}")));
    Ok(())
}

enum Refused {
    Fault(Fault),
    Remote(RemoteError),
}

/// A signature with its payload.
async fn found(session: &Session, layer: &Layer) -> Result<Found, Refused> {
    let unread = |why: &str| Refused::Fault(Fault::Unread(why.to_owned()));
    let text = layer.annotations.get(SIGNATURE).ok_or_else(|| unread("a layer of signatures has no signature"))?;
    if text.len() > SIGNATURE_CHARS_MAX {
        return Err(unread("its signature is too long"));
    }
    let signature = STANDARD.decode(text).map_err(|_| unread("its signature is not base64"))?;
    if !is_sha256(&layer.digest) {
        return Err(unread("its signature's payload has no sha256 digest"));
    }
    if layer.size > PAYLOAD_BYTES_MAX {
        return Err(Refused::Fault(Fault::Unread(format!(
            "its signature's payload has {} bytes, at most {PAYLOAD_BYTES_MAX} are taken",
            layer.size
        ))));
    }
    let payload = session.small_blob(&layer.digest, PAYLOAD_BYTES_MAX, "its signature's payload").await;
    Ok(Found { payload: payload.map_err(Refused::Remote)?, signature })
}
