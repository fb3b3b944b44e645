//! Retired names and words don't return, in prose, names of tests, identifiers and messages: a type's name says what the thing is,
//! and prose uses the field's terms (docs/architecture.md, "Words").

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::lexer::{Token, TokenKind, tokens};
use super::shipped::shipped_files;
use super::{all_rust_files, check, root};

/// Type names that say nothing away from their file.
const RETIRED_TYPES: &[&str] = &[
    "Answer", "Asked", "Done", "Found", "Held", "Inner", "Kept", "Known", "Live", "Made", "Named", "Pending", "Place",
    "Ready", "Refused", "Running", "Said", "Seen", "Shared", "Shown", "State", "Step", "Taken", "Told", "Wanted",
];

/// Words of the former dialect, with the term that takes their place.
const RETIRED_WORDS: &[(&str, &str)] = &[
    ("anew", "again"),
    ("nobody", "no client, no user, no task"),
    ("somebody", "a client, a user"),
    ("told", "notified, logged, returned"),
    ("whoever", "the caller, a client, a user"),
];

/// Words that name a value by a conversation or a place, with the terms of the field that take their place.
const RETIRED_IDENTIFIERS: &[(&str, &str)] = &[
    ("asked", "requested, requests, candidates, subject"),
    ("room", "capacity, free, allowed, folder"),
    ("said", "reported, message, reason, verdict"),
];

/// Words that name a module by a state of what it has: a module's name says what it has.
const RETIRED_MODULES: &[&str] = &["heard", "held", "special"];

/// Words that are a question or a person in the name of a test. A name is a statement: `a_blob_is_pushed_once`.
const RETIRED_IN_TESTS: &[&str] = &[
    "anew",
    "anybody",
    "asked",
    "asks",
    "everybody",
    "nobody",
    "said",
    "says",
    "somebody",
    "tells",
    "told",
    "what",
    "whatever",
    "who",
    "whoever",
];

/// The comments of a file, without the quoted code in them.
fn comments(text: &str) -> impl Iterator<Item = (usize, String)> {
    text.lines().enumerate().filter_map(|(number, line)| {
        let comment = line.split_once("//")?.1;
        Some((number + 1, unquoted(comment)))
    })
}

/// A line in lower case without what stands in backquotes.
fn unquoted(line: &str) -> String {
    line.split('`').step_by(2).collect::<String>().to_lowercase()
}

fn has_word(text: &str, word: &str) -> bool {
    let is_letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(word)
        .any(|(at, _)| !is_letter(text[..at].chars().next_back()) && !is_letter(text[at + word.len()..].chars().next()))
}

#[test]
fn retired_type_names_stay_retired() {
    let mut problems = Vec::new();
    for (path, text) in all_rust_files() {
        for (number, line) in text.lines().enumerate() {
            let mut words = line.split_whitespace().skip_while(|word| !matches!(*word, "struct" | "enum" | "type"));
            let declared = words.next().and(words.next()).unwrap_or_default();
            let name = declared.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
            if RETIRED_TYPES.contains(&name) && !line.trim_start().starts_with("//") {
                problems.push(format!("{path}:{}: {name} is retired: name what the type is", number + 1));
            }
        }
    }
    check(&problems);
}

#[test]
fn retired_words_stay_retired() {
    let files = all_rust_files().into_iter().filter(|(path, _)| path != "tests/tidy/words.rs");
    let comments = files.flat_map(|(path, text)| comments(&text).map(|line| (path.clone(), line)).collect::<Vec<_>>());
    let folders = ["docs", "docs/decisions"].into_iter().map(|folder| fs::read_dir(root().join(folder)).expect("docs"));
    let pages = folders.flatten().flatten().map(|entry| entry.path());
    let pages = pages.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let prose = pages.flat_map(|page| {
        let text = fs::read_to_string(&page).expect("a readable page");
        let lines =
            text.lines().enumerate().map(|(number, line)| (page.display().to_string(), (number + 1, unquoted(line))));
        lines.collect::<Vec<_>>()
    });
    let mut problems = Vec::new();
    for (path, (number, line)) in comments.chain(prose) {
        for (word, instead) in RETIRED_WORDS.iter().filter(|(word, _)| has_word(&line, word)) {
            problems.push(format!("{path}:{number}: \"{word}\" is retired: {instead}"));
        }
    }
    check(&problems);
}

