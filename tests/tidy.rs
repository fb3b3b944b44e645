//! The house rules that the compiler can't see, each with its reason: who may depend on whom, what is pure, how files begin.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use shipped::shipped_files;

#[path = "tidy/advisories.rs"]
mod advisories;
#[path = "tidy/children.rs"]
mod children;
#[path = "tidy/codecs.rs"]
mod codecs;
#[path = "tidy/fields.rs"]
mod fields;
#[path = "tidy/forbidden.rs"]
mod forbidden;
#[path = "tidy/keys.rs"]
mod keys;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/lexer.rs"]
mod lexer;
#[path = "tidy/options.rs"]
mod options;
#[path = "tidy/orders.rs"]
mod orders;
#[path = "tidy/pages.rs"]
mod pages;
#[path = "tidy/promises.rs"]
mod promises;
#[path = "tidy/rows.rs"]
mod rows;
#[path = "tidy/scripts.rs"]
mod scripts;
#[path = "tidy/shape.rs"]
mod shape;
#[path = "tidy/shipped.rs"]
mod shipped;
#[path = "tidy/size.rs"]
mod size;
#[path = "tidy/tables.rs"]
mod tables;
#[path = "tidy/unused.rs"]
mod unused;
#[path = "tidy/words.rs"]
mod words;

const TOP_FOLDERS: &[&str] =
    &["machinery", "apiserver", "scheduler", "controllers", "wasm-node", "proxy", "clients", "dashboard", "tools"];

/// Only these stand at the repository's top level (docs/architecture.md).
const TOP: &[&str] = &[
    ".cargo",
    ".ci",
    ".git",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "apiserver",
    "clients",
    "clippy.toml",
    "controllers",
    "dashboard",
    "deny.toml",
    "docs",
    "machinery",
    "packaging",
    "proxy",
    "rustfmt.toml",
    "sample-workloads",
    "scheduler",
    "src",
    "target",
    "tests",
    "tools",
    "wasm-node",
];

/// Modules that decide: no client, no tokio, no clock, so that they are tested without a cluster.
const PURE: &[&str] = &[
    "machinery/api/src",
    "apiserver/schema/src",
    "scheduler/src/cycle",
    "machinery/rules/src",
    "scheduler/src/decide.rs",
    "scheduler/src/plugins",
    "proxy/src/routing/",
    "proxy/src/names/",
    "controllers/src",
    "wasm-node/runtime/src/plugin",
    "apiserver/catalog/src",
    "apiserver/cel/src",
    "apiserver/resources/src",
    "dashboard/server/src/forwarding.rs",
    "dashboard/server/src/gate.rs",
    "wasm-node/images/src/access.rs",
    "wasm-node/images/src/challenge.rs",
    "wasm-node/images/src/collect.rs",
    "wasm-node/images/src/image_config.rs",
    "wasm-node/images/src/keyring.rs",
    "wasm-node/images/src/manifest.rs",
    "wasm-node/images/src/providers/response.rs",
    "wasm-node/images/src/push/refusal.rs",
    "wasm-node/images/src/signatures/identity.rs",
    "wasm-node/images/src/signatures/judge.rs",
    "wasm-node/images/src/signatures/payload.rs",
    "wasm-node/images/src/spin.rs",
    "wasm-node/images/src/volume_manifest.rs",
    "wasm-node/kubelet/src/pod/lifecycle/",
    "wasm-node/kubelet/src/spec/",
];

/// Files below [`PURE`] that decide nothing, and what they do.
const SHELLS: &[(&str, &str)] = &[("controllers/src/run.rs", "runs the table over the driver, with a client")];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A file below the root.
fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                rust_files(&path, into);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// Path below the root and text of every source file of ours.
fn all_rust_files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for top_folder in TOP_FOLDERS.iter().chain(&["src", "tests"]) {
        rust_files(&root().join(top_folder), &mut files);
    }
    files
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).expect("a readable source file");
            (path.strip_prefix(root()).expect("below the root").display().to_string(), text)
        })
        .collect()
}

/// Folders of crates: a top folder is one, or has a few.
fn crates() -> Vec<String> {
    let mut found = Vec::new();
    for top_folder in TOP_FOLDERS {
        if root().join(top_folder).join("Cargo.toml").exists() {
            found.push((*top_folder).to_owned());
        }
        let inside = fs::read_dir(root().join(top_folder)).into_iter().flatten().flatten();
        let inside = inside.filter(|entry| entry.path().join("Cargo.toml").exists());
        found.extend(inside.map(|entry| format!("{top_folder}/{}", entry.file_name().to_string_lossy())));
    }
    found.sort();
    found
}

