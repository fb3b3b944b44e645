//! Keys, values and revisions in etcd. A value is [`MAGIC`] and the record, as in the embedded store: the head of the
//! record, and the object's JSON at the end. A revision is etcd's, plus the offset of a restored backup.

use std::sync::Arc;

use machinery_api::KeySpace;

use super::super::{Entry, Record, Revision, StoreError};
use super::messages::{KeyValue, ResponseHeader};

/// The beginning of each value: a value of another program, such as upstream's `k8s\0`, is no record.
pub(super) const MAGIC: &[u8] = b"coracle\n";

/// How the store's keys and revisions are named in etcd.
#[derive(Debug, Clone)]
pub(super) struct Mapping {
    space: KeySpace,
    /// Added to etcd's revisions. A restore raises revisions by it: etcd's own can be raised by writes alone.
    offset: Revision,
}

impl Mapping {
    pub(super) fn new(prefix: &str, offset: Revision) -> Self {
        Self { space: KeySpace::new(prefix), offset }
    }

    /// The offset of revisions.
    pub(super) fn offset(&self) -> Revision {
        self.offset
    }

    /// The key in etcd.
    pub(super) fn key(&self, key: &str) -> Result<Vec<u8>, StoreError> {
        let place = self.space.place(key);
        let place = place.ok_or_else(|| StoreError::Unavailable(format!("{key} is no key of an object")))?;
        Ok(place.into_bytes())
    }

    /// The key of the store's record, which is outside of all keys.
    pub(super) fn record(&self) -> Vec<u8> {
        self.space.prefix().into()
    }

    /// The bounds of all keys in etcd.
    pub(super) fn all(&self) -> (Vec<u8>, Vec<u8>) {
        let (from, to) = self.space.all();
        (from.into_bytes(), to.into_bytes())
    }

    /// The bound of a range in etcd.
    pub(super) fn bound(&self, bound: &str) -> Vec<u8> {
        self.space.bound(bound).into_bytes()
    }

    /// The key and its entry.
    pub(super) fn entry(&self, kv: &KeyValue) -> Result<Entry, StoreError> {
        let record = match kv.value.strip_prefix(MAGIC) {
            Some(bytes) => Record::decode(bytes).ok_or("was written by a newer version of Coracle, or is damaged"),
            None => Err("was not written by Coracle: name another prefix with --etcd-prefix"),
        };
        let named = self.space.key_at(&kv.key).ok_or("is no text");
        match named.and_then(|key| Ok((key, record?))) {
            Ok((key, record)) => Ok(Entry {
                key: key.into(),
                record,
                created: self.revision(kv.create_revision),
                modified: self.revision(kv.mod_revision),
            }),
            Err(why) => Err(StoreError::Damaged(format!("etcd: {} {why}", String::from_utf8_lossy(&kv.key)))),
        }
    }

    /// The store's name of a changed key; none: it isn't the store's.
    pub(super) fn changed(&self, kv: &KeyValue) -> Option<Arc<str>> {
        self.space.key_at(&kv.key).map(Arc::from)
    }

    /// The revision in a header, which every response has.
    pub(super) fn header_revision(&self, header: Option<ResponseHeader>) -> Revision {
        header.map_or(0, |header| self.revision(header.revision))
    }

    /// The store's name of a revision of etcd; 0 stays 0.
    pub(super) fn revision(&self, of_etcd: i64) -> Revision {
        match revision(of_etcd) {
            0 => 0,
            revision => revision.saturating_add(self.offset),
        }
    }

    /// etcd's revision for a read; 0 reads the newest.
    ///
    /// # Errors
    /// If the revision is of the time before a restore.
    pub(super) fn read_at(&self, at: Option<Revision>) -> Result<i64, StoreError> {
        match at {
            None | Some(0) => Ok(0),
            Some(at) if at > self.offset => Ok(number(at - self.offset)),
            Some(_) => Err(StoreError::Compacted(self.offset)),
        }
    }

    /// etcd's revision for the comparison with a key's last write; 0 for an absent key. One of the time before a restore
    /// is no key's.
    pub(super) fn compared(&self, modified: Revision) -> i64 {
        match modified {
            0 => 0,
            modified => modified.checked_sub(self.offset).filter(|at| *at > 0).map_or(-1, number),
        }
    }

    /// etcd's first revision after one.
    pub(super) fn after(&self, after: Revision) -> i64 {
        number(after.saturating_sub(self.offset).saturating_add(1))
    }
}

/// The value of a record.
pub(super) fn value(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MAGIC.len() + record.bytes_len());
    bytes.extend_from_slice(MAGIC);
    record.write_to(&mut bytes);
    bytes
}

/// A revision of etcd, which is never negative.
pub(super) fn revision(number: i64) -> Revision {
    Revision::try_from(number).unwrap_or(0)
}

/// A revision as etcd's type.
pub(super) fn number(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_no_records_are_named() {
        let mapping = Mapping::new("/registry", 0);
        let record = Record::plain(br#"{"a":1}"#);
        let read = |value: Vec<u8>| {
            let (key, value) = (b"/registry/pods/a".to_vec().into(), value.into());
            mapping.entry(&KeyValue { key, value, create_revision: 3, mod_revision: 5, ..KeyValue::default() })
        };
        let found = Entry { key: "/registry/pods/a".into(), record: record.clone(), created: 3, modified: 5 };
        assert_eq!(read(value(&record)).unwrap(), found);
        let refused = |value: &[u8]| read(value.to_vec()).unwrap_err().to_string();
        assert_eq!(
            refused(b"k8s\0..."),
            "etcd: /registry/pods/a was not written by Coracle: name another prefix with --etcd-prefix"
        );
        assert!(refused(b"coracle\n\xff").contains("newer version"));
    }
    #[test]
    fn revisions_are_higher_after_a_restore() {
        let mapping = Mapping::new("/registry", 1000);
        assert_eq!((mapping.revision(7), mapping.revision(0)), (1007, 0));
        assert_eq!(mapping.read_at(Some(1007)), Ok(7));
        assert_eq!((mapping.read_at(None), mapping.read_at(Some(0))), (Ok(0), Ok(0)));
        for before in [1, 7, 1000] {
            assert_eq!(mapping.read_at(Some(before)), Err(StoreError::Compacted(1000)));
            assert_eq!(mapping.compared(before), -1, "no key has it");
        }
        assert_eq!((mapping.compared(0), mapping.compared(1007)), (0, 7));
        assert_eq!((mapping.after(1007), mapping.after(0)), (8, 1));
    }
}
