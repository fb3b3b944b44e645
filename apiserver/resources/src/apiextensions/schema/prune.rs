//! Drops fields that the schema doesn't know, so that they are never stored.

use serde_json::Value;

use super::compile::{Additional, Schema};

/// Maximum number of reported paths.
const PATHS_MAX: usize = 100;

fn is_meta(key: &str) -> bool {
    matches!(key, "apiVersion" | "kind" | "metadata")
}

/// The current path, and the paths of dropped fields. A path is formatted only for a dropped field.
struct DroppedFields {
    path: Vec<PathStep>,
    paths: Vec<String>,
}

enum PathStep {
    /// The entry of a map.
    Key(String),
    /// The item of a list.
    Index(usize),
}

impl DroppedFields {
    fn record(&mut self, key: &str) {
        if self.paths.len() >= PATHS_MAX {
            return;
        }
        let mut out = String::new();
        for step in &self.path {
            match step {
                PathStep::Key(key) => {
                    if !out.is_empty() {
                        out.push('.');
                    }
                    out.push_str(key);
                }
                PathStep::Index(at) => out.push_str(&format!("[{at}]")),
            }
        }
        if !out.is_empty() {
            out.push('.');
        }
        out.push_str(key);
        self.paths.push(out);
    }
}

/// Prunes a whole object and returns the sorted paths of the dropped fields.
pub(crate) fn prune(object: &mut Value, schema: &Schema) -> Vec<String> {
    let mut dropped = DroppedFields { path: Vec::new(), paths: Vec::new() };
    node(object, Some(schema), (true, false), &mut dropped);
    dropped.paths.sort();
    dropped.paths
}

/// `resource`: the object has a kind and metadata, which the schema doesn't describe. `kept`: the item is in a list
/// that preserves unknown fields.
fn node(value: &mut Value, schema: Option<&Schema>, (resource, kept): (bool, bool), dropped: &mut DroppedFields) {
    let skips = schema.is_some_and(|schema| kept || schema.preserves);
    match value {
        Value::Object(map) => {
            let at_root = dropped.path.is_empty();
            map.retain(|key, value| {
                if resource && is_meta(key) {
                    return true;
                }
                let Some(schema) = schema else {
                    dropped.record(key);
                    return false;
                };
                let below = match (schema.properties.get(key.as_str()), &schema.additional) {
                    (Some(property), _) => Some(property),
                    (None, Additional::Schema(schema)) => Some(&**schema),
                    (None, Additional::Allowed(_)) => None,
                    // Preserved unknown fields.
                    (None, Additional::Unspecified) if skips => return true,
                    (None, Additional::Unspecified) => {
                        if !is_meta(key) || !at_root {
                            dropped.record(key);
                        }
                        return false;
                    }
                };
                if matches!(value, Value::Object(_) | Value::Array(_)) {
                    dropped.path.push(PathStep::Key(key.clone()));
                    node(value, below, (below.is_some_and(|below| below.embedded), false), dropped);
                    dropped.path.pop();
                }
                true
            });
        }
        Value::Array(items) => {
            let below = schema.and_then(|schema| schema.items.as_deref());
            for (at, item) in items.iter_mut().enumerate() {
                if !matches!(item, Value::Object(_) | Value::Array(_)) {
                    continue;
                }
                // A list without an item schema keeps its items.
                if skips && below.is_none() {
                    continue;
                }
                dropped.path.push(PathStep::Index(at));
                node(item, below, (below.is_some_and(|below| below.embedded), skips), dropped);
                dropped.path.pop();
            }
        }
        _ => {}
    }
}
