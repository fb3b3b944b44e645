//! Tests decoding, encoding and compression of records.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn bytes_of(record: &Record) -> Vec<u8> {
    let mut out = Vec::new();
    record.write_to(&mut out);
    assert_eq!(out.len(), record.bytes_len());
    out
}

#[test]
fn a_compressed_record_keeps_its_content() {
    let mut packers = (Packer::default(), Packer::default());
    let object = |n: usize| {
        let filler: serde_json::Map<_, _> = (0..30).map(|i| (format!("field{i}"), json!(i * 7 % 11))).collect();
        json!({"metadata": {"name": format!("p{n}"), "namespace": "ns", "labels": {"app": "x"}}, "spec": filler})
    };
    let records: Vec<Record> = (0..9).map(|n| Record::of(&object(n))).collect();
    let before: Vec<Vec<u8>> = records.iter().map(bytes_of).collect();
    let shared = records[8].clone();
    let mut pack = |record: &Record| record.pack(&mut packers.0, &mut packers.1);
    assert!(records.iter().all(|record| record.is_plain() && pack(record) && pack(record)));
    assert!(!shared.is_plain(), "for all who share it");
    for (n, (record, before)) in records.iter().zip(&before).enumerate() {
        assert_eq!((&bytes_of(record), record.bytes_len()), (before, before.len()));
        assert_eq!(*record, Record::of(&object(n)));
        assert_eq!(record.body().len(), record.body_len());
        assert_eq!(record.labels().collect::<Vec<_>>(), [("app", "x")]);
    }
}

fn managers() -> Managers {
    let entry = |manager: &str, text: &str| {
        serde_json::json!({"manager": manager, "operation": "Apply", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {text: {}}}})
    };
    Managers::of_value(&json!([entry("a", "f:x"), entry("b", "f:y")])).unwrap()
}

#[test]
fn a_records_managers_are_checked() {
    let facts = Facts { managers: managers(), ..Facts::default() };
    let record = Record::new(b"{}", &facts);
    let bytes = bytes_of(&record);
    assert_eq!(Record::decode(&bytes).as_ref(), Some(&record));
    for (at, byte) in bytes.iter().enumerate().take(bytes.len() - 2) {
        let mut damaged = bytes.clone();
        damaged[at] = !byte;
        if let Some(read) = Record::decode(&damaged) {
            assert_eq!(bytes_of(&read), damaged, "byte {at}");
        }
    }
}

fn nothing(_: &Value) -> Option<(u64, Vec<String>)> {
    None
}

