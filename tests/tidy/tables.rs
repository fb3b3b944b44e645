//! Columns of tables in the docs equal the code: kinds without a controller, weights of scheduler plugins, grants of host
//! interfaces, feature gates, annotations and metrics. `rows.rs` compares the names of rows.

use super::rows::{first_cells, names, part};
use super::shipped::shipped_files;
use super::{check, read};
use std::collections::BTreeSet;

const COMPATIBILITY: &str = "docs/compatibility.md";
const FLAGS: &str = "docs/flags.md";
const OBSERVABILITY: &str = "docs/observability.md";

/// The code that ships of the files below a folder.
fn sources(below: &str) -> impl Iterator<Item = &'static String> {
    shipped_files().iter().filter(move |(path, _)| path.starts_with(below)).map(|(_, text)| text)
}

/// The quoted text after a mark.
fn quoted<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    text.split_once(mark)?.1.split('"').next()
}

/// Compares a page's rows with those of the code, in both directions.
fn compare(page: &str, heading: &str, in_code: &BTreeSet<String>, on_page: &BTreeSet<String>) {
    let missing = in_code.difference(on_page).map(|row| format!("{page}, {heading}: add {row}"));
    let extra = on_page.difference(in_code).map(|row| format!("{page}, {heading}: remove {row}"));
    check(&missing.chain(extra).collect::<Vec<_>>());
}

/// The rows of a part's first table, as their first cells.
fn rows_of(part: &str, cells: usize) -> BTreeSet<String> {
    let rows =
        part.lines().skip_while(|line| !line.starts_with("|--")).skip(1).take_while(|line| line.starts_with('|'));
    let row = |line: &str| line.split('|').skip(1).take(cells).map(str::trim).collect::<Vec<_>>().join(" | ");
    rows.map(row).collect()
}

#[test]
fn kinds_without_a_controller_are_listed() {
    let heading = "### Served, and nothing acts on it yet";
    let inert = sources("apiserver/resources/src/").filter(|text| text.contains("    inert: Some("));
    let kinds: BTreeSet<String> = inert.filter_map(|text| quoted(text, "    kind: \"").map(str::to_owned)).collect();
    assert!(kinds.len() > 5, "kinds are found: {kinds:?}");
    compare(COMPATIBILITY, heading, &kinds, &first_cells(&part(COMPATIBILITY, heading)));
}

#[test]
fn weights_of_scheduler_plugins_are_those_of_the_code() {
    let heading = "## Scheduler plugins";
    let mut plugins = BTreeSet::new();
    for text in sources("scheduler/src/plugins/") {
        for row in text.split("Plugin {").skip(1) {
            let Some(name) = quoted(row, "..plugin(\"") else { continue };
            let weight = row.split_once("..plugin(").and_then(|(fields, _)| fields.split_once("    weight: "));
            let weight = weight.and_then(|(_, rest)| rest.split(',').next()).unwrap_or_default();
            plugins.insert(format!("{name} | {weight}"));
        }
    }
    assert!(plugins.len() > 10, "plugins are found: {plugins:?}");
    compare(COMPATIBILITY, heading, &plugins, &rows_of(&part(COMPATIBILITY, heading), 2));
}

#[test]
fn grants_of_host_interfaces_are_those_of_the_code() {
    let heading = "## Host interfaces";
    let table = read("wasm-node/runtime/src/host/mod.rs");
    let mut packages = BTreeSet::new();
    for row in table.split("    HostInterface {").skip(1).filter_map(|rest| rest.split("\n    },").next()) {
        let (Some(name), Some(package)) = (quoted(row, "name: \""), quoted(row, "package: \"")) else { continue };
        let granted = match row.split_once("GrantCondition::").map_or("", |(_, rest)| rest) {
            rest if rest.starts_with("Always") => "always".to_owned(),
            rest if rest.starts_with("ByAnnotation") => format!("by `{name}`"),
            _ => continue,
        };
        let version = quoted(row, "version: \"").map(str::to_owned).unwrap_or_else(|| {
            quoted(&read(&format!("wasm-node/runtime/src/host/{name}.rs")), "VERSION: &str = \"")
                .unwrap_or("")
                .to_owned()
        });
        packages.insert(format!("`{package}` | {version} | {granted}"));
    }
    assert!(packages.len() > 5, "packages are found: {packages:?}");
    compare(COMPATIBILITY, heading, &packages, &rows_of(&part(COMPATIBILITY, heading), 3));
}

