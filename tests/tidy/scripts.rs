//! The tables of the end-to-end scripts and of the optional groups of `.ci/run` are complete: each script has a row in `tests/e2e/weights`,
//! each group a function, and no table names a script or a path that doesn't exist.

use std::collections::BTreeSet;
use std::fs;

use super::{check, read, root};

/// The rows of a table: words without the comment.
fn rows(path: &str) -> Vec<Vec<String>> {
    let text = read(path);
    let words = |line: &str| line.split('#').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    text.lines().map(words).filter(|row: &Vec<String>| !row.is_empty()).collect()
}

fn scripts() -> BTreeSet<String> {
    let entries = fs::read_dir(root().join("tests/e2e")).expect("the folder of scripts").flatten();
    let names = entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".sh").map(str::to_owned));
    names.filter(|name| name != "lib").collect()
}

#[test]
fn each_end_to_end_script_has_a_weight() {
    let rows = rows("tests/e2e/weights");
    let named: BTreeSet<String> = rows.iter().filter_map(|row| row.first().cloned()).collect();
    let wrong = |row: &&Vec<String>| {
        row.len() != 3 || row[2].parse::<f64>().is_err() || row[1] != "quiet" && row[1].parse::<f64>().is_err()
    };
    let mut problems: Vec<String> =
        rows.iter().filter(wrong).map(|row| format!("not NAME CORES SECONDS: {row:?}")).collect();
    problems
        .extend(scripts().symmetric_difference(&named).map(|name| format!("tests/e2e/weights and scripts: {name}")));
    check(&problems);
}

/// Whether the path before the first `*` of a glob exists.
fn names_a_path(glob: &str) -> bool {
    root().join(glob.trim_end_matches('*').trim_end_matches('/')).exists()
}

#[test]
fn each_group_of_a_ci_run_has_a_function_and_paths() {
    let text = read(".ci/run");
    let functions: BTreeSet<String> =
        text.lines().filter_map(|line| Some(line.strip_prefix("group_")?.split_once("() {")?.0.to_owned())).collect();
    let rows = rows("tests/groups.table");
    let named: BTreeSet<String> = rows.iter().filter_map(|row| row.first().cloned()).collect();
    let mut problems: Vec<String> =
        functions.symmetric_difference(&named).map(|name| format!("tests/groups.table and .ci/run: {name}")).collect();
    for row in &rows {
        let missing = row.iter().skip(3).filter(|glob| !names_a_path(glob));
        problems.extend(missing.map(|glob| format!("{}: no such path: {glob}", row[0])));
    }
    check(&problems);
}

#[test]
fn the_table_of_tests_quick_names_existing_paths() {
    let there = scripts();
    let mut problems = Vec::new();
    for row in rows("tests/quick.table") {
        let (glob, names) = row.split_first().expect("a row has words");
        problems
            .extend(names.iter().filter(|name| !there.contains(*name)).map(|name| format!("{glob}: no script {name}")));
        if names.is_empty() || !names_a_path(glob) {
            problems.push(format!("{glob}: no such path, or no script for it"));
        }
    }
    check(&problems);
}
