//! A client that pushes to one repository (OCI distribution specification): blobs by mount, in one request or in
//! chunks, and manifests. It uses the session of pulls, with the same rules for addresses, redirects, TLS and tokens. A
//! request is repeated only if a repetition changes nothing: blobs are content-addressed, and a tag is read before it
//! is set again.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, RANGE};
use http::{HeaderMap, Method, StatusCode};
use machinery_env::Env;
use reqwest::{Response, Url};

use super::PushError;
use super::blob::{Blob, Part};
use super::refusal::{Refusal, TransferError};
use crate::keyring::Credential;
use crate::manifest::ACCEPTED;
use crate::pull::RegistryAccess;
use crate::registries::{Endpoint, Registries};
use crate::remote::RegistryClients;
use crate::session::{ERROR_BYTES_MAX, HEAD_TIME_MAX, MANIFEST_BYTES_MAX, RETRY_WAITS, RegistryRequest, Session, body};
use oci_registry::Credentials;
use oci_registry::reference::BUILT_IN_REGISTRY;

const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const CHUNK_BYTES_MIN: HeaderName = HeaderName::from_static("oci-chunk-min-length");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// The limits of an upload.
#[derive(Debug, Clone, Copy)]
pub(super) struct UploadLimits {
    /// Maximum time without progress: registries hash the content before they respond.
    pub(super) timeout: Duration,
    /// The wait before each repetition.
    pub(super) retry_waits: [Duration; 2],
    /// The largest blob sent in one request: the loss if its connection breaks.
    pub(super) whole_bytes_max: u64,
    /// The chunk size of a larger blob. Some registries accept no larger chunks.
    pub(super) chunk_bytes: u64,
}

impl Default for UploadLimits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(60),
            retry_waits: RETRY_WAITS,
            whole_bytes_max: 16 << 20,
            chunk_bytes: 4 << 20,
        }
    }
}

/// The target of an upload's next request.
struct Upload {
    location: Url,
    /// The minimum chunk size that the registry accepts, except for the last chunk.
    chunk_bytes_min: u64,
}

/// The result of a mount request.
enum Mount {
    Mounted,
    /// The registry needs the bytes, and has begun an upload.
    Begun(Upload),
}

/// Pushes to one repository of one registry, as one user.
pub struct PushClient {
    session: Session,
    /// The registry's name in errors.
    authority: String,
    pub(super) bounds: UploadLimits,
}

impl std::fmt::Debug for PushClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PushClient").field("authority", &self.authority).finish_non_exhaustive()
    }
}

type Transfer<T> = Result<T, TransferError>;

impl PushClient {
    /// Creates a client for a repository of the built-in registry. It ignores the environment's proxies, as the
    /// registry is local.
    ///
    /// # Errors
    /// The registry's address is invalid.
    pub fn new(env: &Env, access: &RegistryAccess, repository: &str) -> Result<Self, PushError> {
        let remote = Arc::new(RegistryClients::for_uploads(env, Registries::default(), vec![access.clone()]));
        let endpoint = Endpoint::built_in(access.address.clone(), access.ca_pem.is_some());
        let credential = access.credentials.clone();
        let credential = credential.map(|Credentials { user, password }| Credential { username: user, password });
        Self::at(&remote, &endpoint, (BUILT_IN_REGISTRY, repository), credential)
    }

    /// Creates a client for a repository of any registry. `remote` must be created for uploads.
    pub(super) fn at(
        remote: &Arc<RegistryClients>,
        endpoint: &Endpoint,
        names: (&str, &str),
        credential: Option<Credential>,
    ) -> Result<Self, PushError> {
        let authority = endpoint.authority.clone();
        let session = Session::new(remote, endpoint, names, credential);
        let session = session
            .map_err(|error| PushError::Registry { registry: authority.clone(), why: error.to_string() })?
            .with_push_scope();
        Ok(Self { session, authority, bounds: UploadLimits::default() })
    }

    /// Pushes a blob unless the repository has it. `mount_from` is a repository of the same registry that presumably
    /// has it: the registry may mount the blob from there.
    ///
    /// # Errors
    /// The registry rejects the blob or is unreachable, or the content can't be read.
    pub async fn push_blob(&self, blob: &Blob, mount_from: Option<&str>) -> Result<(), PushError> {
        self.retry(|| self.try_blob(blob, mount_from)).await.map_err(|error| self.push_error(&error))
    }

    /// Pushes a manifest, whose blobs must be present, under a tag or its digest; returns its digest.
    ///
    /// # Errors
    /// The registry rejects the manifest or is unreachable, or the manifest is too large or doesn't match the digest.
    pub async fn push_manifest(
        &self,
        reference: &str,
        media_type: &str,
        manifest: impl Into<bytes::Bytes>,
    ) -> Result<String, PushError> {
        let manifest = Blob::of_bytes(manifest);
        let pushed = self.put_manifest(reference, media_type, &manifest).await;
        pushed.map(|()| manifest.digest().to_owned()).map_err(|error| self.push_error(&error))
    }

