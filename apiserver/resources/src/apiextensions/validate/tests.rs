//! Replays upstream's validation of definitions: those of its own tests (k8s.io/apiextensions-apiserver,
//! `validation_test.go`) and random mutations, through its own conversion from v1. Each row has a definition, its
//! previous state if it is an update, and the field, reason and message of each error, in the order of Go's maps.

use std::fmt::Write as _;
use std::io::Read as _;

use apiserver_schema::Media;
use flate2::read::GzDecoder;
use serde_json::Value;

use crate::apiextensions::definitions::ROW;
use crate::field::ErrorList;

const ROWS: &[u8] = include_bytes!("../../testdata/definitions.jsonl.gz");

/// Upstream's parser continues after a reserved word in a rule and reports further errors; this one stops there.
const WAIVED: &[&str] = &["Invalid value: {\"Rule\":\"self.in \\u003e 0\""];

#[test]
fn definitions_are_refused_with_upstreams_words() {
    let (mut rows, mut wrong, mut differ) = (String::new(), String::new(), 0);
    GzDecoder::new(ROWS).read_to_string(&mut rows).expect("the rows");
    for line in rows.lines() {
        let row: Value = serde_json::from_str(line).expect("a row");
        let read = |object: &Value| crate::tests::read(&ROW, object.to_string().as_bytes(), Media::Json);
        let new = read(&row["new"]);
        let mut errors = ErrorList::new();
        match row.get("old") {
            None => super::created(&mut errors, &new),
            Some(old) => super::updated(&mut errors, &new, &read(old)),
        }
        let mut here: Vec<[String; 3]> =
            errors.into_causes().into_iter().map(|cause| [cause.field, cause.reason, cause.message]).collect();
        here.sort();
        let mut upstream: Vec<[String; 3]> = serde_json::from_value(row["errors"].clone()).expect("errors");
        upstream.sort();
        if here != upstream {
            let mut found = String::new();
            for (who, these, those) in [("upstream", &upstream, &here), ("here", &here, &upstream)] {
                let is_waived = |error: &[String; 3]| WAIVED.iter().any(|waived| error[2].starts_with(waived));
                for error in these.iter().filter(|error| !those.contains(error) && !is_waived(error)) {
                    let _ = write!(found, "\n  {who}: {error:?}");
                }
            }
            if !found.is_empty() || here.len() != upstream.len() {
                differ += 1;
                let _ = write!(wrong, "\n{} {new}{found}", row["case"]);
            }
        }
    }
    assert!(wrong.is_empty(), "{differ} differ{wrong}");
}
