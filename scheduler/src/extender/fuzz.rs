//! Fuzz target of extenders' answers: each is parsed or rejected, and adds no node that was not in the request.

use bolero::check;

use super::{Verdict, Verdicts, wire};

/// Fragments of answers, and fragments that break them.
const PIECES: [&str; 23] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    "null",
    "\"Nodes\":",
    "{\"items\":[{\"metadata\":{\"name\":\"a\"}}]}",
    "\"NodeNames\":",
    "[\"a\",\"b\"]",
    "[\"other\"]",
    "\"FailedNodes\":",
    "{\"a\":\"full\"}",
    "\"FailedAndUnresolvableNodes\":",
    "\"Error\":",
    "\"it broke\"",
    "{\"Host\":\"a\",\"Score\":9223372036854775807}",
    "{\"host\":\"b\",\"score\":-9223372036854775808}",
    "{\"Host\":\"other\"}",
    "\"NodeNameToMetaVictims\":",
    "{\"a\":{\"Pods\":[{\"UID\":\"u\"},null],\"NumPDBViolations\":-1}}",
    "{\"a\":null}",
    "7",
];

#[test]
fn responses_of_an_extender_are_bounded_by_the_request() {
    check!().with_type::<(Vec<u8>, bool, i64)>().for_each(|(order, by_name, weight)| {
        let answer: String = order.iter().take(40).map(|at| PIECES[usize::from(*at) % PIECES.len()]).collect();
        let mut verdicts = Verdicts::new(["a".to_owned(), "b".to_owned()]);
        if let Ok(filtered) = wire::filtered(answer.as_bytes(), "http://e", *by_name, &verdicts.fitting()) {
            assert!(filtered.left.iter().all(|name| verdicts.of(name).is_some()));
            verdicts.filter(filtered);
        }
        if let Ok(scores) = wire::priorities(answer.as_bytes(), "u") {
            verdicts.score(scores, *weight);
        }
        assert!(verdicts.of("other").is_none() && verdicts.fitting().len() <= 2);
        let _ = wire::bound(answer.as_bytes(), "u");
        let _ = wire::meta_victims(answer.as_bytes(), "u");
        let refused = |verdict: Option<&Verdict>| matches!(verdict, Some(Verdict::Refused { .. }));
        assert!(refused(verdicts.of("a")) != verdicts.fitting().contains("a"));
    });
}