    /// Deletes a manifest; an absent one is no error.
    ///
    /// # Errors
    /// The registry rejects the request or is unreachable.
    pub async fn delete_manifest(&self, reference: &str) -> Result<(), PushError> {
        self.retry(|| self.try_delete(reference)).await.map_err(|error| self.push_error(&error))
    }

    fn push_error(&self, error: &TransferError) -> PushError {
        PushError::Registry { registry: self.authority.clone(), why: error.to_string() }
    }

    /// Runs an idempotent operation, and repeats it after transient errors.
    async fn retry<T, F: Future<Output = Transfer<T>>>(&self, attempt: impl Fn() -> F) -> Transfer<T> {
        for wait in self.bounds.retry_waits {
            match attempt().await {
                Err(error) if error.is_transient() => self.session.env().sleep(wait).await,
                done => return done,
            }
        }
        attempt().await
    }

    async fn try_blob(&self, blob: &Blob, mount_from: Option<&str>) -> Transfer<()> {
        if self.has_blob(blob).await? {
            return Ok(());
        }
        let begun = match mount_from {
            None => None,
            Some(from) => match self.mount(blob, from).await {
                Ok(Mount::Mounted) => return Ok(()),
                Ok(Mount::Begun(upload)) => Some(upload),
                Err(error) if error.is_transient() => return Err(error),
                // The registry doesn't support mounts, or the user may not read the other repository.
                Err(_) => None,
            },
        };
        let upload = match begun {
            Some(upload) => upload,
            None => self.begin().await?,
        };
        self.upload(blob, upload).await
    }

    /// Returns whether the repository has the blob. A rejected check doesn't fail the push.
    async fn has_blob(&self, blob: &Blob) -> Transfer<bool> {
        let url = self.session.url("blobs", blob.digest())?;
        let response = self.call(Method::HEAD, url, HeaderMap::new(), None).await?;
        if response.status() == StatusCode::OK {
            return Ok(true);
        }
        let refusal = self.read_refusal(response).await;
        if refusal.is_transient() { Err(refusal) } else { Ok(false) }
    }

    async fn mount(&self, blob: &Blob, from: &str) -> Transfer<Mount> {
        let mut url = self.uploads()?;
        url.query_pairs_mut().append_pair("mount", blob.digest()).append_pair("from", from);
        let response = self.call(Method::POST, url, HeaderMap::new(), None).await?;
        match response.status() {
            StatusCode::CREATED => has_digest(&response, blob.digest()).map(|()| Mount::Mounted),
            StatusCode::ACCEPTED => self.next_upload(&response).map(Mount::Begun),
            _ => Err(self.read_refusal(response).await),
        }
    }

    async fn begin(&self) -> Transfer<Upload> {
        let response = self.call(Method::POST, self.uploads()?, HeaderMap::new(), None).await?;
        match response.status() {
            StatusCode::ACCEPTED => self.next_upload(&response),
            _ => Err(self.read_refusal(response).await),
        }
    }

    fn uploads(&self) -> Transfer<Url> {
        Ok(self.session.url("blobs/uploads", "")?)
    }

    /// Sends a blob, and falls back to the other kind of upload if the registry supports only that.
    async fn upload(&self, blob: &Blob, upload: Upload) -> Transfer<()> {
        let is_whole = blob.size_bytes() <= self.bounds.whole_bytes_max;
        let sent = if is_whole {
            self.finish(upload.location, blob, blob.whole()).await
        } else {
            self.chunks(blob, upload).await
        };
        match sent {
            Err(error) if error.refusal().is_some_and(Refusal::is_format_rejected) => {
                let upload = self.begin().await?;
                if is_whole {
                    self.chunks(blob, upload).await
                } else {
                    self.finish(upload.location, blob, blob.whole()).await
                }
            }
            done => done,
        }
    }

