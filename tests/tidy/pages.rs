//! The documentation: the site's table of contents names each page, and the pages that a newcomer reads first are short.

use std::collections::BTreeSet;
use std::fs;

use super::shipped::shipped_files;
use super::{check, read, root};

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
    let pages: BTreeSet<String> = pages("").into_iter().chain(pages("decisions/")).collect();
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
