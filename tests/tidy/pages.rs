//! The documentation: the site's table of contents names each page, and the pages that a newcomer reads first are short.

use std::collections::BTreeSet;
use std::fs;

use super::lexer::{TokenKind, tokens};
use super::rows::part;
use super::shipped::shipped_files;
use super::{TOP, all_rust_files, check, crates, read, root};

const README_LINES_MAX: usize = 120;
const ARCHITECTURE_WORDS_MAX: usize = 30;
const COMPATIBILITY_WORDS_MAX: usize = 40;
/// A longer cell of a table is a list below it.
const CELL_CHARS_MAX: usize = 400;

/// Pages of a folder below docs/, as the table of contents writes them.
fn pages(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(root().join("docs").join(folder)).expect("a folder of pages").flatten();
    let names = entries.map(|entry| format!("{folder}{}", entry.file_name().to_string_lossy()));
    names.filter(|name| name.ends_with(".md") && name != "SUMMARY.md").collect()
}

#[test]
fn the_site_has_each_page() {
    let summary = read("docs/SUMMARY.md");
    let links = summary.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let links: BTreeSet<String> = links.filter(|link| !link.is_empty()).map(str::to_owned).collect();
    let pages: BTreeSet<String> = pages("").into_iter().chain(pages("decisions/")).chain(pages("reference/")).collect();
    check(
        &links
            .symmetric_difference(&pages)
            .map(|page| format!("docs/SUMMARY.md and pages: {page}"))
            .collect::<Vec<_>>(),
    );
}

/// Sentences of paragraphs and list items: no tables, drawings or headings.
fn sentences(page: &str) -> Vec<String> {
    let mut prose = String::new();
    for (number, block) in page.split("```").enumerate() {
        for line in block.lines().filter(|_| number % 2 == 0) {
            if line.starts_with("- ") {
                prose.push_str("\n\n");
            }
            let line = line.trim_start_matches("- ");
            match line.chars().next() {
                Some('|' | '#') | None => prose.push_str("\n\n"),
                Some(_) => {
                    prose.push_str(line);
                    prose.push(' ');
                }
            }
        }
    }
    let pieces = prose.split("\n\n").flat_map(|paragraph| paragraph.split(". "));
    pieces.map(|piece| piece.trim().to_owned()).filter(|piece| !piece.is_empty()).collect()
}

/// A semicolon ends a statement of Mermaid, so that the rest of a message is a syntax error.
#[test]
fn diagrams_have_no_semicolons() {
    let page = read("docs/architecture.md");
    let diagrams: Vec<&str> = page.split("```mermaid").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(diagrams.len() >= 4, "diagrams are found");
    check(
        &diagrams
            .into_iter()
            .flat_map(str::lines)
            .filter(|line| line.contains(';'))
            .map(str::to_owned)
            .collect::<Vec<_>>(),
    );
}

#[test]
fn the_first_pages_are_short() {
    let mut problems = Vec::new();
    let lines = read("README.md").lines().count();
    if lines > README_LINES_MAX {
        problems.push(format!("README.md has {lines} lines; {README_LINES_MAX} at most"));
    }
    for (page, words_max) in
        [("docs/architecture.md", ARCHITECTURE_WORDS_MAX), ("docs/compatibility.md", COMPATIBILITY_WORDS_MAX)]
    {
        for sentence in sentences(&read(page)) {
            let words = sentence.split_whitespace().count();
            if words > words_max {
                problems.push(format!("{page}: {words} words: {sentence}"));
            }
        }
    }
    check(&problems);
}

#[test]
fn cells_of_the_compatibility_page_are_short() {
    let page = read("docs/compatibility.md");
    let cells = page.lines().filter(|line| line.starts_with('|')).flat_map(|line| line.split(" | "));
    let long = cells.filter(|cell| cell.chars().count() > CELL_CHARS_MAX);
    check(
        &long
            .map(|cell| format!("docs/compatibility.md: a cell of {} characters: {cell}", cell.len()))
            .collect::<Vec<_>>(),
    );
}

/// The rows of the page's table of folders: their first cell is one folder.
fn rooms(page: &str) -> Vec<&str> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("/` |"));
    rows.map(|(folder, _)| folder).filter(|folder| !folder.contains('`')).collect()
}

/// What a table of folders lacks, has twice or has without a folder. A row covers the folders below it, and rows of all crates of a
/// folder cover that folder.
fn differences(rows: &[&str], folders: &BTreeSet<String>) -> Vec<String> {
    let inside = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
    let covered = |folder: &str| rows.iter().any(|row| *row == folder || inside(folder, row) || inside(row, folder));
    let missing = folders.iter().filter(|folder| !covered(folder)).map(|folder| format!("no row for {folder}/"));
    let twice = rows.iter().enumerate().filter(|(at, row)| rows[..*at].contains(row));
    let gone = rows.iter().filter(|row| !folders.contains(**row)).map(|row| format!("no folder {row}/"));
    missing.chain(twice.map(|(_, row)| format!("{row}/ stands twice"))).chain(gone).collect()
}

