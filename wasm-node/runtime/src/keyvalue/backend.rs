//! The operations of a namespace's store as a container uses them. `host::keyvalue` has the store in a file of this node,
//! [`shared`](super::shared) the one of several nodes, and `host/keyvalue/contract.rs` the tests of both.

use async_trait::async_trait;

use super::namespace::Page;
use super::{StoreError, Value, Write, Written};

/// A namespace's store for one container. A bucket's name comes from [`bucket`](super::bucket).
#[async_trait]
pub(crate) trait Backend: Send + Sync {
    /// The value of a key, with its revision.
    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Value>, StoreError>;

    /// Whether the key has a value.
    async fn exists(&self, bucket: &str, key: &str) -> Result<bool, StoreError>;

    /// The values of these keys, in their order, from one snapshot.
    async fn get_many(&self, bucket: &str, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, StoreError>;

    /// A page of a bucket's keys in the order of their bytes, starting after `cursor`.
    async fn list(&self, bucket: &str, cursor: Option<&str>) -> Result<Page, StoreError>;

    /// Does a write as a whole or not at all, and waits for its result.
    async fn write(&self, write: Write) -> Result<Written, StoreError>;
}
