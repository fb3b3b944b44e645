//! Each promise of the docs names a test that exists.

use std::fs;

use super::{check, read, root};

/// The (test, file) pairs that a row's last cell names: tests stand before the file that holds them, or are in the same file as the
/// last one named.
pub(super) fn proofs<'a>(cell: &'a str, same: &mut &'a str) -> Vec<(Option<&'a str>, &'a str)> {
    let mut found = Vec::new();
    for clause in cell.split(';') {
        let mut tests: Vec<&str> = Vec::new();
        for quoted in clause.split('`').skip(1).step_by(2) {
            if quoted.contains('/') {
                *same = quoted;
                if tests.is_empty() {
                    found.push((None, quoted));
                }
                found.extend(tests.drain(..).map(|test| (Some(test), quoted)));
            } else if is_name(quoted) {
                tests.push(quoted);
            }
        }
        found.extend(tests.into_iter().map(|test| (Some(test), *same)));
    }
    found
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

pub(super) fn holds_test(text: &str, name: &str) -> bool {
    [format!("fn {name}("), format!("def {name}("), format!("{name}()"), format!("# {name}")]
        .iter()
        .any(|form| text.contains(form.as_str()))
}

#[test]
fn each_promise_is_proved_by_a_test_that_exists() {
    let page = read("docs/compatibility.md");
    let (_, promises) = page.split_once("## Promises").expect("a part on promises");
    let mut problems = Vec::new();
    let mut same = "";
    let mut numbers = Vec::new();
    for row in promises.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [number, promise, proof] = cells[..] else {
            problems.push(format!("a row of three cells is expected: {row}"));
            continue;
        };
        let Ok(number) = number.parse::<usize>() else { continue };
        numbers.push(number);
        if proof.starts_with("pending") {
            continue;
        }
        let proofs = proofs(proof, &mut same);
        if proofs.is_empty() {
            problems.push(format!("promise {number} ({promise}) names no test: write it, or say pending"));
        }
        for (test, file) in proofs {
            if file.starts_with("../") {
                continue; // the acceptance scripts stand beside the repository
            }
            if !root().join(file).exists() {
                problems.push(format!("promise {number}: {file} does not exist"));
            }
            let Some(test) = test else { continue };
            if fs::read_to_string(root().join(file)).is_ok_and(|text| !holds_test(&text, test)) {
                problems.push(format!("promise {number}: {file} has no test {test}"));
            }
        }
    }
    assert!(numbers.len() > 40, "promises are found: {numbers:?}");
    if !numbers.iter().copied().eq(1..=numbers.len()) {
        problems.push(format!("promises are numbered without gaps: {numbers:?}"));
    }
    check(&problems);
}
