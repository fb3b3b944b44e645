//! Inside a crate the modules stand in layers too: who follows `crate::` from module to module never comes back to where he began.

use std::collections::{BTreeMap, BTreeSet};

use super::shipped::shipped_files;
use super::{check, crates};

/// Circles that stand, and why.
const CIRCLES: &[(&str, &[&str], &str)] = &[];

/// The names that follow `crate::` in a line, also those of a group in braces.
fn named(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 1usize;
            let mut word = String::new();
            let mut first = true;
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => first = true,
                    c if (c.is_alphanumeric() || c == '_') && depth == 1 && first => {
                        word.push(c);
                        continue;
                    }
                    c if c.is_whitespace() => continue,
                    _ if depth == 1 => first = false,
                    _ => {}
                }
                if !word.is_empty() {
                    found.push(std::mem::take(&mut word));
                    first = c == ',';
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found
}

/// For each top module of a crate, those that it names; tests aside.
fn modules(source: &str, files: &[(String, String)]) -> BTreeMap<String, BTreeSet<String>> {
    let top = |path: &str| path.split('/').next().unwrap_or(path).trim_end_matches(".rs").to_owned();
    let inside: Vec<(&str, &str)> =
        files.iter().filter_map(|(path, text)| Some((path.strip_prefix(source)?, text.as_str()))).collect();
    let root = |path: &str| matches!(path, "lib.rs" | "main.rs" | "build.rs");
    let all: BTreeSet<String> = inside.iter().filter(|(path, _)| !root(path)).map(|(path, _)| top(path)).collect();
    let mut graph: BTreeMap<String, BTreeSet<String>> =
        all.iter().map(|name| (name.clone(), BTreeSet::new())).collect();
    for (path, text) in inside.iter().filter(|(path, _)| !root(path)) {
        let from = top(path);
        let to = named(text).into_iter().filter(|name| all.contains(name) && *name != from);
        graph.entry(from.clone()).or_default().extend(to);
    }
    graph
}

/// The modules from which a way leads back to them, in groups.
fn circles(graph: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<BTreeSet<String>> {
    let reached = |from: &String| {
        let mut seen: BTreeSet<String> = BTreeSet::new();
        let mut open = vec![from.clone()];
        while let Some(module) = open.pop() {
            for next in graph.get(&module).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    open.push(next.clone());
                }
            }
        }
        seen
    };
    let reach: BTreeMap<&String, BTreeSet<String>> = graph.keys().map(|module| (module, reached(module))).collect();
    let both = |a: &String, b: &String| reach[a].contains(b) && reach[b].contains(a);
    let group = |a: &String| graph.keys().filter(|b| both(a, b)).cloned().collect::<BTreeSet<String>>();
    graph.keys().map(group).filter(|group| group.len() > 1).collect()
}

#[test]
fn no_layer_runs_back() {
    let files = shipped_files();
    let mut problems = Vec::new();
    let sources = crates().into_iter().map(|folder| format!("{folder}/src/")).chain(["src/".to_owned()]);
    for source in sources {
        for circle in circles(&modules(&source, files)) {
            let stands = CIRCLES.iter().any(|(at, names, _)| {
                source.starts_with(at) && circle.iter().all(|name| names.contains(&name.as_str()))
            });
            if !stands {
                problems.push(format!("{source}: {circle:?} name each other in a circle"));
            }
        }
    }
    check(&problems);
}

#[test]
fn names_after_crate_are_found() {
    assert_eq!(named("use crate::a::B; crate::c()"), ["a", "c"]);
    assert_eq!(named("use crate::{a::{B, C}, d, e::F};"), ["a", "d", "e"]);
}
