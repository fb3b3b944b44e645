//! Each advisory in docs/security.md is fixed by the locked version of wasmtime, or names what holds without the fix.

use super::promises::{holds_test, proofs};
use super::rows::part;
use super::{all_rust_files, check, read, root};

const PAGE: &str = "docs/security.md";
const HEADING: &str = "## Advisories of wasmtime";

/// A version's numbers, in order.
fn version(text: &str) -> Option<[u32; 3]> {
    let numbers: Vec<u32> = text.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    numbers.try_into().ok()
}

/// The locked version of a crate.
fn locked(name: &str) -> [u32; 3] {
    let lock = read("Cargo.lock");
    let package = lock.split("[[package]]").find(|package| package.contains(&format!("name = \"{name}\"\n")));
    let text = package.and_then(|package| package.split_once("version = \"")?.1.split('"').next());
    text.and_then(version).expect("a locked version")
}

/// The features of a dependency of the workspace, which takes no default ones.
fn features(name: &str) -> Vec<String> {
    let manifest = read("Cargo.toml");
    let line = manifest.lines().find(|line| line.starts_with(&format!("{name} = "))).expect("a dependency");
    assert!(line.contains("default-features = false"), "{name} has only the features that are listed");
    let list = line.split_once("features = [").and_then(|(_, rest)| rest.split(']').next()).expect("features");
    list.split(',').map(|feature| feature.trim().trim_matches('"').to_owned()).collect()
}

/// Why the last cell of a row doesn't hold, if so.
fn problem(fixed_in: [u32; 3], holds: &str) -> Option<String> {
    let is_fixed = ["wasmtime", "wasmtime-wasi", "wasmtime-wasi-http"].iter().all(|name| locked(name) >= fixed_in);
    if is_fixed {
        return (holds != "fixed").then(|| "is fixed: say so".to_owned());
    }
    let quoted: Vec<&str> = holds.split('`').skip(1).step_by(2).collect();
    if holds.starts_with("not compiled: ") {
        let (name, feature) = quoted.first()?.split_once('/')?;
        return features(name).iter().any(|one| one == feature).then(|| format!("{name} has the feature {feature}"));
    }
    if holds.starts_with("not called: ") {
        let name = quoted.first()?;
        let callers = all_rust_files().into_iter().filter(|(_, text)| text.contains(&format!("{name}(")));
        let callers: Vec<String> = callers.map(|(path, _)| path).collect();
        return (!callers.is_empty()).then(|| format!("{name} is called by {callers:?}"));
    }
    if holds.starts_with("Windows only: ") {
        return None;
    }
    let mut same = "";
    let proofs = proofs(holds, &mut same);
    if proofs.iter().all(|(test, _)| test.is_none()) {
        return Some("is not fixed, and names no test of what holds".to_owned());
    }
    proofs.into_iter().find_map(|(test, file)| {
        let text = std::fs::read_to_string(root().join(file)).unwrap_or_default();
        test.filter(|test| !holds_test(&text, test)).map(|test| format!("{file} has no test {test}"))
    })
}

#[test]
fn each_advisory_of_wasmtime_is_fixed_or_held_off() {
    let mut problems = Vec::new();
    let mut rows = 0;
    for line in part(PAGE, HEADING).lines().filter(|line| line.starts_with("| ")).skip(1) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [names, fixed_in, _, holds] = cells[..] else {
            problems.push(format!("a row of four cells is expected: {line}"));
            continue;
        };
        rows += 1;
        match version(fixed_in) {
            Some(fixed_in) => problems.extend(problem(fixed_in, holds).map(|why| format!("{names} {why}"))),
            None => problems.push(format!("{names}: a version is expected: {fixed_in}")),
        }
    }
    assert!(rows > 10, "rows are found");
    check(&problems);
}

#[test]
fn an_open_advisory_without_a_test_is_found() {
    let later = [u32::MAX; 3];
    assert!(problem([48, 0, 0], "fixed").is_none());
    assert!(problem([48, 0, 0], "something").is_some());
    assert!(problem(later, "fixed").is_some());
    assert!(problem(later, "not compiled: `wasmtime/gc`").is_none());
    assert!(problem(later, "not compiled: `wasmtime/async`").is_some());
    assert!(problem(later, "not called: `check`").is_some());
    assert!(problem(later, "`no_such_test` in `tests/tidy.rs`").is_some());
}
