//! Fuzz targets for request parts other than the object: continue tokens, selectors, options.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bolero::{ValueGenerator, check, produce};
use machinery_api::selector::{FieldSelector, LabelSelector};
use serde_json::json;

use super::page::Continue;
use apiserver_resources::options::DeleteOptions;

fn pieces(of: &'static [&'static str]) -> impl ValueGenerator<Output = String> {
    produce::<Vec<u8>>().map_gen(move |bytes| bytes.iter().map(|byte| of[usize::from(*byte) % of.len()]).collect())
}

#[test]
fn continue_tokens_stay_below_their_list() {
    let of = &["/", "a", "..", ".", "\0", "b", "//", "\u{e9}", "~"];
    check!().with_generator((pieces(of), produce::<i64>())).for_each(|(start, revision)| {
        let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start}).to_string();
        let Ok(read) = Continue::decode(&URL_SAFE_NO_PAD.encode(token)) else { return };
        assert!(!read.start.starts_with("../") && !read.start.contains("/../") && !read.start.contains("//"));
        assert_eq!(Continue::decode(&read.encode()), Ok(read), "what we read we write");
    });
}

#[test]
fn any_continue_token_is_read_or_refused() {
    check!().with_type::<(Vec<u8>, bool)>().for_each(|(bytes, encoded)| {
        let token = if *encoded { URL_SAFE_NO_PAD.encode(bytes) } else { String::from_utf8_lossy(bytes).into_owned() };
        if let Err(error) = Continue::decode(&token) {
            assert_eq!(error.status().code, 400);
        }
    });
}

#[test]
fn any_selector_is_read_or_refused() {
    let of =
        &["a", "=", "==", "!=", "!", " in ", "notin", "(", ")", ",", "\\", "\\,", "metadata.name", "\u{e9}", "<", "1"];
    check!().with_generator(pieces(of)).for_each(|text| {
        let _ = LabelSelector::parse(text);
        let Ok(fields) = FieldSelector::parse(text) else { return };
        // Printed with escapes, they parse to the same requirements; parsed ones are sorted by their printed form.
        let again = FieldSelector::parse(&fields.to_string()).unwrap();
        let sorted = |fields: &FieldSelector| {
            let mut terms: Vec<String> =
                fields.requirements.iter().map(|one| FieldSelector::from(one.clone()).to_string()).collect();
            terms.sort_unstable();
            terms
        };
        assert_eq!(sorted(&again), sorted(&fields), "{fields}");
    });
}

#[test]
fn any_options_are_read_or_refused() {
    let of = &[
        "{",
        "}",
        "\"",
        ":",
        ",",
        "gracePeriodSeconds",
        "propagationPolicy",
        "Orphan",
        "preconditions",
        "uid",
        "-1",
        "null",
        "[",
        "]",
        "dryRun",
        "All",
        "orphanDependents",
        "true",
    ];
    check!().with_generator(pieces(of)).for_each(|text| {
        if let Ok(body) = serde_json::from_str(text) {
            let _ = DeleteOptions::from_body(&body);
        }
        let value: serde_json::Value = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
        for field in ["gracePeriodSeconds", "propagationPolicy", "preconditions", "dryRun", "orphanDependents"] {
            let _ = DeleteOptions::from_body(&json!({field: value}));
        }
    });
}