#[test]
fn annotations_of_containers_are_listed() {
    let heading = "### Annotations";
    let text = read("machinery/api/src/names.rs");
    let annotations = names(&text, &["&str = \""]).into_iter().filter(|name| name.ends_with(".coracle.dev/"));
    let annotations: BTreeSet<String> = annotations.map(str::to_owned).collect();
    assert!(annotations.len() > 5, "annotations are found: {annotations:?}");
    compare(COMPATIBILITY, heading, &annotations, &first_cells(&part(COMPATIBILITY, heading)));
}

#[test]
fn feature_gates_are_listed_with_their_defaults() {
    let heading = "### Feature gates";
    let table = read("machinery/api/src/features.rs");
    let mut gates = BTreeSet::new();
    for row in table.split("Gate {").filter(|row| row.contains("name: \"")) {
        let stage = row.split_once("stage: Stage::").and_then(|(_, rest)| rest.split(',').next()).unwrap_or_default();
        let default = row.split_once("default: ").is_some_and(|(_, rest)| rest.starts_with("true"));
        gates.insert(format!(
            "`{}` | {} | {default}",
            quoted(row, "name: \"").unwrap_or_default(),
            stage.to_lowercase()
        ));
    }
    assert!(gates.len() > 1, "gates are found: {gates:?}");
    // A default that differs from upstream's is followed by upstream's.
    let shown = rows_of(&part(FLAGS, heading), 3).into_iter();
    let shown = shown.map(|row| row.split(" (upstream").next().unwrap_or_default().to_owned()).collect();
    compare(FLAGS, heading, &gates, &shown);
}

/// Values of labels in the form of a metric's name.
const NO_METRICS: &[&str] = &["apiserver_internal_error"];

/// Names in quotes that have the form of a metric's.
fn metrics(text: &str) -> impl Iterator<Item = &str> {
    const PREFIXES: &[&str] = &["apiserver_", "scheduler_", "workqueue_", "kubelet_", "coracle_", "kubernetes_"];
    const SUFFIXES: &[&str] = &["_seconds_total", "_working_set_bytes", "_start_time_seconds"];
    let is_name = |name: &&str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let is_metric = |name: &&str| {
        PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
    };
    text.split('"').skip(1).step_by(2).filter(is_name).filter(is_metric).filter(|name| !NO_METRICS.contains(name))
}

/// Files that register metrics under other names.
const METRICS_BESIDE: &[&str] = &["wasm-node/kubelet/src/server/requests.rs"];

#[test]
fn metrics_are_listed() {
    let page = part(OBSERVABILITY, "## Metrics");
    let (mut found, mut problems) = (0, Vec::new());
    for (path, text) in shipped_files() {
        if !path.ends_with("/metrics.rs") && !METRICS_BESIDE.contains(&path.as_str()) {
            continue;
        }
        for name in metrics(text) {
            found += 1;
            if !page.contains(name) {
                problems.push(format!("{OBSERVABILITY}, ## Metrics: add {name} ({path})"));
            }
        }
    }
    assert!(found > 40, "metrics are found: {found}");
    check(&problems);
}

/// The page about systems other than Linux.
const PORTABILITY: &str = "docs/portability.md";

/// Conditions on the system, in attributes and in `cfg!`.
fn distinguishes_systems(text: &str) -> bool {
    let conditions = text.split("cfg(").skip(1).chain(text.split("cfg!(").skip(1));
    let systems = ["unix", "windows", "target_os"];
    conditions.filter_map(|rest| rest.lines().next()).any(|line| {
        let mut words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words
            .by_ref()
            .find(|word| !["not", "any", "all", ""].contains(word))
            .is_some_and(|word| systems.contains(&word))
    })
}

#[test]
fn conditions_on_the_system_are_listed() {
    let page = read(PORTABILITY);
    let paths = page.split('`').skip(1).step_by(2).filter(|word| word.ends_with(".rs"));
    let listed: BTreeSet<&str> = paths.collect();
    let found = shipped_files().iter().filter(|(_, text)| distinguishes_systems(text));
    let found: BTreeSet<&str> = found.map(|(path, _)| path.as_str()).collect();
    assert!(found.len() > 40, "conditions are found: {found:?}");
    let missing =
        found.difference(&listed).map(|path| format!("{PORTABILITY}: add {path}, with what other systems lack"));
    let gone = listed.difference(&found).map(|path| format!("{PORTABILITY}: {path} distinguishes no systems"));
    check(&missing.chain(gone).collect::<Vec<_>>());
}