/// The names of tests of a file: each function below an attribute such as `#[test]` or `#[tokio::test(…)]`.
fn test_names<'a>(tokens: &[Token<'a>]) -> Vec<&'a str> {
    let is_mark = |at: &usize| {
        let before = at.checked_sub(1).and_then(|before| tokens.get(before));
        tokens[*at].text == "test" && before.is_some_and(|before| matches!(before.text, "[" | ":"))
    };
    let name = |at: usize| {
        let mut rest = tokens[at..].iter().skip_while(|token| token.text != "fn").skip(1);
        rest.next().map(|token| token.text)
    };
    (0..tokens.len()).filter(is_mark).filter_map(name).collect()
}

/// The words of an identifier, in lower case: `a_b`, `AB` and `aB` have two.
fn words(identifier: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut previous_is_lower = false;
    for c in identifier.chars() {
        if c == '_' || c.is_uppercase() && previous_is_lower {
            all.push(String::new());
        }
        previous_is_lower = c.is_lowercase();
        if let Some(last) = all.last_mut().filter(|_| c != '_') {
            last.extend(c.to_lowercase());
        }
    }
    all
}

#[test]
fn names_of_tests_are_statements() {
    let mut problems = Vec::new();
    let mut found = 0;
    for (path, text) in all_rust_files() {
        for name in test_names(&tokens(&text)) {
            found += 1;
            if let Some(word) = words(name).iter().find(|word| RETIRED_IN_TESTS.contains(&word.as_str())) {
                problems.push(format!("{path}: {name}: say what holds, without \"{word}\""));
            }
        }
    }
    assert!(found > 2000, "names of tests are found: {found}");
    check(&problems);
}

/// The retired word of an identifier.
fn retired(identifier: &str) -> Option<&(&str, &str)> {
    let words = words(identifier);
    RETIRED_WORDS.iter().chain(RETIRED_IDENTIFIERS).find(|(word, _)| words.iter().any(|found| found == word))
}

#[test]
fn identifiers_are_terms_of_the_field() {
    let mut problems = BTreeSet::new();
    for (path, text) in all_rust_files() {
        for token in tokens(&text).into_iter().filter(|token| token.kind == TokenKind::Word) {
            if let Some((word, instead)) = retired(token.text) {
                problems.insert(format!("{path}: {}: \"{word}\" is retired: {instead}", token.text));
            }
        }
    }
    check(&Vec::from_iter(problems));
}

#[test]
fn modules_are_named_by_their_content() {
    let mut problems = Vec::new();
    for (path, _) in all_rust_files() {
        let stem = Path::new(&path).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(word) = words(&stem).iter().find(|word| RETIRED_MODULES.contains(&word.as_str())) {
            problems.push(format!("{path}: name what the module has, without \"{word}\""));
        }
        problems.extend(retired(&stem).map(|(word, instead)| format!("{path}: \"{word}\" is retired: {instead}")));
    }
    check(&problems);
}

/// Messages, help texts and reasons: all that a program that ships can print.
#[test]
fn retired_words_are_not_printed() {
    let mut problems = Vec::new();
    for (path, text) in shipped_files() {
        for token in tokens(text).into_iter().filter(|token| token.kind == TokenKind::Literal) {
            let literal = unquoted(token.text);
            for (word, instead) in RETIRED_WORDS.iter().filter(|(word, _)| has_word(&literal, word)) {
                problems.push(format!("{path}: \"{word}\" is retired: {instead}: {}", token.text));
            }
        }
    }
    check(&problems);
}

#[test]
fn names_of_tests_are_found() {
    let text = "#[cfg(test)]\nmod tests {\n#[test]\n#[should_panic]\nfn one() {}\n#[tokio::test(a = \"b\")]\nasync fn two() {}\nfn test() {}\n}";
    assert_eq!(test_names(&tokens(text)), ["one", "two"]);
    assert_eq!(
        [words("is_told"), words("NoRoom"), words("ASKED_MAX")].concat(),
        ["is", "told", "no", "room", "asked", "max"]
    );
}

#[test]
fn words_are_found_whole() {
    assert!(has_word("it is told.", "told") && !has_word("untold", "told") && !has_word("retold it", "told"));
    let found: Vec<_> = comments("let a = 1; // One `two` three\nlet b = 2;").collect();
    assert_eq!(found, [(1, " one  three".to_owned())]);
}