    /// Sends a blob in chunks. After an error it resumes at the offset that the registry reports.
    async fn chunks(&self, blob: &Blob, upload: Upload) -> Transfer<()> {
        let chunk_bytes = self.bounds.chunk_bytes.max(upload.chunk_bytes_min).max(1);
        let (mut location, mut offset, mut retry_waits) = (upload.location, 0_u64, self.bounds.retry_waits.iter());
        while offset < blob.size_bytes() {
            let chunk = blob.part(offset..offset.saturating_add(chunk_bytes));
            let end = chunk.range().end;
            let (next, taken_bytes) = match self.patch(&location, &chunk).await {
                Ok(done) if done.1 == end => {
                    retry_waits = self.bounds.retry_waits.iter();
                    done
                }
                Ok(done) if retry_waits.next().is_some() => done,
                Ok(_) => return Err(TransferError::NoAnswer("it takes no whole chunk of an upload".into())),
                Err(error) => {
                    let is_out_of_order = error.refusal().is_some_and(Refusal::is_out_of_order) && offset > 0;
                    let Some(wait) = retry_waits.next().filter(|_| error.is_transient() || is_out_of_order) else {
                        return Err(error);
                    };
                    self.session.env().sleep(*wait).await;
                    // An upload unknown to the registry starts over from its first byte.
                    self.status(&location, end).await.map_err(|_| error)?
                }
            };
            if taken_bytes > end {
                return Err(TransferError::Failed("it reports more bytes of an upload than were sent".into()));
            }
            if taken_bytes < offset {
                return Err(TransferError::NoAnswer("it has lost a part of an upload".into()));
            }
            (location, offset) = (next, taken_bytes);
        }
        self.finish(location, blob, blob.part(offset..offset)).await
    }

    /// Sends a chunk; returns the URL of the next one, and the bytes that the registry has.
    async fn patch(&self, location: &Url, chunk: &Part<'_>) -> Transfer<(Url, u64)> {
        let range = chunk.range();
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, OCTETS)]);
        headers.insert(CONTENT_RANGE, text(&format!("{}-{}", range.start, range.end.saturating_sub(1)))?);
        let response = self.call(Method::PATCH, location.clone(), headers, Some(chunk.clone())).await?;
        if !response.status().is_success() {
            return Err(self.read_refusal(response).await);
        }
        let taken_bytes = received_bytes(response.headers(), range.end).unwrap_or(range.end);
        Ok((self.next_upload(&response)?.location, taken_bytes))
    }

    /// Returns the URL and the offset of an upload that may have received bytes up to `sent_bytes`.
    async fn status(&self, location: &Url, sent_bytes: u64) -> Transfer<(Url, u64)> {
        let response = self.call(Method::GET, location.clone(), HeaderMap::new(), None).await?;
        if !response.status().is_success() {
            return Err(self.read_refusal(response).await);
        }
        let taken_bytes = received_bytes(response.headers(), sent_bytes);
        let taken_bytes =
            taken_bytes.ok_or_else(|| TransferError::Failed("it doesn't say how far an upload is".into()))?;
        let next = self.next_upload(&response).map_or_else(|_| location.clone(), |upload| upload.location);
        Ok((next, taken_bytes))
    }

    /// Completes an upload with its last bytes, which may be all.
    async fn finish(&self, mut location: Url, blob: &Blob, last: Part<'_>) -> Transfer<()> {
        location.query_pairs_mut().append_pair("digest", blob.digest());
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, OCTETS)]);
        let response = self.call(Method::PUT, location, headers, Some(last)).await?;
        if !response.status().is_success() {
            return Err(self.read_refusal(response).await);
        }
        has_digest(&response, blob.digest())
    }

    async fn put_manifest(&self, reference: &str, media_type: &str, manifest: &Blob) -> Transfer<()> {
        let failed = |why: String| Err(TransferError::Failed(why));
        if manifest.size_bytes() > MANIFEST_BYTES_MAX {
            return failed(format!("the manifest has more than {MANIFEST_BYTES_MAX} bytes"));
        }
        let is_digest = reference.contains(':');
        if is_digest && reference != manifest.digest() {
            return failed(format!("the manifest has the digest {}, not {reference}", manifest.digest()));
        }
        let mut retry_waits = self.bounds.retry_waits.iter();
        loop {
            let Err(error) = self.try_manifest(reference, media_type, manifest).await else { return Ok(()) };
            if !error.is_transient() {
                return Err(error);
            }
            // The tag may be set already, and another client may have moved it since: a second request would move it
            // back.
            if !is_digest && !error.had_no_effect() {
                let there = self.retry(|| self.manifest_digest(reference)).await;
                let is_set = there.ok().flatten().is_some_and(|there| there == manifest.digest());
                return if is_set { Ok(()) } else { Err(error) };
            }
            let Some(wait) = retry_waits.next() else { return Err(error) };
            self.session.env().sleep(*wait).await;
        }
    }

    async fn try_manifest(&self, reference: &str, media_type: &str, manifest: &Blob) -> Transfer<()> {
        let url = self.session.url("manifests", reference)?;
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, text(media_type)?)]);
        let response = self.call(Method::PUT, url, headers, Some(manifest.whole())).await?;
        if !response.status().is_success() {
            return Err(self.read_refusal(response).await);
        }
        has_digest(&response, manifest.digest())
    }

    /// Returns the digest that a tag refers to.
    async fn manifest_digest(&self, reference: &str) -> Transfer<Option<String>> {
        let url = self.session.url("manifests", reference)?;
        let headers = HeaderMap::from_iter([(ACCEPT, text(&ACCEPTED.join(", "))?)]);
        let response = self.call(Method::HEAD, url, headers, None).await?;
        match response.status() {
            StatusCode::OK => Ok(response_digest(&response).map(str::to_owned)),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.read_refusal(response).await),
        }
    }

    async fn try_delete(&self, reference: &str) -> Transfer<()> {
        let url = self.session.url("manifests", reference)?;
        let response = self.call(Method::DELETE, url, HeaderMap::new(), None).await?;
        match response.status() {
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            _ => Err(self.read_refusal(response).await),
        }
    }

    async fn call(
        &self,
        method: Method,
        url: Url,
        mut headers: HeaderMap,
        body: Option<Part<'_>>,
    ) -> Transfer<Response> {
        let timeout = if body.is_some() { self.bounds.timeout } else { self.bounds.timeout.min(HEAD_TIME_MAX) };
        match &body {
            Some(part) => {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(part.size_bytes()));
            }
            // Some registries answer 411 to a POST without a length.
            None if method == Method::POST => {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(0_u64));
            }
            None => {}
        }
        Ok(self.session.exchange(&RegistryRequest { method, url, headers, body, timeout }).await?)
    }

    /// Returns the target of an upload's next request.
    fn next_upload(&self, response: &Response) -> Transfer<Upload> {
        let location = self.session.resolve_location(response.url(), response.headers(), "its upload leads")?;
        let chunk_bytes_min =
            response.headers().get(CHUNK_BYTES_MIN).and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Upload { location, chunk_bytes_min: chunk_bytes_min.unwrap_or(0) })
    }

    async fn read_refusal(&self, response: Response) -> TransferError {
        let status = response.status();
        let error_body = body(self.session.env(), response, ERROR_BYTES_MAX, "an error").await.unwrap_or_default();
        let refusal = Refusal::read(status, &error_body);
        // The caller has the account, but a log of the message must not contain the password.
        let is_safe = !self.session.contains_secret(&refusal.to_string());
        TransferError::Refused(if is_safe { refusal } else { Refusal::read(status, &[]) })
    }
}

