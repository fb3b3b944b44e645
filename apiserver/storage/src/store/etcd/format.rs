//! The record of a prefix in etcd: the version of its keys and values, and the offset of a restored backup. It is written by
//! the first start or by a restore, and read by every start. Its key is the prefix itself and its value JSON.

use serde::{Deserialize, Serialize};

use super::super::{Revision, StoreError};
use super::client::{Client, Repeat};
use super::keys::Mapping;
use super::messages::{CompareRequest, KeyValue, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse};
use super::{RANGE, TXN};

/// The version of keys and records, raised when an older program could not read them. API servers of two versions share a
/// store during an upgrade, so a release reads a new version before a later one writes it.
const FORMAT: u32 = 1;

/// The content of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StoreRecord {
    format: u32,
    /// Added to etcd's revisions.
    #[serde(default)]
    pub(super) revision_offset: Revision,
    /// Whether a restore is under way, or was interrupted.
    #[serde(default)]
    restoring: bool,
}

impl StoreRecord {
    /// Of a new store.
    const NEW: Self = Self { format: FORMAT, revision_offset: 0, restoring: false };

    /// While a backup is restored.
    pub(super) fn restoring(revision_offset: Revision) -> Self {
        Self { revision_offset, restoring: true, ..Self::NEW }
    }

    /// With another offset.
    pub(super) fn with_offset(self, revision_offset: Revision) -> Self {
        Self { revision_offset, ..self }
    }

    /// When it is restored.
    pub(super) fn restored(self) -> Self {
        Self { restoring: false, ..self }
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is of a newer program, of a restore that hasn't ended, or no record.
    pub(super) fn read(kv: &KeyValue) -> Result<Self, StoreError> {
        let name = String::from_utf8_lossy(&kv.key);
        let record: Self = serde_json::from_slice(&kv.value)
            .map_err(|error| StoreError::Damaged(format!("etcd: {name} is no record of a store: {error}")))?;
        if record.format > FORMAT {
            return Err(StoreError::Damaged(format!(
                "etcd: {name} says format {}, this program reads up to {FORMAT}: use the newer coracle that wrote it",
                record.format
            )));
        }
        if record.restoring {
            return Err(StoreError::Damaged(format!(
                "etcd: {name} says that a restore has not ended: wait for it; if it was interrupted, delete all keys below \
                 the prefix (`etcdctl del --prefix`) and restore again"
            )));
        }
        Ok(record)
    }

    /// The value in etcd.
    pub(super) fn value(self) -> Vec<u8> {
        serde_json::to_vec(&self).unwrap_or_default()
    }
}

/// The mapping of the prefix, by its record.
///
/// # Errors
/// If the record is of a newer program or of an unfinished restore, or etcd fails.
pub(super) async fn read(client: &Client, prefix: &str) -> Result<Mapping, StoreError> {
    let plain = Mapping::new(prefix, 0);
    let request = RangeRequest { key: plain.record(), ..RangeRequest::default() };
    let found: RangeResponse = client.call(RANGE, request, Repeat::Safe).await?;
    let record = found.kvs.first().map(StoreRecord::read).transpose()?;
    Ok(record.map_or(plain, |record| Mapping::new(prefix, record.revision_offset)))
}

/// The mapping of the prefix, whose record is written if it is new.
///
/// # Errors
/// As of [`read`].
pub(super) async fn claim(client: &Client, prefix: &str) -> Result<Mapping, StoreError> {
    let plain = Mapping::new(prefix, 0);
    let key = plain.record();
    let request = TxnRequest {
        compare: vec![CompareRequest::version(key.clone(), 0)],
        success: vec![RequestOp::put(key.clone(), StoreRecord::NEW.value(), 0)],
        failure: vec![RequestOp::read(key)],
    };
    // Written twice, the second attempt reads the first one's record.
    let claimed: TxnResponse = client.call(TXN, request, Repeat::Safe).await?;
    if claimed.succeeded {
        return Ok(plain);
    }
    let record = claimed.into_first().as_ref().map(StoreRecord::read).transpose()?;
    Ok(record.map_or(plain, |record| Mapping::new(prefix, record.revision_offset)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_format_and_an_unfinished_restore_are_refused() {
        let key = Mapping::new("/registry/", 0).record();
        let read = |value: Vec<u8>| {
            StoreRecord::read(&KeyValue { key: key.clone().into(), value: value.into(), ..KeyValue::default() })
        };
        let restoring = StoreRecord::restoring(7);
        assert_eq!(read(restoring.restored().value()).map(|record| record.revision_offset), Ok(7));
        assert_eq!(read(StoreRecord::NEW.value()), Ok(StoreRecord::NEW));
        let refused = |value| read(value).unwrap_err().to_string();
        assert!(refused(restoring.value()).contains("a restore has not ended"));
        // A later version may have fields that this program doesn't know.
        let newer = br#"{"format": 2, "restoring": false, "other": 1}"#.to_vec();
        let why = "etcd: /registry says format 2, this program reads up to 1: use the newer coracle";
        assert!(refused(newer).starts_with(why));
        for bad in [&b"{}"[..], b"k8s", b"\xff"] {
            assert!(refused(bad.to_vec()).starts_with("etcd: /registry is no record of a store"));
        }
    }
}
