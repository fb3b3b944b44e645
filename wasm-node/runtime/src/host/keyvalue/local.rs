//! A namespace's store in a file of this node.

use std::sync::Arc;

use async_trait::async_trait;

use crate::host::disk::Disk;
use crate::keyvalue::{Backend, Namespace, Page, StoreError, Value, Write, Written};

/// The store in a file: reads and writes are file work within the shares of container and namespace.
pub(crate) struct LocalBackend {
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) disk: Arc<Disk>,
}

impl LocalBackend {
    async fn read<T: Send>(
        &self,
        read: impl FnOnce(&Arc<Namespace>) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        let read = self.disk.work(async { read(&self.namespace) }).await;
        read.unwrap_or(Err(StoreError::DiskBusy))
    }
}

#[async_trait]
impl Backend for LocalBackend {
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
            tokio::select! {
                biased;
                answer = &mut answer => return answer.unwrap_or(Err(StoreError::Removed)),
                turn = self.disk.sync(async { self.namespace.commit() }) => turn.map_err(|_| StoreError::DiskBusy)?,
            }
        }
    }
}
