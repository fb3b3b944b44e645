//! One namespace's shared store for one container: operations as calls of scripts.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use runtime_api::keyvalue::{
    BATCH_BYTES_MAX, BUCKET_BYTES_MAX, KEY_BYTES_MAX, KeyvalueStore, Page, StoreError, VALUE_BYTES_MAX, Value, Write,
    Written, check_batch, check_key,
};
use tokio::sync::Semaphore;

use super::scripts::{self, Call, READ, REVISION_BYTES, ScriptReply, WRITE};
use super::{Keys, SharedStores};
use crate::{KEY_COST_BYTES, PAGE_KEYS_MAX};

/// Maximum bytes of a stored value.
const STORED_BYTES_MAX: usize = VALUE_BYTES_MAX + REVISION_BYTES;
/// Maximum bytes of a field: a bucket, NUL and a key.
const FIELD_BYTES_MAX: usize = BUCKET_BYTES_MAX + 1 + KEY_BYTES_MAX;

/// A namespace's shared store for one container.
pub(crate) struct SharedStore {
    stores: Arc<SharedStores>,
    keys: Keys,
    calls: Arc<Semaphore>,
}

/// No bucket's name contains NUL, so fields of one bucket are together and in the order of their keys.
fn field(bucket: &str, key: &str) -> Vec<u8> {
    [bucket.as_bytes(), b"\0", key.as_bytes()].concat()
}

impl SharedStore {
    pub(super) fn new(stores: Arc<SharedStores>, keys: Keys, calls: Arc<Semaphore>) -> Self {
        Self { stores, keys, calls }
    }

    fn read(&self, operation: &str, most: usize, answer_bytes: usize) -> Call {
        let mut call = Call::new(&READ, answer_bytes);
        self.keys.read().for_each(|key| call.key(key));
        call.arg(operation).arg(most.to_string());
        call
    }

    async fn call(&self, call: Call) -> Result<ScriptReply, StoreError> {
        self.stores.call(call, Some(&self.calls)).await
    }

    fn writing(&self, operation: &str, answer_bytes: usize) -> Call {
        let quota = self.stores.quota;
        let mut call = Call::new(&WRITE, answer_bytes);
        self.keys.all().for_each(|key| call.key(key));
        call.arg(operation).arg(self.keys.member.as_str());
        for number in [quota.bytes, quota.keys, KEY_COST_BYTES, STORED_BYTES_MAX as u64] {
            call.arg(number.to_string());
        }
        call
    }

    fn write_call(&self, write: Write) -> Call {
        match write {
            Write::Set { bucket, pairs } => {
                let mut call = self.writing("set", 0);
                // The last value of a key counts.
                let last: BTreeMap<String, Vec<u8>> = pairs.into_iter().collect();
                for (key, value) in last {
                    call.arg(field(&bucket, &key)).arg(value);
                }
                call
            }
            Write::Delete { bucket, keys } => {
                let mut call = self.writing("delete", 0);
                for key in keys {
                    call.arg(field(&bucket, &key));
                }
                call
            }
            Write::Increment { bucket, key, delta } => {
                let mut call = self.writing("increment", 0);
                call.arg(field(&bucket, &key)).arg(delta.to_string());
                call
            }
            Write::Swap { bucket, key, seen, value } => {
                let mut call = self.writing("swap", STORED_BYTES_MAX);
                let seen = seen.map(|revision| format!("{revision:016}")).unwrap_or_default();
                call.arg(field(&bucket, &key)).arg(seen).arg(value);
                call
            }
        }
    }

    fn written(&self, answer: ScriptReply) -> Result<Written, StoreError> {
        let quota = self.stores.quota;
        match answer.parts()? {
            (kind, None) if kind == "done" => Ok(Written::Done),
            (kind, None) if kind == "bytes" => Err(StoreError::BytesUsedUp(quota.bytes)),
            (kind, None) if kind == "keys" => Err(StoreError::KeysUsedUp(quota.keys)),
            (kind, Some(sum)) if kind == "number" => {
                Ok(Written::Number(scripts::text(sum)?.parse().map_err(|_| StoreError::Foreign)?))
            }
            (kind, Some(now)) if kind == "stale" => Ok(Written::Stale(scripts::stored(now)?)),
            _ => Err(StoreError::Foreign),
        }
    }
}

/// The content of an answer of this kind.
fn content(answer: ScriptReply, kind: &str) -> Result<redis::Value, StoreError> {
    match answer.parts()? {
        (found, Some(content)) if found == kind => Ok(content),
        _ => Err(StoreError::Foreign),
    }
}

#[async_trait]
impl KeyvalueStore for SharedStore {
    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Value>, StoreError> {
        check_key(key)?;
        let mut call = self.read("get", STORED_BYTES_MAX, STORED_BYTES_MAX);
        call.arg(field(bucket, key));
        scripts::stored(content(self.call(call).await?, "value")?)
    }

    async fn exists(&self, bucket: &str, key: &str) -> Result<bool, StoreError> {
        check_key(key)?;
        let mut call = self.read("exists", 0, 0);
        call.arg(field(bucket, key));
        match content(self.call(call).await?, "exists")? {
            redis::Value::Int(found) => Ok(found == 1),
            _ => Err(StoreError::Foreign),
        }
    }

    async fn get_many(&self, bucket: &str, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        check_batch(keys.len())?;
        keys.iter().try_for_each(|key| check_key(key))?;
        let mut call = self.read("many", BATCH_BYTES_MAX, BATCH_BYTES_MAX + keys.len() * (REVISION_BYTES + 16));
        for key in keys {
            call.arg(field(bucket, key));
        }
        let redis::Value::Array(found) = content(self.call(call).await?, "values")? else {
            return Err(StoreError::Foreign);
        };
        if found.len() != keys.len() {
            return Err(StoreError::Foreign);
        }
        found.into_iter().map(|value| Ok(scripts::stored(value)?.map(|value| value.bytes))).collect()
    }

    async fn list(&self, bucket: &str, cursor: Option<&str>) -> Result<Page, StoreError> {
        let mut call = self.read("names", FIELD_BYTES_MAX, (PAGE_KEYS_MAX + 1) * (FIELD_BYTES_MAX + 16));
        // Exclusive after a cursor, inclusive at a bucket's start; its end is the next byte after NUL.
        let from = match cursor {
            Some(cursor) => [b"(".as_slice(), &field(bucket, cursor)].concat(),
            None => [b"[".as_slice(), &field(bucket, "")].concat(),
        };
        let to = [b"(".as_slice(), bucket.as_bytes(), b"\x01"].concat();
        call.arg(from).arg(to).arg((PAGE_KEYS_MAX + 1).to_string());
        let names = scripts::names(content(self.call(call).await?, "names")?)?;
        let prefix = bucket.len() + 1;
        let keys = names.into_iter().map(|name| name.get(prefix..).map(str::to_owned).ok_or(StoreError::Foreign));
        let mut keys: Vec<String> = keys.collect::<Result<_, _>>()?;
        let more = keys.len() > PAGE_KEYS_MAX;
        keys.truncate(PAGE_KEYS_MAX);
        let cursor = if more { keys.last().cloned() } else { None };
        Ok(Page { keys, cursor })
    }

    async fn write(&self, write: Write) -> Result<Written, StoreError> {
        write.check()?;
        let answer = self.call(self.write_call(write)).await?;
        self.written(answer)
    }
}
