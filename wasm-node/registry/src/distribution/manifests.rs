//! Manifests: they refer to blobs and other manifests; digests and tags refer to them.

use std::sync::Arc;

use axum::body::Body;
use futures::StreamExt;
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};

use super::error::RegistryError;
use super::names::Repository;
use super::{ApiResult, Registry, blocking, respond};
use crate::blobs::{BlobStore, digest};
use crate::reference::{is_sha256, is_tag};

/// Maximum bytes of a manifest: the specification requires at least 4 MB.
pub(super) const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// Maximum length of a manifest's media type.
const MEDIA_TYPE_BYTES_MAX: usize = 255;
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Registry {
    pub(super) async fn get_manifest(&self, name: &str, reference: String, head: bool) -> ApiResult {
        let (store, repository) = (self.store.clone(), Repository::new(&self.store, name));
        let (digest, media_type, bytes) = blocking(move || {
            if !repository.exists() {
                return Err(RegistryError::NameUnknown);
            }
            let digest = resolve(&repository, &reference)?;
            let media_type = repository.manifest(&digest)?.ok_or(RegistryError::ManifestUnknown)?;
            Ok((digest.clone(), media_type, store.read(&digest, MANIFEST_BYTES_MAX as u64)?))
        })
        .await?;
        let headers = [
            ("content-type", media_type),
            ("content-length", bytes.len().to_string()),
            ("docker-content-digest", digest),
        ];
        respond(StatusCode::OK, &headers, if head { Body::empty() } else { Body::from(bytes) })
    }

    pub(super) async fn put_manifest(
        &self,
        name: &str,
        reference: String,
        media_type: Option<&str>,
        headers: &HeaderMap,
        body: Body,
    ) -> ApiResult {
        let is_digest = reference.contains(':');
        if is_digest && !is_sha256(&reference) {
            return Err(RegistryError::DigestInvalid(reference.chars().take(150).collect()));
        }
        if !is_digest && !is_tag(&reference) {
            return Err(RegistryError::TagInvalid);
        }
        let bytes = read_manifest(headers, body).await?;
        let manifest: Value =
            serde_json::from_slice(&bytes).map_err(|error| RegistryError::ManifestInvalid(error.to_string()))?;
        let media_type = media_type.map(str::trim).filter(|media_type| !media_type.is_empty());
        let manifest = check_manifest(&manifest, media_type)?;
        let actual = digest(&bytes);
        if is_digest && actual != reference {
            return Err(RegistryError::DigestInvalid(format!("the manifest's is {actual}")));
        }
        let (store, repository) = (self.store.clone(), Repository::new(&self.store, name));
        let (subject, stored, tag) = (manifest.subject.clone(), actual.clone(), reference.clone());
        blocking(move || {
            store_manifest(&store, &repository, &stored, &manifest, &bytes, (!is_digest).then_some(tag.as_str()))
        })
        .await?;
        let mut headers =
            vec![("location", format!("/v2/{name}/manifests/{actual}")), ("docker-content-digest", actual)];
        if let Some(subject) = subject {
            headers.push(("oci-subject", subject));
        }
        respond(StatusCode::CREATED, &headers, Body::empty())
    }

    pub(super) async fn delete_manifest(&self, name: &str, reference: String) -> ApiResult {
        let (store, repository) = (self.store.clone(), Repository::new(&self.store, name));
        let deleted = blocking(move || {
            if !repository.exists() {
                return Err(RegistryError::NameUnknown);
            }
            if !reference.contains(':') {
                return Ok(is_tag(&reference) && repository.delete_tag(&reference)?);
            }
            let digest = resolve(&repository, &reference)?;
            let subject = store
                .read(&digest, MANIFEST_BYTES_MAX as u64)
                .ok()
                .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
                .and_then(|manifest| manifest["subject"]["digest"].as_str().map(str::to_owned))
                .filter(|subject| is_sha256(subject));
            Ok(repository.delete_manifest(&digest, subject.as_deref())?)
        })
        .await?;
        if deleted { respond(StatusCode::ACCEPTED, &[], Body::empty()) } else { Err(RegistryError::ManifestUnknown) }
    }
}

