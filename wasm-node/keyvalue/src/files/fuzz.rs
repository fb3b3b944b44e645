//! Fuzz targets: guests' key-value operations against a map as model.

use std::collections::BTreeMap;
use std::sync::Arc;

use bolero::{TypeGenerator, check};
use runtime_api::KeyvalueOwner;
use runtime_api::keyvalue::{StoreError, Write, Written};
use runtime_api::ledger::{Ledger, Resource};

use super::{FileStores, Namespace, Quota};

#[derive(Debug, Clone, TypeGenerator)]
enum StoreOperation {
    Set(u8, u8, u16),
    Delete(u8, u8),
    Add(u8, u8, i64),
    Swap(u8, u8, bool),
    List(u8),
}

const STEPS_MAX: usize = 6;

fn names(bucket: u8, key: u8) -> (String, String) {
    (["", "b", "b0"][usize::from(bucket % 3)].to_owned(), ["", "k", "0k", "kk"][usize::from(key % 4)].to_owned())
}

fn write(store: &Arc<Namespace>, write: Write) -> Result<Written, StoreError> {
    let mut answer = store.submit(write)?;
    store.commit();
    answer.try_recv().expect("committed")
}

fn step(store: &Arc<Namespace>, model: &mut BTreeMap<(String, String), Vec<u8>>, step: &StoreOperation) {
    match *step {
        StoreOperation::Set(bucket, key, length) => {
            let ((bucket, key), value) = (names(bucket, key), vec![b'7'; usize::from(length % 40)]);
            write(store, Write::Set { bucket: bucket.clone(), pairs: vec![(key.clone(), value.clone())] }).unwrap();
            model.insert((bucket, key), value);
        }
        StoreOperation::Delete(bucket, key) => {
            let (bucket, key) = names(bucket, key);
            write(store, Write::Delete { bucket: bucket.clone(), keys: vec![key.clone()] }).unwrap();
            model.remove(&(bucket, key));
        }
        StoreOperation::Add(bucket, key, delta) => {
            let at = names(bucket, key);
            let known = model.get(&at).map(|kept| String::from_utf8_lossy(kept).parse::<i64>());
            let wanted = match known {
                None => Ok(delta),
                Some(Err(_)) => Err(StoreError::NoNumber),
                Some(Ok(number)) => number.checked_add(delta).ok_or(StoreError::Overflow),
            };
            let got = write(store, Write::Increment { bucket: at.0.clone(), key: at.1.clone(), delta });
            assert_eq!(got, wanted.clone().map(Written::Number));
            if let Ok(number) = wanted {
                model.insert(at, number.to_string().into_bytes());
            }
        }
        StoreOperation::Swap(bucket, key, fresh) => {
            let at = names(bucket, key);
            let now = store.get(&at.0, &at.1).unwrap();
            assert_eq!(now.as_ref().map(|value| &value.bytes), model.get(&at));
            let seen = if fresh { now.map(|value| value.revision) } else { Some(u64::MAX) };
            let swap = Write::Swap { bucket: at.0.clone(), key: at.1.clone(), seen, value: b"1".to_vec() };
            if matches!(write(store, swap).unwrap(), Written::Done) {
                assert!(fresh);
                model.insert(at, b"1".to_vec());
            }
        }
        StoreOperation::List(bucket) => {
            let (bucket, _) = names(bucket, 0);
            let wanted: Vec<_> = model.keys().filter(|(of, _)| *of == bucket).map(|(_, key)| key.clone()).collect();
            assert_eq!(store.list(&bucket, None).unwrap().keys, wanted);
        }
    }
}

#[test]
fn a_store_is_a_map_under_any_operations() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::node();
    ledger.set_limit(Resource::Descriptors, 10);
    let stores = FileStores::new(dir.path().join("keyvalue"), Quota { bytes: 1 << 20, keys: 100 }, &ledger);
    let owner = KeyvalueOwner { namespace: "a".into(), uid: "1".into(), cluster: None };
    check!().with_type::<Vec<StoreOperation>>().for_each(|steps| {
        stores.remove(&owner).unwrap();
        let store = stores.of(&owner).unwrap();
        let mut model = BTreeMap::new();
        for one in steps.iter().take(STEPS_MAX) {
            step(&store, &mut model, one);
        }
    });
}
