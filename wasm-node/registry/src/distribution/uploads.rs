//! Upload sessions: bounded in number, removed after an idle time. The bytes before a broken connection are kept, so
//! that a client can resume.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use machinery_env::Env;

use super::error::RegistryError;
use crate::blobs::{BLOB_BYTES_MAX, BlobStore, BlobWriter};

/// Maximum concurrent uploads: each holds an open file, and clients push a handful of blobs concurrently.
const UPLOADS_MAX: usize = 256;
/// Maximum time between two requests of an upload.
const IDLE_MAX: Duration = Duration::from_secs(15 * 60);

/// An upload. Its writer is taken while a request appends to it.
pub(super) struct Upload {
    pub(super) writer: BlobWriter,
}

struct UploadSession {
    repository: String,
    upload: Arc<tokio::sync::Mutex<Option<Upload>>>,
    touched_at: Duration,
}

pub(super) struct Uploads {
    env: Env,
    sessions: Mutex<BTreeMap<String, UploadSession>>,
}

impl Uploads {
    pub(super) fn new(env: Env) -> Self {
        Self { env, sessions: Mutex::default() }
    }

    /// Begins an upload; returns its id.
    pub(super) fn begin(&self, store: &BlobStore, repository: &str) -> Result<String, RegistryError> {
        let now = self.env.elapsed();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| now.saturating_sub(session.touched_at) < IDLE_MAX);
        if sessions.len() >= UPLOADS_MAX {
            return Err(RegistryError::TooManyUploads);
        }
        let upload = Upload { writer: store.writer(BLOB_BYTES_MAX)? };
        let id = self.env.uid();
        let session = UploadSession {
            repository: repository.to_owned(),
            upload: Arc::new(tokio::sync::Mutex::new(Some(upload))),
            touched_at: now,
        };
        sessions.insert(id.clone(), session);
        Ok(id)
    }

    /// Returns the upload with this id in this repository.
    pub(super) fn find(
        &self,
        repository: &str,
        id: &str,
    ) -> Result<Arc<tokio::sync::Mutex<Option<Upload>>>, RegistryError> {
        let now = self.env.elapsed();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        match sessions.get_mut(id) {
            Some(session) if session.repository == repository && now.saturating_sub(session.touched_at) < IDLE_MAX => {
                session.touched_at = now;
                Ok(session.upload.clone())
            }
            _ => Err(RegistryError::UploadUnknown),
        }
    }

    /// Ends an upload's session.
    pub(super) fn end(&self, id: &str) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}