async fn read_manifest(headers: &HeaderMap, body: Body) -> Result<Vec<u8>, RegistryError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    if announced.is_some_and(|bytes: usize| bytes > MANIFEST_BYTES_MAX) {
        return Err(RegistryError::ManifestTooLarge(MANIFEST_BYTES_MAX));
    }
    let mut bytes = Vec::new();
    let mut stream = body.into_data_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| RegistryError::ManifestInvalid(error.to_string()))?;
        if bytes.len() + chunk.len() > MANIFEST_BYTES_MAX {
            return Err(RegistryError::ManifestTooLarge(MANIFEST_BYTES_MAX));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Stores a manifest after checking that all its blobs and manifests exist, then its tag: a tag never refers to an
/// absent manifest.
fn store_manifest(
    store: &Arc<BlobStore>,
    repository: &Repository,
    digest: &str,
    manifest: &Manifest,
    bytes: &[u8],
    tag: Option<&str>,
) -> Result<(), RegistryError> {
    let _linking = store.linking();
    let pins = store.pins();
    for blob in &manifest.blobs {
        if !(repository.has_blob(blob) && store.size(blob).is_some()) {
            return Err(RegistryError::ManifestBlobUnknown(blob.clone()));
        }
    }
    for child in &manifest.manifests {
        if repository.manifest(child)?.is_none() {
            return Err(RegistryError::ManifestBlobUnknown(child.clone()));
        }
    }
    pins.add(digest);
    store.put(bytes)?;
    repository.put_manifest(digest, &manifest.media_type)?;
    if let Some(subject) = &manifest.subject {
        let mut descriptor = json!({"mediaType": manifest.media_type, "digest": digest, "size": bytes.len()});
        if let Some(artifact_type) = &manifest.artifact_type {
            descriptor["artifactType"] = json!(artifact_type);
        }
        if let Some(annotations) = &manifest.annotations {
            descriptor["annotations"] = annotations.clone();
        }
        repository.put_referrer(subject, digest, &descriptor)?;
    }
    if let Some(tag) = tag {
        repository.put_tag(tag, digest)?;
    }
    Ok(())
}

fn resolve(repository: &Repository, reference: &str) -> Result<String, RegistryError> {
    if reference.contains(':') {
        return if is_sha256(reference) {
            Ok(reference.to_owned())
        } else {
            Err(RegistryError::DigestInvalid(reference.chars().take(150).collect()))
        };
    }
    if !is_tag(reference) {
        return Err(RegistryError::ManifestUnknown);
    }
    repository.tag(reference)?.ok_or(RegistryError::ManifestUnknown)
}

/// The parts of a manifest that the registry needs.
struct Manifest {
    media_type: String,
    artifact_type: Option<String>,
    annotations: Option<Value>,
    subject: Option<String>,
    blobs: Vec<String>,
    manifests: Vec<String>,
}

fn check_manifest(manifest: &Value, media_type: Option<&str>) -> Result<Manifest, RegistryError> {
    let bad = |why: &str| RegistryError::ManifestInvalid(why.to_owned());
    let object = manifest.as_object().ok_or_else(|| bad("not an object"))?;
    let own = object.get("mediaType").map(|value| value.as_str().ok_or_else(|| bad("mediaType is no text")));
    let own = own.transpose()?;
    let index = object.contains_key("manifests");
    if !index && !object.contains_key("config") && !object.contains_key("layers") {
        return Err(bad("neither an image nor an index"));
    }
    if let (Some(own), Some(sent)) = (own, media_type)
        && own != sent
    {
        return Err(bad("mediaType and Content-Type differ"));
    }
    let media_type = media_type.or(own).unwrap_or(if index { OCI_INDEX } else { OCI_MANIFEST }).to_owned();
    if media_type.len() > MEDIA_TYPE_BYTES_MAX {
        return Err(bad("the media type is too long"));
    }
    let digest_of = |descriptor: &Value| -> Result<String, RegistryError> {
        let digest = descriptor["digest"].as_str().ok_or_else(|| bad("a descriptor without a digest"))?;
        if is_sha256(digest) { Ok(digest.to_owned()) } else { Err(bad("a digest that is not sha256")) }
    };
    let list = |key: &str| -> Result<Vec<String>, RegistryError> {
        match object.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(items)) => items.iter().map(digest_of).collect(),
            Some(_) => Err(bad("a list of descriptors is no list")),
        }
    };
    let mut blobs = list("layers")?;
    if let Some(config) = object.get("config") {
        blobs.push(digest_of(config)?);
    } else if !index {
        return Err(bad("no config"));
    }
    let subject = object.get("subject").filter(|subject| !subject.is_null()).map(digest_of).transpose()?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let artifact_type = text(object.get("artifactType"))
        .or_else(|| text(object.get("config").and_then(|config| config.get("mediaType"))));
    let annotations = object.get("annotations").filter(|annotations| annotations.is_object()).cloned();
    Ok(Manifest { media_type, artifact_type, annotations, subject, blobs, manifests: list("manifests")? })
}