fn text(value: &str) -> Transfer<HeaderValue> {
    HeaderValue::from_str(value).map_err(|_| TransferError::Failed(format!("{value:?} can't stand in a header")))
}

/// Checks that a response contains no other digest. Digests of other algorithms can't be compared.
fn has_digest(response: &Response, wanted: &str) -> Transfer<()> {
    match response_digest(response).filter(|actual| actual.starts_with("sha256:") && *actual != wanted) {
        Some(_) => Err(TransferError::Failed(format!("it answers that it has another digest than {wanted}"))),
        None => Ok(()),
    }
}

fn response_digest(response: &Response) -> Option<&str> {
    response.headers().get(DIGEST)?.to_str().ok()
}

/// Returns the bytes of an upload by a response's `Range`, `0-END` with END inclusive; registries send `0-0` for none,
/// too.
fn received_bytes(headers: &HeaderMap, sent_bytes: u64) -> Option<u64> {
    let range = headers.get(RANGE)?.to_str().ok()?.trim();
    let range = range.strip_prefix("bytes=").or_else(|| range.strip_prefix("bytes ")).unwrap_or(range);
    let (start, end) = range.split_once('-')?;
    let (start, end) = (start.parse::<u64>().ok()?, end.split('/').next()?.parse::<u64>().ok()?);
    match (start, end) {
        (0, 0) => Some(u64::from(sent_bytes == 1)),
        (0, end) => end.checked_add(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(range: &str, sent_bytes: u64) -> Option<u64> {
        received_bytes(&HeaderMap::from_iter([(RANGE, HeaderValue::from_str(range).unwrap())]), sent_bytes)
    }

    #[test]
    fn a_range_gives_the_number_of_stored_bytes() {
        for (range, sent_bytes, bytes) in [
            ("0-9", 10, Some(10)),
            ("bytes=0-9", 10, Some(10)),
            ("bytes 0-9/20", 20, Some(10)),
            ("0-0", 4, Some(0)),
            ("0-0", 1, Some(1)),
            ("0-18446744073709551615", 4, None),
            ("5-9", 10, None),
            ("0--1", 10, None),
            ("all", 10, None),
        ] {
            assert_eq!(read(range, sent_bytes), bytes, "{range}");
        }
        assert_eq!(received_bytes(&HeaderMap::new(), 4), None);
    }

    proptest! {
        #[test]
        fn any_range_is_read(range in "[0-9bytes=/ -]{0,30}", sent_bytes in any::<u64>(), end in 1..u64::MAX) {
            let _ = read(&range, sent_bytes);
            prop_assert_eq!(read(&format!("0-{end}"), sent_bytes), Some(end + 1));
        }
    }
}
