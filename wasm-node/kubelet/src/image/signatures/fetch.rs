//! An image's signatures, from where the image itself is from: the tag `sha256-DIGEST.sig` that cosign writes beside it. Bounded in
//! number, bytes and time, whatever the registry sends.

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
    session: &Session<'_>,
    rule: &Rule,
    reference: &Reference,
    chain: &[String],
) -> Result<(), Unproven> {
    let mut judgement = Judgement::new(rule, reference);
    let looked = tokio::time::timeout(TIME_MAX, look(session, rule, &mut judgement, chain)).await;
    looked.unwrap_or_else(|_| {
        judgement.fault(Fault::Unread(format!("its signatures take more than {} s", TIME_MAX.as_secs())));
        Ok(())
    })?;
    if judgement.is_met() {
        return Ok(());
    }
    Err(Unproven::Refused(judgement.told(chain.first().map_or("", String::as_str))))
}

async fn look(
    session: &Session<'_>,
    rule: &Rule,
    judgement: &mut Judgement<'_>,
    chain: &[String],
) -> Result<(), Unproven> {
    if rule.is_impossible() {
        return Ok(());
    }
    let mut left = SIGNATURES_MAX;
    for digest in chain {
        let tag = format!("{}.sig", digest.replace(':', "-"));
        let manifest = match session.manifest(&tag).await {
            Ok((bytes, _)) => bytes,
            Err(RemoteError::NotFound) => {
                judgement.fault(Fault::None(tag));
                continue;
            }
            Err(error) => {
                unread(judgement, error)?;
                continue;
            }
        };
        let Ok(Manifest { layers }) = serde_json::from_slice(&manifest) else {
            judgement.fault(Fault::Unread(format!("{tag:?} is no manifest of signatures")));
            continue;
        };
        let signed: Vec<Layer> = layers.into_iter().filter(|layer| layer.media_type == SIGNED).collect();
        if signed.is_empty() {
            judgement.fault(Fault::Unread(format!("{tag:?} holds no signature")));
        }
        for layer in signed {
            if left == 0 {
                judgement.fault(Fault::Unread(format!("it has more than {SIGNATURES_MAX} signatures")));
                return Ok(());
            }
            left -= 1;
            match found(session, &layer).await {
                Ok(found) => judgement.look(digest, &found),
                Err(Refused::Fault(fault)) => judgement.fault(fault),
                Err(Refused::Remote(error)) => unread(judgement, error)?,
            }
            if judgement.is_met() {
                return Ok(());
            }
        }
    }
    Ok(())
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
async fn found(session: &Session<'_>, layer: &Layer) -> Result<Found, Refused> {
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
