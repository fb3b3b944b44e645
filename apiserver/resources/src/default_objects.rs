//! The default objects of every cluster, as upstream's API server creates them: roles and bindings, namespaces,
//! classes.

use serde_json::Value;

static DEFAULT_OBJECTS: &str = include_str!("default-objects.jsonl");

/// All default objects. Parsed on each call, as they are only read at a start. A broken line would be a fault of the build, which a test
/// rules out.
pub fn all() -> impl Iterator<Item = Value> {
    DEFAULT_OBJECTS.lines().filter_map(|line| serde_json::from_str(line).ok())
}
