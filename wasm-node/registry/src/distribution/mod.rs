//! The built-in registry: OCI's distribution API over the blob store of image pulls. Manifests are stored and returned
//! as the pushed bytes; every path requires basic authentication.

mod error;
mod listen;
mod manifests;
pub mod names;
mod route;
#[cfg(test)]
mod tests;
mod uploads;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use machinery_env::Env;
use machinery_serve::accept::ConnectionPermit;
use machinery_serve::browsers::comes_from_own_page;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::blobs::BlobStore;
use crate::reference::is_sha256;
use error::RegistryError;
pub use listen::serve;
use manifests::OCI_INDEX;
use names::Repository;
use route::{Route, RouteError, byte_range, chunk_range, parameter, route};
use uploads::Uploads;

/// Maximum entries of one page of a list.
const PAGE_MAX: usize = 1000;

/// The registry's one account.
#[derive(Clone)]
pub struct Credentials {
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

struct Registry {
    store: Arc<BlobStore>,
    env: Env,
    uploads: Uploads,
    /// The digest of `user:password`: comparing digests of equal length reveals nothing about either.
    account: [u8; 32],
}

type ApiResult = Result<Response, RegistryError>;

/// Returns the registry's service, for any listener.
pub fn router(store: Arc<BlobStore>, credentials: &Credentials, env: Env) -> Router {
    let account = account(credentials);
    let registry = Arc::new(Registry { store, env: env.clone(), uploads: Uploads::new(env), account });
    Router::new().fallback(handle).with_state(registry)
}

/// Adds authentication with the registry's account to `router`. A node's certificate gives nothing there: it is for what was
/// pushed to the registry, not for what this node has pulled elsewhere with others' secrets.
pub fn authenticated(router: Router, credentials: &Credentials) -> Router {
    let wanted = account(credentials);
    router.layer(axum::middleware::from_fn(move |request: Request, next: axum::middleware::Next| async move {
        match authenticate_account(&wanted, &request) {
            Ok(()) => next.run(request).await,
            Err(error) => error.into_response(),
        }
    }))
}

fn account(credentials: &Credentials) -> [u8; 32] {
    Sha256::digest(format!("{}:{}", credentials.user, credentials.password)).into()
}

/// Marks a request of a node that its certificate authenticates, in the request's extensions: it may pull.
#[derive(Debug, Clone, Copy)]
pub struct NodeReader;

fn authenticate(wanted: &[u8; 32], request: &Request) -> Result<(), RegistryError> {
    if request.extensions().get::<NodeReader>().is_some() && request.method().is_safe() {
        return Ok(());
    }
    authenticate_account(wanted, request)
}

fn authenticate_account(wanted: &[u8; 32], request: &Request) -> Result<(), RegistryError> {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let account = given
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
        .and_then(|(_, encoded)| base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok())
        .ok_or(RegistryError::Unauthorized)?;
    let difference = Sha256::digest(&account).iter().zip(wanted).fold(0, |sum, (a, b)| sum | (a ^ b));
    if difference != 0 {
        return Err(RegistryError::Unauthorized);
    }
    // A browser sends a password that its user once typed for requests of every page, and the registry has none.
    if !comes_from_own_page(request.headers(), |_| false) {
        return Err(RegistryError::Page);
    }
    if let Some(permit) = request.extensions().get::<Arc<ConnectionPermit>>() {
        permit.mark_authenticated();
    }
    Ok(())
}

async fn handle(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let head = request.method() == Method::HEAD;
    let mut response = match registry.dispatch(request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    let version = HeaderValue::from_static("registry/2.0");
    response.headers_mut().insert("docker-distribution-api-version", version);
    if head {
        *response.body_mut() = Body::empty();
    }
    response
}

fn respond(status: StatusCode, headers: &[(&str, String)], body: impl Into<Body>) -> ApiResult {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    for (name, value) in headers {
        let name = http::HeaderName::try_from(*name).map_err(|_| RegistryError::NotFound)?;
        let value = HeaderValue::try_from(value).map_err(|_| RegistryError::UploadInvalid("a header".into()))?;
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| RegistryError::Io(std::io::Error::other(error)))?
}

/// Formats the range of an upload for clients: `0-END`, and `0-0` for an empty one.
fn upload_range(bytes: u64) -> String {
    format!("0-{}", bytes.saturating_sub(1))
}

fn location(name: &str, id: &str) -> String {
    format!("/v2/{name}/blobs/uploads/{id}")
}

impl Registry {
    async fn dispatch(self: &Arc<Self>, request: Request) -> ApiResult {
        authenticate(&self.account, &request)?;
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        if path == "/v2" {
            return respond(StatusCode::MOVED_PERMANENTLY, &[("location", "/v2/".into())], Body::empty());
        }
        let found = route(path).map_err(|error| match error {
            RouteError::NotFound => RegistryError::NotFound,
            RouteError::NameInvalid => RegistryError::NameInvalid,
        })?;
        let query = parts.uri.query();
        let read = parts.method == Method::GET || parts.method == Method::HEAD;
        match (found, &parts.method) {
            (Route::Base, _) if read => respond(
                StatusCode::OK,
                &[("content-type", "application/json".into()), ("content-length", "2".into())],
                "{}",
            ),
            (Route::Catalog, _) if read => self.catalog(query).await,
            (Route::Tags { name }, _) if read => self.tags(name, query).await,
            (Route::Referrers { name, digest }, _) if read => self.referrers(name, digest, query).await,
            (Route::Blob { name, digest }, _) if read => {
                let range = parts.headers.get(header::RANGE).and_then(|value| value.to_str().ok());
                self.get_blob(name, digest, range, parts.method == Method::HEAD).await
            }
            (Route::Blob { name, digest }, &Method::DELETE) => self.delete_blob(name, digest).await,
            (Route::Manifest { name, reference }, _) if read => {
                self.get_manifest(name, reference, parts.method == Method::HEAD).await
            }
            (Route::Manifest { name, reference }, &Method::PUT) => {
                let media_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
                self.put_manifest(name, reference, media_type, &parts.headers, body).await
            }
            (Route::Manifest { name, reference }, &Method::DELETE) => self.delete_manifest(name, reference).await,
            (Route::Uploads { name }, &Method::POST) => self.begin_upload(name, query, body).await,
            (Route::Upload { name, id }, &Method::PATCH) => self.patch_upload(name, id, &parts.headers, body).await,
            (Route::Upload { name, id }, &Method::PUT) => {
                self.finish_upload(name, id, query, &parts.headers, body).await
            }
            (Route::Upload { name, id }, _) if read => self.upload_status(name, id).await,
            (Route::Upload { name, id }, &Method::DELETE) => {
                let upload = self.uploads.find(name, id)?;
                self.uploads.end(id);
                upload.lock().await.take();
                respond(StatusCode::NO_CONTENT, &[], Body::empty())
            }
            _ => Err(RegistryError::Unsupported("the method is not served here")),
        }
    }

    /// Returns a page of `all` by `n` and `last`, with the query of the next page.
    fn page(all: impl IntoIterator<Item = String>, query: Option<&str>) -> (Vec<String>, Option<String>) {
        let n = parameter(query, "n").and_then(|n| n.parse::<usize>().ok());
        let limit = n.unwrap_or(PAGE_MAX).min(PAGE_MAX);
        let last = parameter(query, "last").unwrap_or_default();
        let mut rest = all.into_iter().filter(|item| *item > last);
        let page: Vec<String> = rest.by_ref().take(limit).collect();
        let more = limit > 0 && rest.next().is_some();
        let next = page.last().filter(|_| more).map(|last| format!("last={last}&n={limit}"));
        (page, next)
    }

    async fn catalog(&self, query: Option<&str>) -> ApiResult {
        let store = self.store.clone();
        let all = blocking(move || Ok(names::catalog(&store)?)).await?;
        let (page, next) = Self::page(all, query);
        Self::page_response(json!({"repositories": page}), "/v2/_catalog", next)
    }

    async fn tags(&self, name: &str, query: Option<&str>) -> ApiResult {
        let repository = Repository::new(&self.store, name);
        let all = blocking(
            move || {
                if repository.exists() { Ok(repository.tags()?) } else { Err(RegistryError::NameUnknown) }
            },
        )
        .await?;
        let (page, next) = Self::page(all, query);
        Self::page_response(json!({"name": name, "tags": page}), &format!("/v2/{name}/tags/list"), next)
    }

    fn page_response(body: Value, path: &str, next: Option<String>) -> ApiResult {
        let mut headers = vec![("content-type", "application/json".to_owned())];
        if let Some(next) = next {
            headers.push(("link", format!("<{path}?{next}>; rel=\"next\"")));
        }
        respond(StatusCode::OK, &headers, body.to_string())
    }

    async fn referrers(&self, name: &str, subject: String, query: Option<&str>) -> ApiResult {
        if !is_sha256(&subject) {
            return Err(RegistryError::DigestInvalid(subject.chars().take(100).collect()));
        }
        let repository = Repository::new(&self.store, name);
        let mut manifests = blocking(move || Ok(repository.referrers(&subject)?)).await?;
        let mut headers = vec![("content-type", OCI_INDEX.to_owned())];
        if let Some(wanted) = parameter(query, "artifactType").filter(|wanted| !wanted.is_empty()) {
            manifests.retain(|descriptor| descriptor["artifactType"] == wanted);
            headers.push(("oci-filters-applied", "artifactType".to_owned()));
        }
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        respond(StatusCode::OK, &headers, index.to_string())
    }

    async fn get_blob(&self, name: &str, digest: String, range: Option<&str>, head: bool) -> ApiResult {
        let path = self.store.path(&digest)?;
        let (store, repository) = (self.store.clone(), Repository::new(&self.store, name));
        let (wanted, now) = (digest.clone(), self.env.now());
        let there = blocking(move || {
            let _linking = store.linking();
            // A push checks by HEAD, and relies on the result later.
            Ok(if head { repository.offer_blob(&wanted, now)? } else { repository.has_blob(&wanted) })
        });
        if !there.await? {
            return Err(RegistryError::BlobUnknown);
        }
        let mut file = match tokio::fs::File::open(&path).await {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(RegistryError::BlobUnknown),
            Err(error) => return Err(error.into()),
        };
        let size = file.metadata().await?.len();
        let range = match range {
            Some(range) => byte_range(range, size).map_err(|()| RegistryError::Range { size })?,
            None => None,
        };
        let (start, length) = range.map_or((0, size), |(start, end)| (start, end - start + 1));
        let mut headers = vec![
            ("content-type", "application/octet-stream".to_owned()),
            ("content-length", length.to_string()),
            ("docker-content-digest", digest),
            ("accept-ranges", "bytes".to_owned()),
        ];
        if range.is_some() {
            headers.push(("content-range", format!("bytes {start}-{}/{size}", start + length - 1)));
        }
        let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        if head {
            return respond(status, &headers, Body::empty());
        }
        file.seek(std::io::SeekFrom::Start(start)).await?;
        respond(status, &headers, Body::from_stream(tokio_util::io::ReaderStream::new(file.take(length))))
    }

    async fn delete_blob(&self, name: &str, digest: String) -> ApiResult {
        self.store.path(&digest)?;
        let repository = Repository::new(&self.store, name);
        // The next collection removes the bytes if no other repository or image refers to them.
        if blocking(move || Ok(repository.unlink_blob(&digest)?)).await? {
            respond(StatusCode::ACCEPTED, &[], Body::empty())
        } else {
            Err(RegistryError::BlobUnknown)
        }
    }

    async fn begin_upload(&self, name: &str, query: Option<&str>, body: Body) -> ApiResult {
        if let (Some(digest), from) = (parameter(query, "mount"), parameter(query, "from")) {
            let (store, target) = (self.store.clone(), Repository::new(&self.store, name));
            let (wanted, now) = (digest.clone(), self.env.now());
            let mounted = blocking(move || {
                let _linking = store.linking();
                let pins = store.pins();
                pins.add(&wanted);
                // Without `from` the blob could be mounted from any repository. A `from` is required, so that a mount
                // reveals nothing about repositories unknown to the client.
                let source = from.filter(|from| crate::reference::is_repository(from) && from.len() <= 255);
                let source = source.map(|from| Repository::new(&store, &from));
                let there = is_sha256(&wanted)
                    && source.is_some_and(|source| source.has_blob(&wanted))
                    && store.size(&wanted).is_some();
                if there {
                    target.link_blob(&wanted, now)?;
                }
                Ok(there)
            })
            .await?;
            if mounted {
                let headers = [("location", format!("/v2/{name}/blobs/{digest}")), ("docker-content-digest", digest)];
                return respond(StatusCode::CREATED, &headers, Body::empty());
            }
        }
        let id = self.uploads.begin(&self.store, name)?;
        if parameter(query, "digest").is_some() {
            return self.finish_upload(name, &id, query, &HeaderMap::new(), body).await;
        }
        let headers = [
            ("location", location(name, &id)),
            ("range", "0-0".to_owned()),
            ("docker-upload-uuid", id),
            ("content-length", "0".to_owned()),
        ];
        respond(StatusCode::ACCEPTED, &headers, Body::empty())
    }

    async fn upload_status(&self, name: &str, id: &str) -> ApiResult {
        let upload = self.uploads.find(name, id)?;
        let upload = upload.lock().await;
        let bytes = upload.as_ref().ok_or(RegistryError::UploadUnknown)?.writer.len();
        let headers =
            [("location", location(name, id)), ("range", upload_range(bytes)), ("docker-upload-uuid", id.to_owned())];
        respond(StatusCode::NO_CONTENT, &headers, Body::empty())
    }

    /// Appends a request's body; the bytes before a broken connection are kept.
    async fn append(
        &self,
        upload: &mut Option<uploads::Upload>,
        (name, id): (&str, &str),
        headers: &HeaderMap,
        body: Body,
    ) -> Result<(), RegistryError> {
        let range = match headers.get(header::CONTENT_RANGE) {
            Some(value) => Some(
                value
                    .to_str()
                    .ok()
                    .and_then(chunk_range)
                    .ok_or_else(|| RegistryError::UploadInvalid("Content-Range must be START-END".into()))?,
            ),
            None => None,
        };
        let offset = upload.as_ref().ok_or(RegistryError::UploadUnknown)?.writer.len();
        if range.is_some_and(|(start, _)| start != offset) {
            return Err(RegistryError::ChunkOutOfOrder { offset, location: location(name, id) });
        }
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        if let (Some((start, end)), Some(length)) = (range, announced)
            && (end - start).checked_add(1) != Some(length)
        {
            return Err(RegistryError::SizeInvalid("Content-Range and Content-Length differ".into()));
        }
        let mut stream = body.into_data_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| RegistryError::UploadInvalid(error.to_string()))?;
            let mut taken = upload.take().ok_or(RegistryError::UploadUnknown)?;
            let written = tokio::task::spawn_blocking(move || {
                let result = taken.writer.write(&chunk);
                (taken, result)
            })
            .await;
            let (back, result) = written.map_err(|error| RegistryError::Io(std::io::Error::other(error)))?;
            *upload = Some(back);
            result?;
        }
        Ok(())
    }

