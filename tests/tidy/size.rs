//! A file holds one subject and a function fits a screen, or the exception says why.

use super::{all_rust_files, check};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
/// Lines of `src/`, the composition of the program.
const PROGRAM_LINES_MAX: usize = 7_000;

/// Functions that are longer, and why splitting them would hide what they say.
const LONG_FUNCTIONS: &[(&str, &str, &str)] = &[
    ("apiserver/catalog/src/operations.rs", "operation", "one document, in the order in which it is read"),
    ("machinery/api/src/error.rs", "status", "the one exhaustive match from an error to its Status"),
    ("apiserver/schema/src/typed.rs", "value", "one arm for each pair of a type and what was written"),
    ("machinery/client/src/executor.rs", "single", "one arm an action"),
    ("scheduler/src/shell_tests.rs", "answer", "a test's API server: one arm a request"),
    ("scheduler/src/tests.rs", "the_messages_are_upstreams", "a table of cases"),
    ("tools/development/src/demo/mod.rs", "run_story", "a story, in its order"),
    ("tests/sim/src/network.rs", "send", "the faults of one request, in the order in which they can happen"),
];

/// Files that are longer, and why.
const LONG_FILES: &[(&str, &str)] = &[("apiserver/schema/src/typed.rs", "one walk over a typed value, with its tests")];

/// Name and length of each function. rustfmt ends a body with a brace in the column of its first line.
fn functions(text: &str) -> Vec<(&str, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let Some(name) = function_name(trimmed) else { continue };
        let indent = line.len() - trimmed.len();
        let ends = |line: &&str| line.len() == indent + 1 && line.ends_with('}') && line.trim_start() == "}";
        let body = lines[at..].iter().position(ends).map_or(0, |end| end + 1);
        if !line.ends_with(';') && !line.ends_with('}') {
            found.push((name, body));
        }
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    let words = line.split_whitespace();
    let mut rest = words.skip_while(|word| {
        word.starts_with("pub")
            || matches!(*word, "const" | "async" | "unsafe" | "extern" | "\"C\"" | "crate)" | "super)")
    });
    (rest.next()? == "fn").then_some(())?;
    rest.next()?.split(['(', '<']).next()
}

#[test]
fn files_have_one_subject_and_functions_fit_a_screen() {
    let mut problems = Vec::new();
    let files = all_rust_files();
    let mut used = Vec::new();
    for (path, text) in &files {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            match LONG_FILES.iter().find(|(file, _)| file == path) {
                Some((file, _)) => used.push((*file).to_owned()),
                None => problems.push(format!("{path} has {lines} lines: which is its second subject?")),
            }
        }
        for (name, lines) in functions(text).into_iter().filter(|(_, lines)| *lines > FUNCTION_LINES_MAX) {
            match LONG_FUNCTIONS.iter().find(|(file, function, _)| file == path && *function == name) {
                Some(_) => used.push(format!("{path} {name}")),
                None => problems.push(format!("{path}: {name} has {lines} lines; more than a screen")),
            }
        }
    }
    let listed = LONG_FILES
        .iter()
        .map(|(file, _)| (*file).to_owned())
        .chain(LONG_FUNCTIONS.iter().map(|(file, name, _)| format!("{file} {name}")));
    for exception in listed.filter(|exception| !used.contains(exception)) {
        problems.push(format!("{exception} is an exception that is no longer needed"));
    }
    check(&problems);
}

#[test]
fn the_program_stays_small() {
    let files = all_rust_files();
    let own = files.iter().filter(|(path, _)| path.starts_with("src/"));
    let lines: usize = own.map(|(_, text)| text.lines().count()).sum();
    check(&if lines > PROGRAM_LINES_MAX {
        vec![format!(
            "src/ has {lines} lines, at most {PROGRAM_LINES_MAX}: it composes what crates do. Which component or tool does the \
             new code belong to?"
        )]
    } else {
        Vec::new()
    });
}

#[test]
fn lengths_are_counted() {
    let text = "impl A {\n    pub(crate) async fn one(\n        a: u8,\n    ) -> u8 {\n        a\n    }\n}\nfn two() {\n}\nfn three() {}\n";
    assert_eq!(functions(text), [("one", 5), ("two", 2)]);
}
