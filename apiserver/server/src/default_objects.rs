//! The objects that every cluster has, as upstream's API server makes them: default roles and bindings, namespaces, classes.

use serde_json::Value;

static DEFAULT_OBJECTS: &str = include_str!("default-objects.jsonl");

/// Not kept parsed: it is read at a start only. A broken line would be a fault of the build, which a test rules out.
pub(crate) fn default_objects() -> impl Iterator<Item = Value> {
    DEFAULT_OBJECTS.lines().filter_map(|line| serde_json::from_str(line).ok())
}
