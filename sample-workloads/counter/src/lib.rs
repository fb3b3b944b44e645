//! A plugin with state in `wasi:keyvalue`: it persists for the next call, the next pod, and after a crash of the node. The
//! pod's annotation grants the interface (`manifests/counter.yaml`).
#![no_std]
extern crate alloc;

use alloc::{format, string::String, string::ToString, vec::Vec};

use exports::coracle::samples::counter::Guest;
use wasi::keyvalue::atomics::{self, Cas, CasError};
use wasi::keyvalue::batch;
use wasi::keyvalue::store::{self, Bucket, Error};

wit_bindgen::generate!({ path: "wit", world: "plugin", generate_all });

/// Maximum names in the result of one call.
const NAMES_MAX: usize = 100_000;

struct Counter;

impl Guest for Counter {
    fn add(name: String, by: i64) -> Result<i64, String> {
        guest::log!("add {by} to {name}");
        atomics::increment(&open("")?, &name, by).map_err(why)
    }

    fn highest(name: String, score: i64) -> Result<i64, String> {
        let mut cas = Cas::new(&open("")?, &name).map_err(why)?;
        loop {
            let known = cas.current().map_err(why)?.and_then(|text| core::str::from_utf8(&text).ok()?.parse().ok());
            if let Some(known) = known.filter(|known| *known >= score) {
                return Ok(known);
            }
            match atomics::swap(cas, score.to_string().as_bytes()) {
                Ok(()) => return Ok(score),
                // A concurrent write came first: the new handle has the current value.
                Err(CasError::CasFailed(again)) => cas = again,
                Err(CasError::StoreError(error)) => return Err(why(error)),
            }
        }
    }

    fn read(names: Vec<String>) -> Result<Vec<Option<String>>, String> {
        let found = batch::get_many(&open("")?, &names).map_err(why)?;
        let text = |(_, value): (String, Vec<u8>)| String::from_utf8_lossy(&value).into_owned();
        Ok(found.into_iter().map(|pair| pair.map(text)).collect())
    }

    fn keep(bucket: String, key: String, value: Vec<u8>) -> Result<(), String> {
        open(&bucket)?.set(&key, &value).map_err(why)
    }

    fn names(bucket: String) -> Result<Vec<String>, String> {
        let bucket = open(&bucket)?;
        let (mut names, mut cursor) = (Vec::new(), None);
        while names.len() < NAMES_MAX {
            let page = bucket.list_keys(cursor.as_deref()).map_err(why)?;
            names.extend(page.keys);
            cursor = page.cursor;
            if cursor.is_none() {
                break;
            }
        }
        Ok(names)
    }

    fn forget(names: Vec<String>) -> Result<(), String> {
        batch::delete_many(&open("")?, &names).map_err(why)
    }
}

fn open(name: &str) -> Result<Bucket, String> {
    store::open(name).map_err(why)
}

fn why(error: Error) -> String {
    match error {
        Error::Other(text) => text,
        error => format!("{error:?}"),
    }
}

export!(Counter);
