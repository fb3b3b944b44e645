//! Fuzz target of plugins' answers and of recordings: each is parsed or rejected, and gives no verdict on a node that
//! was not in the question.

use std::sync::Arc;

use bolero::check;

use super::tests::plugin;
use super::{Answers, SCORE_MAX, wire};

/// Fragments of answers, and fragments that break them.
const PIECES: [&str; 22] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    "null",
    "{\"ok\":",
    "{\"err\":",
    "\"it broke\"",
    "\"instance-1\"",
    "{\"candidate\":0,\"reason\":\"full\",\"unresolvable\":true}",
    "{\"candidate\":1,\"reason\":\"\\u0000\\u001b\",\"unresolvable\":false}",
    "{\"candidate\":18446744073709551615,\"reason\":\"x\",\"unresolvable\":false}",
    "{\"candidate\":-1}",
    "100",
    "0",
    "-9223372036854775808",
    "\"asked\":[\"a\",\"b\"]",
    "\"refused\":{\"a\":{\"plugin\":\"P\",\"reason\":\"r\"},\"other\":{\"plugin\":\"P\"}}",
    "\"scores\":[{\"plugin\":\"P\",\"nodes\":{\"b\":9223372036854775807,\"other\":5}}]",
    "\"failed\":[]",
    "\"plugin\"",
];

#[test]
fn responses_of_a_plugin_are_bounded_by_the_request() {
    let plugins = [Arc::new(plugin())];
    check!().with_type::<Vec<u8>>().for_each(|order| {
        let answer: String = order.iter().take(60).map(|at| PIECES[usize::from(*at) % PIECES.len()]).collect();
        let _ = wire::opened(answer.as_bytes());
        if let Ok(refusals) = wire::refusals(answer.as_bytes(), 2) {
            assert!(refusals.len() <= 2 && refusals.iter().all(|refusal| refusal.candidate < 2));
            assert!(refusals.iter().all(|refusal| !refusal.reason.chars().any(char::is_control)));
        }
        if let Ok(scores) = wire::scores(answer.as_bytes(), 2) {
            assert!(scores.len() == 2 && scores.iter().all(|score| (0..=SCORE_MAX).contains(score)));
        }
        if let Ok(answers) = serde_json::from_str::<Answers>(&answer) {
            let verdicts = answers.verdicts(&plugins);
            assert!(verdicts.fitting().iter().all(|name| answers.candidates.contains(name)));
        }
    });
}