/// The top folder of a crate's folder.
fn top_folder(folder: &str) -> &str {
    folder.split('/').next().unwrap_or(folder)
}

/// A crate's name, and its folder.
fn packages() -> BTreeMap<String, String> {
    let name = |folder: &String| {
        let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
        let name = text.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"').map(str::to_owned));
        name.expect("a package's name")
    };
    crates().into_iter().map(|folder| (name(&folder), folder)).collect()
}

/// A manifest's direct dependencies.
fn dependencies(folder: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            let target = line.starts_with("[target.") && line.ends_with(".dependencies]");
            inside = target || matches!(line, "[dependencies]" | "[dev-dependencies]" | "[build-dependencies]");
        } else if inside && let Some((name, _)) = line.split_once('=') {
            names.insert(name.trim().trim_end_matches(".workspace").to_owned());
        }
    }
    names
}

/// Lines of code: no comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with("//"))
}

fn check(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn libraries_stay_in_their_rooms() {
    let mut problems = Vec::new();
    for folder in crates() {
        for name in dependencies(&folder) {
            let home = match name.as_str() {
                _ if name.starts_with("wasmtime") => "wasm-node/runtime",
                "sled" | "tonic" => "apiserver/storage",
                "redb" | "redis" => "wasm-node/keyvalue",
                "directories" => "tools",
                // With options of their own (docs/decisions/0136-options.md).
                "clap" if dependencies(&folder).contains("machinery-options") => continue,
                "clap" if folder == "machinery/options" || top_folder(&folder) == "tools" => continue,
                "clap" => "src, tools and those with options of their own",
                "kube" | "machinery-client" if top_folder(&folder) == "apiserver" => {
                    "those who are the API server's clients"
                }
                _ => continue,
            };
            if !folder.starts_with(home) {
                problems.push(format!("{folder} depends on {name}, whose home is {home}"));
            }
        }
    }
    for (path, text) in all_rust_files() {
        let names_sled = code(&text)
            .any(|line| line.contains("sled::Db") || line.contains("use sled") || line.contains("sled::Config"));
        if names_sled && path != "tests/tidy.rs" && !path.starts_with("apiserver/storage/src/store/") {
            problems.push(format!("{path} names sled: only apiserver/storage/src/store touches it"));
        }
        let reads = code(&text).any(|line| {
            ["env::var(", "env::vars(", "env::var_os(", "env::vars_os("].iter().any(|call| line.contains(call))
        });
        // The second one reads names only.
        let readers = ["tools/command/src/environment.rs", "machinery/env/src/child_process.rs"];
        // Cargo names the output folder of a build script in the environment.
        let is_exempt = path.starts_with("tests/") || path.ends_with("/build.rs");
        if reads && !readers.contains(&path.as_str()) && !is_exempt {
            problems.push(format!("{path} reads the environment: tools/command/src/environment.rs is its only reader"));
        }
    }
    check(&problems);
}

#[test]
fn decisions_are_pure() {
    let impure = [
        ("kube::Client", "a client"),
        ("kube::Api", "a client"),
        ("kube::{", "a client"),
        ("tokio::", "tokio"),
        ("tokio_util::", "tokio"),
        ("std::fs", "files"),
        ("std::thread", "threads"),
        ("async fn", "async"),
        ("Instant::now", "a clock"),
        ("Timestamp::now", "a clock"),
        ("SystemTime", "a clock"),
    ];
    let mut problems = Vec::new();
    let mut shells = BTreeSet::new();
    let pure = |path: &str| PURE.iter().any(|pure| path.starts_with(pure));
    for (path, text) in shipped_files().iter().filter(|(path, _)| pure(path)) {
        for (word, what) in impure {
            if !text.contains(word) {
                continue;
            }
            if SHELLS.iter().any(|(shell, _)| shell == path) {
                shells.insert(path.as_str());
            } else {
                problems.push(format!("{path} has {what} ({word}): it decides, and is tested without IO"));
            }
        }
    }
    let unread = |row: &&&str| !shipped_files().iter().any(|(path, _)| path.starts_with(**row));
    problems.extend(PURE.iter().chain(GENERIC).filter(unread).map(|row| format!("{row}: no file of a guard's table")));
    let unused = SHELLS.iter().filter(|(shell, _)| !shells.contains(shell));
    problems.extend(unused.map(|(shell, _)| format!("{shell} is an exception that is no longer needed")));
    check(&problems);
}

#[test]
fn every_file_begins_with_its_purpose() {
    let silent = all_rust_files().into_iter().filter(|(_, text)| !text.starts_with("//!"));
    check(&silent.map(|(path, _)| format!("{path} does not begin with //!")).collect::<Vec<_>>());
}

#[test]
fn nothing_is_unfinished() {
    let marks = [["todo", "!("], ["unimplemented", "!("], ["#[", "ignore"]].map(|parts| parts.concat());
    let mut problems = Vec::new();
    for (path, text) in all_rust_files() {
        if code(&text).any(|line| marks.iter().any(|mark| line.contains(mark.as_str()))) {
            problems.push(format!("{path} has an unfinished piece or an ignored test"));
        }
    }
    check(&problems);
}

#[test]
fn the_top_level_is_the_house() {
    let names =
        fs::read_dir(root()).expect("the root").flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let strangers = names.filter(|name| !TOP.contains(&name.as_str()));
    check(
        &strangers
            .map(|name| format!("{name} at the top level: docs/architecture.md names no such room"))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn each_dependency_has_its_reason() {
    let reasons = read("docs/dependencies.md");
    let mut problems = BTreeSet::new();
    let packages = packages();
    for folder in crates().into_iter().chain([".".to_owned()]) {
        for name in dependencies(&folder) {
            if !packages.contains_key(&name) && !reasons.contains(&format!("`{name}`")) {
                problems.insert(format!("{name} has no line in docs/dependencies.md"));
            }
        }
    }
    check(&problems.into_iter().collect::<Vec<_>>());
}

#[test]
fn docs_name_files_that_exist() {
    let mut pages = vec![root().join("README.md")];
    pages.extend(
        fs::read_dir(root().join("docs"))
            .expect("docs")
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file()),
    );
    let mut problems = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page).expect("a readable page");
        for quoted in text.split('`').skip(1).step_by(2) {
            let below = TOP_FOLDERS
                .iter()
                .chain(&["src", "tests", "docs", "packaging", "sample-workloads"])
                .any(|top_folder| quoted.starts_with(&format!("{top_folder}/")));
            let plain = quoted.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if below && plain && !root().join(quoted).exists() {
                problems.push(format!("{} names {quoted}, which does not exist", page.display()));
            }
        }
    }
    check(&problems);
}

