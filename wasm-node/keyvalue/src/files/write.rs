//! Applies one write to a store: checked first, then done as a whole or not at all.

use std::collections::BTreeMap;

use redb::{ReadableTable as _, Table, WriteTransaction};
use runtime_api::keyvalue::{StoreError, Value, Write, Written};

use super::namespace::{PAIRS, USAGE, read_value};
use crate::{KEY_COST_BYTES, Quota};

/// New values of keys; `None` deletes.
type Changes<'a> = BTreeMap<&'a str, Option<Vec<u8>>>;

/// The tables of one transaction.
pub(super) struct Tables<'t> {
    pairs: Table<'t, (&'static str, &'static str), &'static [u8]>,
    usage: Table<'t, &'static str, u64>,
    quota: Quota,
    may_grow: bool,
    bytes: u64,
    keys: u64,
    revision: u64,
    changed: bool,
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction, quota: Quota, may_grow: bool) -> Result<Self, redb::Error> {
        let pairs = transaction.open_table(PAIRS)?;
        let usage = transaction.open_table(USAGE)?;
        let known = |name: &str| Ok::<_, redb::Error>(usage.get(name)?.map_or(0, |kept| kept.value()));
        let (bytes, keys, revision) = (known("bytes")?, known("keys")?, known("revision")?);
        Ok(Self { pairs, usage, quota, may_grow, bytes, keys, revision, changed: false })
    }

    /// Stores the new usage; returns whether anything changed.
    pub(super) fn close(mut self) -> Result<bool, redb::Error> {
        if self.changed {
            for (name, now) in [("bytes", self.bytes), ("keys", self.keys), ("revision", self.revision)] {
                self.usage.insert(name, now)?;
            }
        }
        Ok(self.changed)
    }

    fn get(&self, bucket: &str, key: &str) -> Result<Option<Value>, redb::Error> {
        Ok(self.pairs.get((bucket, key))?.and_then(|kept| read_value(kept.value())))
    }

    pub(super) fn write(&mut self, write: Write) -> Result<Result<Written, StoreError>, redb::Error> {
        match write {
            Write::Set { bucket, pairs } => {
                let changes = pairs.iter().map(|(key, value)| (key.as_str(), Some(value.clone()))).collect();
                Ok(self.change(&bucket, changes)?.map(|()| Written::Done))
            }
            Write::Delete { bucket, keys } => {
                let changes = keys.iter().map(|key| (key.as_str(), None)).collect();
                Ok(self.change(&bucket, changes)?.map(|()| Written::Done))
            }
            Write::Increment { bucket, key, delta } => {
                let number = match self.get(&bucket, &key)? {
                    None => Ok(delta),
                    Some(value) => add(&value.bytes, delta),
                };
                let number = match number {
                    Ok(number) => number,
                    Err(error) => return Ok(Err(error)),
                };
                let changes = [(key.as_str(), Some(number.to_string().into_bytes()))].into();
                Ok(self.change(&bucket, changes)?.map(|()| Written::Number(number)))
            }
            Write::Swap { bucket, key, seen, value } => {
                let now = self.get(&bucket, &key)?;
                if now.as_ref().map(|now| now.revision) != seen {
                    return Ok(Ok(Written::Stale(now)));
                }
                let changes = [(key.as_str(), Some(value))].into();
                Ok(self.change(&bucket, changes)?.map(|()| Written::Done))
            }
        }
    }

    fn change(&mut self, bucket: &str, changes: Changes<'_>) -> Result<Result<(), StoreError>, redb::Error> {
        let (mut bytes, mut keys) = (self.bytes, self.keys);
        for (key, value) in &changes {
            let cost = |length: usize| (bucket.len() + key.len() + length) as u64 + KEY_COST_BYTES;
            if let Some(kept) = self.pairs.get((bucket, *key))? {
                bytes = bytes.saturating_sub(cost(kept.value().len() - size_of::<u64>()));
                keys = keys.saturating_sub(1);
            }
            if let Some(value) = value {
                bytes += cost(value.len());
                keys += 1;
            }
        }
        // A namespace over its quota can still shrink.
        if bytes > self.quota.bytes && bytes > self.bytes {
            return Ok(Err(StoreError::BytesUsedUp(self.quota.bytes)));
        }
        if keys > self.quota.keys && keys > self.keys {
            return Ok(Err(StoreError::KeysUsedUp(self.quota.keys)));
        }
        if !self.may_grow && bytes > self.bytes {
            return Ok(Err(StoreError::DiskFull));
        }
        for (key, value) in changes {
            match value {
                None => self.changed |= self.pairs.remove((bucket, key))?.is_some(),
                Some(value) => {
                    self.revision += 1;
                    let kept = [&self.revision.to_le_bytes(), value.as_slice()].concat();
                    self.pairs.insert((bucket, key), kept.as_slice())?;
                    self.changed = true;
                }
            }
        }
        (self.bytes, self.keys) = (bytes, keys);
        Ok(Ok(()))
    }
}

/// A number is stored as decimal digits, which a guest reads like any value.
fn add(kept: &[u8], delta: i64) -> Result<i64, StoreError> {
    let number =
        std::str::from_utf8(kept).ok().and_then(|text| text.parse::<i64>().ok()).ok_or(StoreError::NoNumber)?;
    number.checked_add(delta).ok_or(StoreError::Overflow)
}