    async fn patch_upload(&self, name: &str, id: &str, headers: &HeaderMap, body: Body) -> ApiResult {
        let session = self.uploads.find(name, id)?;
        let mut upload = session.lock().await;
        self.append(&mut upload, (name, id), headers, body).await?;
        let bytes = upload.as_ref().map_or(0, |upload| upload.writer.len());
        let headers = [
            ("location", location(name, id)),
            ("range", upload_range(bytes)),
            ("docker-upload-uuid", id.to_owned()),
            ("content-length", "0".to_owned()),
        ];
        respond(StatusCode::ACCEPTED, &headers, Body::empty())
    }

    async fn finish_upload(
        &self,
        name: &str,
        id: &str,
        query: Option<&str>,
        headers: &HeaderMap,
        body: Body,
    ) -> ApiResult {
        let digest = parameter(query, "digest").filter(|digest| is_sha256(digest));
        let session = self.uploads.find(name, id)?;
        let mut upload = session.lock().await;
        let digest = digest.ok_or_else(|| RegistryError::DigestInvalid("the digest parameter".into()))?;
        self.append(&mut upload, (name, id), headers, body).await?;
        let writer = upload.take().ok_or(RegistryError::UploadUnknown)?.writer;
        // The session ends here even if the digest doesn't match: its bytes can't be removed.
        self.uploads.end(id);
        let (store, repository, wanted) = (self.store.clone(), Repository::new(&self.store, name), digest.clone());
        let now = self.env.now();
        blocking(move || {
            let _linking = store.linking();
            let pins = store.pins();
            pins.add(&wanted);
            writer.commit(&store, &wanted)?;
            Ok(repository.link_blob(&wanted, now)?)
        })
        .await?;
        let headers = [
            ("location", format!("/v2/{name}/blobs/{digest}")),
            ("docker-content-digest", digest),
            ("content-length", "0".to_owned()),
        ];
        respond(StatusCode::CREATED, &headers, Body::empty())
    }
}