proptest! {
    #[test]
    fn built_records_are_read(
        labels in proptest::collection::btree_map(".{0,12}", ".{0,12}", 0..5),
        fields in proptest::option::of(proptest::collection::vec(".{0,12}", 0..5)),
        namespace in "[a-z]{0,63}", deleting in any::<bool>(), comma in any::<bool>(),
        schema_generation in any::<u32>(), managed in any::<bool>(), body in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let facts = Facts {
            stamp_at: body.len() / 2,
            comma, deleting, namespace: &namespace, schema_generation,
            labels: labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
            fields: fields.clone().map(|values| (fingerprint(["a", "b"]), values)),
            managers: if managed { managers() } else { Managers::default() },
        };
        let record = Record::new(&body, &facts);
        let again = Record::decode(&bytes_of(&record)).unwrap();
        prop_assert_eq!(&again, &record);
        prop_assert_eq!(&*again.body(), &body[..]);
        prop_assert!(again.labels().eq(labels.iter().map(|(key, value)| (key.as_str(), value.as_str()))));
        prop_assert_eq!(again.fields().collect::<Vec<_>>(), fields.clone().unwrap_or_default());
        prop_assert_eq!(again.fields_named() != 0, fields.is_some());
        prop_assert_eq!(again.stamp(), (body.len() > 1).then_some((body.len() / 2, comma)));
        prop_assert_eq!((again.is_deleting(), again.namespace_len()), (deleting, namespace.len()));
        prop_assert_eq!(again.schema_generation(), schema_generation);
        prop_assert_eq!(again.managers().is_empty(), !managed);
    }

    #[test]
    fn hostile_heads_never_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..120), small in any::<bool>(), sound in any::<bool>()
    ) {
        // Plausible lengths: their other bytes are zero.
        for at in (4..bytes.len().min(FIXED_BYTES)).filter(|at| small && at % 4 > 0) {
            bytes[at] = 0;
        }
        if let (true, Some(head)) = (sound, bytes.first_chunk_mut::<2>()) {
            *head = [VERSION, COMMA];
        }
        if let Some(record) = Record::decode(&bytes) {
            let _ = (record.labels().count(), record.fields().count(), record.is_deleting(), record.namespace_len());
            prop_assert!(record.stamp().is_none_or(|(at, _)| at <= record.body().len()));
            prop_assert_eq!(bytes_of(&record), bytes);
        }
    }

    #[test]
    fn any_cut_is_noticed_or_is_the_bodys(at in any::<proptest::sample::Index>()) {
        let body = br#"{"metadata":{}}"#;
        let record = Record::new(body, &Facts { labels: vec![("app", "web")], ..Facts::default() });
        let at = at.index(record.bytes_len());
        let cut = Record::decode(&bytes_of(&record)[..at]);
        prop_assert_eq!(cut.is_some(), at >= record.bytes_len() - body.len());
    }
}

#[test]
fn newer_heads_are_refused() {
    let record = Record::plain(b"{}");
    for (at, value) in [(0, VERSION + 1), (0, VERSION), (1, 0x80), (28, 1)] {
        let mut bytes = bytes_of(&record);
        bytes[at] = value;
        bytes.push(0);
        assert!(Record::decode(&bytes).is_none(), "byte {at}");
    }
}

#[test]
fn records_without_a_header_are_parsed_once() {
    let object = json!({"kind": "Pod", "metadata": {
        "name": "x", "namespace": "a", "labels": {"b": "2", "a": "1"}, "deletionTimestamp": "2026-01-01T00:00:00Z",
    }});
    let record = Record::read(object.to_string().as_bytes(), |value| {
        Some((7, vec![value["kind"].as_str().unwrap_or("").to_owned()]))
    });
    assert_eq!(record.labels().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
    assert_eq!((record.fields_named(), record.fields().collect::<Vec<_>>()), (7, vec!["Pod"]));
    assert!(record.is_deleting() && record.namespace_len() == 1);
    for object in [object.clone(), json!({"metadata": {"resourceVersion": "7"}}), json!({"metadata": 7}), json!([])] {
        assert_eq!(Record::of(&object), Record::read(object.to_string().as_bytes(), nothing), "{object}");
    }
    let (at, comma) = record.stamp().unwrap();
    assert!(record.body()[..at].ends_with(b"\"metadata\":{") && comma);
    let stamped = Record::read(br#"{"metadata":{"resourceVersion":"7"}}"#, nothing);
    assert_eq!((&*stamped.body(), stamped.stamp()), (&br#"{"metadata":{}}"#[..], Some((13, false))));
    for hostile in [&b"\x01{["[..], b"", b"[]", b"{\"metadata\":7}", b"\xff"] {
        let record = Record::read(hostile, nothing);
        assert_eq!((&*record.body(), record.stamp()), (hostile, None));
    }
}

#[test]
fn fingerprints_distinguish_lists() {
    let lists: [&[&str]; 5] = [&[], &[""], &["ab"], &["a", "b"], &["b", "a"]];
    for (i, one) in lists.iter().enumerate() {
        for (j, other) in lists.iter().enumerate() {
            assert_eq!(fingerprint(one.iter().copied()) == fingerprint(other.iter().copied()), i == j);
        }
    }
}
