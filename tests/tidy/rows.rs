//! Tables of the docs have the rows of the tables in code: kinds, plugins, controllers, host interfaces and verbs. Each verb has a
//! test.

use std::collections::BTreeSet;
use std::fs;

use super::shipped::shipped_files;
use super::{check, root};

/// Rows of a table, as its sources write them.
struct Table {
    what: &'static str,
    /// Where the rows stand.
    below: &'static str,
    /// What stands before a row's name in quotes.
    before: &'static [&'static str],
    /// What of the name the docs leave out.
    suffix: &'static str,
    /// The page, and the part of it, that names each.
    page: &'static str,
    part: &'static str,
    /// How many there are at least: a table that is not found is no table.
    least: usize,
}

const TABLES: &[Table] = &[
    Table {
        what: "kind",
        below: "apiserver/resources/src/",
        before: &["    kind: \""],
        suffix: "",
        page: "docs/compatibility.md",
        part: "## Resources",
        least: 25,
    },
    Table {
        what: "admission plugin",
        below: "apiserver/admission/src/",
        before: &["name: \"", "fn name(&self) -> &'static str {\n        \""],
        suffix: "",
        page: "docs/compatibility.md",
        part: "## Admission plugins",
        least: 8,
    },
    Table {
        what: "controller",
        below: "controllers/src/",
        before: &["    name: \""],
        suffix: "-controller",
        page: "docs/compatibility.md",
        part: "## Controllers",
        least: 13,
    },
    Table {
        what: "scheduling plugin",
        below: "scheduler/src/plugins/",
        before: &["..plugin(\""],
        suffix: "",
        page: "docs/compatibility.md",
        part: "## Scheduler plugins",
        least: 11,
    },
    Table {
        what: "package of host interfaces",
        below: "wasm-node/runtime/src/host/mod.rs",
        before: &["package: \""],
        suffix: "",
        page: "docs/compatibility.md",
        part: "## Host interfaces",
        least: 6,
    },
];

/// The names that follow one of these in quotes.
pub(super) fn names<'a>(text: &'a str, before: &[&str]) -> BTreeSet<&'a str> {
    let after = |mark: &&str| text.match_indices(*mark).map(|(at, mark)| &text[at + mark.len()..]).collect::<Vec<_>>();
    before.iter().flat_map(after).filter_map(|rest| rest.split('"').next()).filter(|name| !name.is_empty()).collect()
}

/// A part of a page: from its heading to the next of the same or a higher level.
pub(super) fn part(page: &str, heading: &str) -> String {
    let text = fs::read_to_string(root().join(page)).expect("a page");
    let level = |line: &str| line.chars().take_while(|&c| c == '#').count();
    let from = text.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("{page} has a part {heading}"));
    let lines = text[from + 1..].lines().skip(1);
    lines.take_while(|line| !(1..=level(heading)).contains(&level(line))).map(|line| format!("{line}\n")).collect()
}

/// The names in the first column of a part's first table: separated by commas, with or without backquotes. A cell of prose is
/// no name.
pub(super) fn first_cells(part: &str) -> BTreeSet<String> {
    let rows =
        part.lines().skip_while(|line| !line.starts_with("|--")).skip(1).take_while(|line| line.starts_with('|'));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let names = cells.flat_map(|cell| cell.split(',')).map(|name| name.trim().trim_matches('`').to_owned());
    names.filter(|name| !name.contains(' ')).collect()
}

fn has_word(text: &str, word: &str) -> bool {
    let of_word = |c: char| c.is_alphanumeric() || c == '-';
    text.match_indices(word)
        .any(|(at, word)| !text[..at].ends_with(of_word) && !text[at + word.len()..].starts_with(of_word))
}

#[test]
fn the_docs_name_each_row() {
    let files = shipped_files();
    let mut problems = Vec::new();
    for table in TABLES {
        let page = part(table.page, table.part);
        let mut found = BTreeSet::new();
        for (path, text) in files.iter().filter(|(path, _)| path.starts_with(table.below)) {
            for name in names(text, table.before) {
                found.insert(name.trim_end_matches(table.suffix).to_owned());
                if !has_word(&page, name.trim_end_matches(table.suffix)) {
                    problems
                        .push(format!("{}, {}: no word of the {} {name} ({path})", table.page, table.part, table.what));
                }
            }
        }
        for name in first_cells(&page).difference(&found) {
            problems.push(format!("{}, {}: {name} is no {} of the code", table.page, table.part, table.what));
        }
        if found.len() < table.least {
            problems.push(format!(
                "{} rows of {} found below {}, not {}",
                found.len(),
                table.what,
                table.below,
                table.least
            ));
        }
    }
    check(&problems);
}

#[test]
fn each_verb_has_a_page_and_a_test() {
    let table = fs::read_to_string(root().join("src/cmd/mod.rs")).expect("the table of verbs");
    let verbs: BTreeSet<String> = table
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Verb::")?.split_once(" => ")?.1.split_once("::run("))
        .map(|(module, _)| module.replace('_', "-"))
        .collect();
    assert!(verbs.len() >= 4, "verbs are found: {verbs:?}");
    let read = |folder: &str| {
        let files = fs::read_dir(root().join(folder)).into_iter().flatten().flatten();
        let files = files.map(|entry| entry.path()).filter(|path| path.is_file());
        files.filter_map(|path| fs::read_to_string(path).ok()).collect::<String>()
    };
    let docs = fs::read_to_string(root().join("README.md")).expect("README.md") + &read("docs");
    let tests = read("tests/e2e");
    let mut problems = Vec::new();
    for verb in &verbs {
        if !docs.contains(&format!("coracle {verb}")) {
            problems.push(format!("no page names `coracle {verb}`"));
        }
        let invocations = [format!("$CORACLE\" {verb}"), format!("coracle {verb}"), format!("CORACLE, \"{verb}\"")];
        if !invocations.iter().any(|form| tests.contains(form.as_str())) {
            problems.push(format!("no end-to-end test runs `coracle {verb}`"));
        }
    }
    check(&problems);
}

#[test]
fn names_of_rows_are_found() {
    let text = "A { name: \"One\" }\nfn name(&self) {\n    \"Two\"\n}";
    assert_eq!(names(text, &["name: \"", "{\n    \""]).into_iter().collect::<Vec<_>>(), ["One", "Two"]);
    assert!(has_word("a, job, b", "job") && !has_word("cron-job", "job"));
}
