//! Every direct dependency of a crate is named in its code: one that isn't costs each build for nothing.

use std::fs;

use super::{check, code, crates, dependencies, root, rust_files};

/// The folders of a crate that hold code. The root's `tests/` belongs to this test and to crates of their own.
fn sources(folder: &str) -> String {
    let folders: &[&str] =
        if folder == "." { &["src", "tests/tidy"] } else { &["src", "tests", "benches", "examples"] };
    let mut files = Vec::new();
    folders.iter().for_each(|inside| rust_files(&root().join(folder).join(inside), &mut files));
    files.extend(["build.rs", "tests/tidy.rs"].map(|file| root().join(folder).join(file)));
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts.flat_map(|text| code(&text).map(|line| format!("{line}\n")).collect::<Vec<_>>()).collect()
}

/// Whether a text has the name as a whole word.
fn names(text: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name)
        .any(|(at, _)| !text[..at].ends_with(is_part) && !text[at + name.len()..].starts_with(is_part))
}

#[test]
fn each_dependency_is_used() {
    let mut problems = Vec::new();
    for folder in crates().into_iter().chain([".".to_owned()]) {
        let text = sources(&folder);
        let unused = dependencies(&folder).into_iter().filter(|name| !names(&text, &name.replace('-', "_")));
        problems
            .extend(unused.map(|name| format!("{folder}/Cargo.toml names {name}, and no code of the crate uses it")));
    }
    check(&problems);
}
