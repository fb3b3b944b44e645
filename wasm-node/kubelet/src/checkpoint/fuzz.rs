//! Fuzz targets of the checkpoint's reader: any bytes yield a record or an error.

use bolero::check;
use machinery_client::checkpoint::{decode, encode};

use super::record::{self, Origin};

/// Fragments of bodies, so that random inputs often parse partly.
const PIECES: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"1",
    b"\"\"",
    b"\"a\"",
    b"\"origin\":",
    b"\"pod\":",
    b"\"metadata\":",
    b"\"uid\":",
    b"\"name\":",
    b"\"namespace\":",
    b"\"spec\":",
    b"\"containers\":[]",
    b"\"data\":",
    b"\"kind\":",
    b"\"Secret\"",
    b"\"AA==\"",
    b"\"podCidr\":\"10.0.0.0/24\"",
    b"\"nodeName\":\"a\"",
    b"\"nodeUid\":\"a\"",
    b"\xff",
    b"\n",
];

fn decode_all(body: &[u8]) {
    let origin = Origin { node_name: "a".into(), node_uid: "a".into() };
    let _ = record::decode_node(body, "a");
    if let Ok(pod) = record::decode_pod(body, "a", "a", Some(&origin)) {
        assert_eq!(pod.uid(), "a", "only the file's own pod");
    }
    let _ = record::decode_source(body, "a").map(|source| source.content());
    let _ = record::decode_services(body).map(|all| all.iter().map(record::ServiceRecord::service).count());
}

#[test]
fn any_bytes_are_a_record_or_an_error() {
    check!().with_type::<(Vec<u8>, bool)>().for_each(|(bytes, raw)| {
        let pieces = || bytes.iter().flat_map(|pick| PIECES[usize::from(*pick) % PIECES.len()]).copied().collect();
        let body: Vec<u8> = if *raw { bytes.clone() } else { pieces() };
        decode_all(&body);
        assert!(decode(record::POD, &body).is_err(), "no header");
        let file = encode(record::POD, &body);
        assert_eq!(decode(record::POD, &file).unwrap(), body);
        let mut header = b"coracle-checkpoint ".to_vec();
        header.extend(&body);
        let _ = decode(record::POD, &header);
    });
}
