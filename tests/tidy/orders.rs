//! What sorts compares keys: Rust's sorting panics on a comparison that is no total order. A closure compares one key of both sides
//! (`|a, b| key(a).cmp(&key(b))`); every other comparison stands in a table, beside the test that it is total.

use super::{all_rust_files, check, code};

/// Comparisons that are more than one key's: the file, how the comparison is written or what it is of, and the test of it.
const TESTED: &[(&str, &str, &str)] = &[
    ("apiserver/cel/src/library/lists.rs", "compare_keys", "keys_of_a_sort_have_a_total_order"),
    ("apiserver/cel/src/value/collect.rs", "Ord for Key<'_>", "keys_of_maps_have_a_total_order"),
    ("apiserver/schema/src/apply/path.rs", "Ord for PathElement", "path_elements_have_a_total_order"),
    ("machinery/api/src/quantity.rs", "Ord for Quantity", "quantities_have_a_total_order"),
    ("wasm-node/runtime/src/plugin/maps.rs", "compare", "keys_of_one_type_have_a_total_order"),
];

const SORTS: &[&str] =
    &[".sort_by(", ".sort_unstable_by(", ".max_by(", ".min_by(", ".select_nth_unstable_by(", ".sorted_by("];

/// The arguments of a call that begins there, up to its closing parenthesis.
fn arguments(text: &str) -> &str {
    let mut depth = 1usize;
    let end = text.char_indices().find(|(_, c)| {
        depth = match c {
            '(' | '[' | '{' => depth + 1,
            ')' | ']' | '}' => depth - 1,
            _ => depth,
        };
        depth == 0
    });
    &text[..end.map_or(text.len(), |(at, _)| at)]
}

/// Names, numbers and signs, in order.
fn tokens(text: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut inside = false;
    for c in text.chars() {
        let word = c.is_alphanumeric() || c == '_';
        match all.last_mut() {
            Some(last) if word && inside => last.push(c),
            _ if c.is_whitespace() => {}
            _ => all.push(c.to_string()),
        }
        inside = word;
    }
    all
}

/// Whether a closure of two parameters compares the same key of both.
fn compares_one_key(closure: &str) -> bool {
    let Some((parameters, body)) = closure.trim().strip_prefix('|').and_then(|rest| rest.split_once('|')) else {
        return false;
    };
    let mut depth = 0usize;
    let comma = parameters.char_indices().find(|(_, c)| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        *c == ',' && depth == 0
    });
    let Some((comma, _)) = comma else { return false };
    let (one, other) = (tokens(&parameters[..comma]), tokens(&parameters[comma + 1..]));
    let body = body.trim();
    [".cmp(", ".total_cmp("].iter().any(|call| {
        body.match_indices(call).any(|(at, _)| {
            let inside = arguments(&body[at + call.len()..]);
            if at + call.len() + inside.len() + 1 != body.len() {
                return false;
            }
            let (left, right) = (tokens(&body[..at]), tokens(inside.trim().trim_start_matches('&')));
            let swapped = |word: &String| {
                let pairs = || one.iter().zip(&other).filter(|(a, b)| a != b);
                let there = pairs().find(|(a, _)| *a == word).map(|(_, b)| b.clone());
                there.or_else(|| pairs().find(|(_, b)| *b == word).map(|(a, _)| a.clone())).unwrap_or(word.clone())
            };
            left.iter().map(swapped).collect::<Vec<_>>() == right
        })
    })
}

/// Comparisons of a file that are no plain one of a key.
fn found(text: &str) -> Vec<String> {
    let text: String = code(text).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for call in SORTS {
        for (at, _) in text.match_indices(call) {
            let comparison = arguments(&text[at + call.len()..]).trim();
            // A function of that name with arguments of another kind.
            let is_call = comparison.starts_with('|') || tokens(comparison).iter().all(|token| token != ",");
            if is_call && !compares_one_key(comparison) {
                found.push(comparison.split_whitespace().collect::<Vec<_>>().join(" "));
            }
        }
    }
    for line in text.lines().map(str::trim_start).filter(|line| line.starts_with("impl")) {
        if let Some(at) = line.find(" Ord for ").filter(|_| line.ends_with('{')) {
            found.push(line[at + 1..].trim_end_matches('{').trim().to_owned());
        }
    }
    found
}

/// Whether a comparison is that of a row: the same, or a call of it.
fn is_row(comparison: &str, row: &str) -> bool {
    let called = |body: &str| body.trim().starts_with(&format!("{row}("));
    comparison == row || comparison.split('|').nth(2).is_some_and(called)
}

#[test]
fn sorts_compare_keys() {
    let files = all_rust_files();
    let mut problems = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| path != "tests/tidy/orders.rs") {
        for comparison in found(text) {
            if !TESTED.iter().any(|(file, row, _)| path == file && is_row(&comparison, row)) {
                problems.push(format!(
                    "{path}: {comparison:?} compares more than one key: sort by a key (tuples, Reverse), or test that it is total and \
                     add it to tests/tidy/orders.rs"
                ));
            }
        }
    }
    for (file, row, test) in TESTED {
        let there = files
            .iter()
            .find(|(path, _)| path == file)
            .is_some_and(|(_, text)| found(text).iter().any(|comparison| is_row(comparison, row)));
        let tested = files.iter().any(|(_, text)| text.contains(&format!("fn {test}(")));
        if !there || !tested {
            problems.push(format!("{file}: {row} and its test {test} are not both there"));
        }
    }
    check(&problems);
}

#[test]
fn comparisons_of_one_key_are_recognized() {
    for plain in [
        "|a, b| a.name.cmp(&b.name)",
        "|(a, _), (b, _)| a.cmp(b)",
        "|a, b| b.quality.total_cmp(&a.quality)",
        "|a, b| (a.x, age(a), &a.y.z).cmp(&(b.x, age(b), &b.y.z))",
        "|a, b| {\n    a.0.cmp(&b.0)\n}",
    ] {
        let plain = plain.replace("{\n", "").replace("\n}", "");
        assert!(compares_one_key(&plain), "{plain}");
    }
    for other in [
        "|a, b| a.x.cmp(&b.x).then_with(|| a.y.cmp(&b.y))",
        "|a, b| a.x.cmp(&b.y)",
        "|a, b| (a.x, b.y).cmp(&(b.x, b.y))",
        "|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal)",
        "|a, b| order(a, b)",
        "by_age",
    ] {
        assert!(!compares_one_key(other), "{other}");
    }
    assert_eq!(
        found("x.sort_by(|a, b| a.n.cmp(&b.n));\nx.sort_by(order);\nimpl Ord for Two {"),
        ["order", "Ord for Two"]
    );
    assert!(is_row("|a, b| compare(&k[*a], &k[*b])", "compare") && !is_row("|a, b| compares(a)", "compare"));
}
