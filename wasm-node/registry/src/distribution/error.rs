//! The registry's errors, with the codes and HTTP statuses of the distribution specification.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

use crate::blobs::BlobError;

/// An error with the distribution specification's name.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegistryError {
    #[error("authentication required")]
    Unauthorized,
    #[error("a page must not use the registry's account")]
    Page,
    #[error("blob unknown to registry")]
    BlobUnknown,
    #[error("blob upload unknown to registry")]
    UploadUnknown,
    #[error("blob upload invalid: {0}")]
    UploadInvalid(String),
    #[error("provided digest is invalid: {0}")]
    DigestInvalid(String),
    #[error("manifest invalid: {0}")]
    ManifestInvalid(String),
    #[error("manifest larger than {0} bytes")]
    ManifestTooLarge(usize),
    #[error("blob unknown to registry: {0}")]
    ManifestBlobUnknown(String),
    #[error("manifest unknown")]
    ManifestUnknown,
    #[error("invalid repository name")]
    NameInvalid,
    #[error("repository name not known to registry")]
    NameUnknown,
    #[error("invalid tag name")]
    TagInvalid,
    #[error("provided length is invalid: {0}")]
    SizeInvalid(String),
    #[error("a chunk must start where the upload ends ({offset})")]
    ChunkOutOfOrder { offset: u64, location: String },
    #[error("range not satisfiable")]
    Range { size: u64 },
    #[error("too many uploads at once")]
    TooManyUploads,
    #[error("{0}")]
    DiskFull(String),
    #[error("{0}")]
    Unsupported(&'static str),
    #[error("no such endpoint")]
    NotFound,
    #[error("the registry's disk: {0}")]
    Io(#[from] std::io::Error),
}

impl From<BlobError> for RegistryError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Digest { .. } | BlobError::BadDigest(_) => Self::DigestInvalid(error.to_string()),
            BlobError::TooLarge { .. } => Self::SizeInvalid(error.to_string()),
            BlobError::DiskFull { .. } => Self::DiskFull(error.to_string()),
            BlobError::Io(ref full) if full.kind() == std::io::ErrorKind::StorageFull => {
                Self::DiskFull(error.to_string())
            }
            BlobError::Io(error) if error.kind() == std::io::ErrorKind::NotFound => Self::BlobUnknown,
            BlobError::Io(error) => Self::Io(error),
        }
    }
}

impl RegistryError {
    fn parts(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            Self::Page => (StatusCode::FORBIDDEN, "DENIED"),
            Self::BlobUnknown => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Self::UploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Self::UploadInvalid(_) => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            Self::DigestInvalid(_) => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            Self::ManifestInvalid(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Self::ManifestTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "MANIFEST_INVALID"),
            Self::ManifestBlobUnknown(_) => (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
            Self::ManifestUnknown => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Self::NameInvalid => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
            Self::NameUnknown => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Self::TagInvalid => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Self::SizeInvalid(_) => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Self::ChunkOutOfOrder { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID"),
            Self::Range { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID"),
            Self::TooManyUploads => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Self::DiskFull(_) => (StatusCode::INSUFFICIENT_STORAGE, "DENIED"),
            Self::Unsupported(_) => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Self::NotFound => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
            Self::Io(_) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        }
    }
}

impl IntoResponse for RegistryError {
    fn into_response(self) -> Response {
        if let Self::Io(error) = &self {
            tracing::error!("registry: {error}");
        }
        let (status, code) = self.parts();
        let errors = serde_json::json!({"errors": [{"code": code, "message": self.to_string(), "detail": null}]});
        let mut response = Response::new(Body::from(errors.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match &self {
            Self::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"coracle\""));
            }
            Self::Range { size } => {
                if let Ok(value) = HeaderValue::try_from(format!("bytes */{size}")) {
                    headers.insert(header::CONTENT_RANGE, value);
                }
            }
            Self::ChunkOutOfOrder { offset, location } => {
                let range = format!("0-{}", offset.saturating_sub(1));
                for (name, value) in [(header::LOCATION, location.clone()), (header::RANGE, range)] {
                    if let Ok(value) = HeaderValue::try_from(value) {
                        headers.insert(name, value);
                    }
                }
            }
            _ => {}
        }
        response
    }
}