/// Generic parts of the API server: what is particular about a kind stands in its row.
const GENERIC: &[&str] = &[
    "apiserver/storage/src/cache/",
    "apiserver/catalog/src/",
    "apiserver/server/src/http/",
    "apiserver/schema/src/patch/",
    "apiserver/schema/src/",
    "apiserver/server/src/server.rs",
    "apiserver/storage/src/store/",
    "apiserver/server/src/registry/",
];

/// Generic files that may name these plurals, and why.
const NAMES_KINDS: &[(&str, &[&str], &str)] = &[
    ("apiserver/server/src/http/info.rs", &["namespaces"], "the grammar of paths"),
    (
        "apiserver/server/src/http/kubelets.rs",
        &["pods", "nodes"],
        "subresources that a pod's node answers: logs and connections",
    ),
    (
        "apiserver/server/src/http/proxy/mod.rs",
        &["pods", "services", "nodes", "endpointslices"],
        "requests that are passed on, to the pods behind Services and to nodes",
    ),
    (
        "apiserver/server/src/http/services.rs",
        &["pods", "services", "nodes", "endpointslices"],
        "Services that the server itself reaches",
    ),
];

#[test]
fn generic_code_names_no_kind() {
    let files = all_rust_files();
    let rows = files.iter().filter(|(path, _)| path.starts_with("apiserver/resources/src/"));
    let named = rows.flat_map(|(_, text)| code(text).collect::<Vec<_>>());
    let plurals: BTreeSet<&str> = named
        .filter_map(|line| line.trim().strip_prefix("plural: \"")?.strip_suffix("\","))
        // A field of every EndpointSlice has this name, too.
        .filter(|p| !p.is_empty() && *p != "endpoints")
        .collect();
    assert!(plurals.len() > 20, "rows are found: {plurals:?}");
    let mut problems = Vec::new();
    for (path, text) in
        shipped_files().iter().filter(|(path, _)| GENERIC.iter().any(|generic| path.starts_with(generic)))
    {
        let allowed = NAMES_KINDS.iter().find(|(file, ..)| file == path).map_or(&[][..], |(_, plurals, _)| plurals);
        for line in text.lines() {
            for plural in plurals.iter().filter(|plural| !allowed.contains(plural)) {
                if line.contains(&format!("\"{plural}\"")) {
                    problems
                        .push(format!("{path} names {plural}: what is particular about a kind is a fact of its row"));
                }
            }
        }
    }
    check(&problems);
}
