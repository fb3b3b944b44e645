//! A namespace's store in a file of this node, for one container.

use std::sync::Arc;

use async_trait::async_trait;
use runtime_api::disk::FileWork;
use runtime_api::keyvalue::{KeyvalueStore, Page, StoreError, Value, Write, Written};

use super::namespace::Namespace;

/// The store in a file: reads and writes are file work within the shares of container and namespace.
pub(crate) struct FileStore {
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) files: Arc<dyn FileWork>,
}

impl FileStore {
    async fn read<T: Send>(
        &self,
        read: impl Fn(&Arc<Namespace>) -> Result<T, StoreError> + Send + Sync,
    ) -> Result<T, StoreError> {
        let mut found = Err(StoreError::DiskBusy);
        self.files.run(&mut || found = read(&self.namespace)).await.map_err(|_| StoreError::DiskBusy)?;
        found
    }
}

#[async_trait]
impl KeyvalueStore for FileStore {
    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Value>, StoreError> {
        self.read(|kept| kept.get(bucket, key)).await
    }

    async fn exists(&self, bucket: &str, key: &str) -> Result<bool, StoreError> {
        self.read(|kept| kept.exists(bucket, key)).await
    }

    async fn get_many(&self, bucket: &str, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.read(|kept| kept.get_many(bucket, keys)).await
    }

    async fn list(&self, bucket: &str, cursor: Option<&str>) -> Result<Page, StoreError> {
        self.read(|kept| kept.list(bucket, cursor)).await
    }

    /// Waits until the write is on the disk, by this call's commit or an earlier one of the namespace.
    async fn write(&self, write: Write) -> Result<Written, StoreError> {
        let mut answer = self.namespace.submit(write)?;
        loop {
            let mut commit = || self.namespace.commit();
            tokio::select! {
                biased;
                answer = &mut answer => return answer.unwrap_or(Err(StoreError::Removed)),
                turn = self.files.flush(&mut commit) => turn.map_err(|_| StoreError::DiskBusy)?,
            }
        }
    }
}
