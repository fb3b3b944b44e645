//! The client of `coracle image`: calls a running node at its registry's address, with its registry's account.

use std::path::Path;
use std::time::Duration;

use machinery_env::Env;
use reqwest::{Method, Response, Url};
use tokio::io::AsyncWriteExt as _;

use super::serve::{EXPORT_PATH, PATH};
use super::{ListedImage, Removed};
use crate::pull::RegistryAccess;
use crate::registries::Registries;
use crate::remote::{RegistryClients, describe_error};
use oci_registry::Credentials;

/// Maximum bytes of a response that isn't an archive.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Maximum time of an import: the transfer of the archive, and the unpacking by the node.
const IMPORT_TIME_MAX: Duration = Duration::from_secs(3600);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageClientError {
    /// The node rejected the request.
    #[error("{0}")]
    Rejected(String),
    /// The node is unreachable.
    #[error("no cluster answers at {address} ({why}): is `coracle up` running with this --data-dir?")]
    Unreachable {
        /// The address called.
        address: String,
        /// The cause.
        why: String,
    },
    /// A local file can't be read or written.
    #[error(transparent)]
    File(#[from] std::io::Error),
}

/// A client for the images of a running node.
pub struct ImageClient {
    access: RegistryAccess,
    remote: RegistryClients,
    uploads: RegistryClients,
}

impl std::fmt::Debug for ImageClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageClient").field("address", &self.access.address).finish_non_exhaustive()
    }
}

impl ImageClient {
    /// Creates a client for the node with this registry.
    #[must_use]
    pub fn new(env: &Env, access: RegistryAccess) -> Self {
        let built_in = || vec![access.clone()];
        let remote = RegistryClients::new(env, Registries::default(), built_in());
        let uploads = RegistryClients::for_uploads(env, Registries::default(), built_in());
        Self { remote, uploads, access }
    }

    fn unreachable(&self, why: impl Into<String>) -> ImageClientError {
        ImageClientError::Unreachable { address: self.access.address.clone(), why: why.into() }
    }

    async fn send_request(
        &self,
        method: Method,
        path: &str,
        name: Option<&str>,
        body: Option<reqwest::Body>,
    ) -> Result<Response, ImageClientError> {
        let scheme = if self.access.ca_pem.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}{path}", self.access.address);
        let mut url = Url::parse(&url).map_err(|error| self.unreachable(error.to_string()))?;
        if let Some(name) = name {
            url.query_pairs_mut().append_pair("name", name);
        }
        let (remote, time_max) = match body {
            Some(_) => (&self.uploads, Some(IMPORT_TIME_MAX)),
            None => (&self.remote, None),
        };
        let client = remote.client_for(&url).map_err(|error| self.unreachable(error.to_string()))?;
        let mut request = client.request(method, url);
        if let Some(Credentials { user, password }) = &self.access.credentials {
            request = request.basic_auth(user, Some(password));
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        if let Some(time_max) = time_max {
            request = request.timeout(time_max);
        }
        let response = request.send().await.map_err(|error| self.unreachable(describe_error(&error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = self.body(response).await?;
        let body: Option<serde_json::Value> = serde_json::from_slice(&text).ok();
        let message = body.and_then(|body| body["message"].as_str().map(str::to_owned));
        Err(ImageClientError::Rejected(message.unwrap_or_else(|| format!("the node answers {status}"))))
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, ImageClientError> {
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.unreachable(describe_error(&error)))? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(self.unreachable("its response is too long"));
            }
        }
        Ok(bytes)
    }

    async fn json<T: serde::de::DeserializeOwned>(&self, response: Response) -> Result<T, ImageClientError> {
        let bytes = self.body(response).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.unreachable(format!("unexpected response: {error}")))
    }

    /// Lists every image.
    ///
    /// # Errors
    /// See [`ImageClientError`], here and below.
    pub async fn list(&self) -> Result<Vec<ListedImage>, ImageClientError> {
        let response = self.send_request(Method::GET, PATH, None, None).await?;
        self.json(response).await
    }

    /// Removes an unused image.
    ///
    /// # Errors
    /// The image is absent or in use.
    pub async fn remove(&self, name: &str) -> Result<Removed, ImageClientError> {
        let response = self.send_request(Method::DELETE, PATH, Some(name), None).await?;
        self.json(response).await
    }

    /// Imports the images of an archive.
    ///
    /// # Errors
    /// The file is no archive, or has no image that a node can use.
    pub async fn import(&self, archive: &Path, name: Option<&str>) -> Result<Vec<ListedImage>, ImageClientError> {
        let file = tokio::fs::File::open(archive).await?;
        if file.metadata().await?.is_dir() {
            return Err(std::io::Error::from(std::io::ErrorKind::IsADirectory).into());
        }
        let body = reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::new(file));
        let response = self.send_request(Method::POST, PATH, name, Some(body)).await?;
        self.json(response).await
    }

    /// Writes an image as an archive, and returns its size in bytes.
    ///
    /// # Errors
    /// The image is absent, or the file can't be written.
    pub async fn export(&self, name: &str, to: std::fs::File) -> Result<u64, ImageClientError> {
        let mut response = self.send_request(Method::GET, EXPORT_PATH, Some(name), None).await?;
        let (mut to, mut bytes) = (tokio::fs::File::from_std(to), 0);
        while let Some(piece) = response.chunk().await.map_err(|error| self.unreachable(describe_error(&error)))? {
            to.write_all(&piece).await?;
            bytes += piece.len() as u64;
        }
        to.flush().await?;
        Ok(bytes)
    }
}
