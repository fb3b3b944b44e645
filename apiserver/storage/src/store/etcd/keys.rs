//! Keys and values in etcd. A value is [`MAGIC`] and the record, as in the embedded store: the head of the record, and
//! the object's JSON at the end.

use std::sync::Arc;

use machinery_api::KeySpace;

use super::super::{Entry, Record, Revision, StoreError};
use super::messages::{KeyValue, ResponseHeader};

/// The beginning of each value: a value of another program, such as upstream's `k8s\0`, is no record.
pub(super) const MAGIC: &[u8] = b"coracle\n";

/// The key in etcd.
pub(super) fn key(keys: &KeySpace, key: &str) -> Result<Vec<u8>, StoreError> {
    let place = keys.place(key).ok_or_else(|| StoreError::Unavailable(format!("{key} is no key of an object")))?;
    Ok(place.into_bytes())
}

/// The bounds of all keys in etcd.
pub(super) fn all(keys: &KeySpace) -> (Vec<u8>, Vec<u8>) {
    let (from, to) = keys.all();
    (from.into_bytes(), to.into_bytes())
}

/// The key and its entry.
pub(super) fn entry(keys: &KeySpace, kv: &KeyValue) -> Result<Entry, StoreError> {
    let record = match kv.value.strip_prefix(MAGIC) {
        Some(bytes) => Record::decode(bytes).ok_or("was written by a newer version of Coracle, or is damaged"),
        None => Err("was not written by Coracle: name another prefix with --etcd-prefix"),
    };
    let named = keys.key_at(&kv.key).ok_or("is no text");
    match named.and_then(|key| Ok((key, record?))) {
        Ok((key, record)) => Ok(Entry {
            key: key.into(),
            record,
            created: revision(kv.create_revision),
            modified: revision(kv.mod_revision),
        }),
        Err(why) => Err(StoreError::Damaged(format!("etcd: {} {why}", String::from_utf8_lossy(&kv.key)))),
    }
}

/// The store's name of a changed key; none: it isn't the store's.
pub(super) fn changed(keys: &KeySpace, kv: &KeyValue) -> Option<Arc<str>> {
    keys.key_at(&kv.key).map(Arc::from)
}

/// The value of a record.
pub(super) fn value(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MAGIC.len() + record.bytes_len());
    bytes.extend_from_slice(MAGIC);
    record.write_to(&mut bytes);
    bytes
}

/// The revision in a header, which every response has.
pub(super) fn header_revision(header: Option<ResponseHeader>) -> Revision {
    header.map_or(0, |header| revision(header.revision))
}

/// A revision of etcd, which is never negative.
pub(super) fn revision(number: i64) -> Revision {
    Revision::try_from(number).unwrap_or(0)
}

/// A revision for etcd.
pub(super) fn number(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_no_records_are_named() {
        let keys = KeySpace::new("/registry");
        let record = Record::plain(br#"{"a":1}"#);
        let read = |value: Vec<u8>| {
            let (key, value) = (b"/registry/pods/a".to_vec().into(), value.into());
            entry(&keys, &KeyValue { key, value, create_revision: 3, mod_revision: 5, version: 2 })
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
}