#[test]
fn the_table_of_the_architecture_has_each_folder_once() {
    let visible = TOP.iter().filter(|name| !name.starts_with('.') && **name != "target");
    let folders = visible.filter(|name| root().join(name).is_dir()).map(|name| (*name).to_owned());
    let page = read("docs/architecture.md");
    check(&differences(&rooms(&page), &folders.chain(crates()).collect()));
}

#[test]
fn each_crate_has_its_section() {
    let page = part("docs/architecture.md", "## Crates");
    let sections: BTreeSet<String> =
        page.lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_owned).collect();
    let crates: BTreeSet<String> = crates().into_iter().chain(["src".to_owned()]).collect();
    let differ = sections.symmetric_difference(&crates);
    check(&differ.map(|name| format!("docs/architecture.md, ## Crates, and the crates: {name}")).collect::<Vec<_>>());
}

#[test]
fn differences_of_a_table_of_folders_are_found() {
    let folders = ["a", "a/b", "a/c", "d", "e"].map(str::to_owned).into();
    assert_eq!(differences(&["a/b", "a/c", "d", "e"], &folders), [""; 0]);
    let found = differences(&["a/b", "d", "d", "f"], &folders);
    assert_eq!(found, ["no row for a/c/", "no row for e/", "d/ stands twice", "no folder f/"]);
    assert_eq!(rooms("| folder | |\n| `a/b/` | text | `a/b/c.rs` |\n| `d` | |\n"), ["a/b"]);
}

/// The names of pages in a text.
fn named_pages(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && !"/._-".contains(c));
    words.map(|word| word.trim_end_matches(['.', '-'])).filter(|word| word.len() > 3 && word.ends_with(".md"))
}

/// A reason that stands in a page outside of the repository is none for its reader. Literals may name files of a template.
#[test]
fn code_names_pages_that_exist() {
    let templates = ["tools/development/templates", "docs"];
    let exists = |page: &str| root().join(page.trim_start_matches(['/', '.'])).is_file();
    let mut problems = Vec::new();
    for (path, text) in all_rust_files().iter().filter(|(path, _)| path != "tests/tidy/pages.rs") {
        for token in tokens(text) {
            let literal = match token.kind {
                TokenKind::Comment => false,
                TokenKind::Literal => true,
                _ => continue,
            };
            let below = |page: &str| literal && templates.iter().any(|folder| exists(&format!("{folder}/{page}")));
            let missing = named_pages(token.text).filter(|page| !exists(page) && !below(page));
            problems.extend(missing.map(|page| format!("{path} names {page}, which the repository doesn't have")));
        }
    }
    check(&problems);
}

#[test]
fn names_of_pages_are_found() {
    let found: Vec<_> = named_pages("// As in `docs/a-b.md`, c.md. Not .md or d.mdx (e.md §4).").collect();
    assert_eq!(found, ["docs/a-b.md", "c.md", "e.md"]);
}

#[test]
fn the_changelog_has_one_unreleased_section() {
    let page = read("CHANGELOG.md");
    let unreleased = page.lines().filter(|line| line.starts_with("## ") && line.to_lowercase().contains("unreleased"));
    let unreleased: Vec<&str> = unreleased.collect();
    assert_eq!(unreleased, ["## [Unreleased]"]);
    let top: Vec<&str> = page.lines().filter(|line| line.starts_with("## ")).collect();
    assert_eq!(top.first(), unreleased.first(), "what isn't released comes first");
}

/// Ways to make a pool: its table names the file. Libraries of the project itself and pools of a single test are none.
const POOL_MAKERS: &[&str] = &["Semaphore::new(", "Seats::new("];
/// Files that make a pool's parts, and no pool.
const POOL_PARTS: &[&str] = &["machinery/serve/src/seats.rs", "wasm-node/kubelet/src/pod/handler"];

#[test]
fn each_shared_pool_has_its_row() {
    let page = read("docs/security.md");
    let table = page.split("## Shared pools").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap_or_default();
    let mut problems = Vec::new();
    for (path, text) in shipped_files() {
        let makes = POOL_MAKERS.iter().any(|maker| text.contains(maker));
        if makes && !POOL_PARTS.iter().any(|part| path.starts_with(part)) && !table.contains(&format!("`{path}`")) {
            problems.push(format!("docs/security.md, \"Shared pools\", has no row for the pool of {path}"));
        }
    }
    check(&problems);
}
