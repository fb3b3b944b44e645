//! Takes away what a schema doesn't know: unknown fields are stored nowhere.

use serde_json::Value;

use super::compile::{Additional, Schema};

/// How many paths are told.
const TOLD_MAX: usize = 100;

fn is_meta(key: &str) -> bool {
    matches!(key, "apiVersion" | "kind" | "metadata")
}

/// Where one is, and what was taken: written out only where something is.
struct Taken {
    path: Vec<Step>,
    told: Vec<String>,
}

enum Step {
    /// Into a map at the entry of that key.
    Key(String),
    /// Into a list.
    Index(usize),
}

impl Taken {
    fn tell(&mut self, key: &str) {
        if self.told.len() >= TOLD_MAX {
            return;
        }
        let mut out = String::new();
        for step in &self.path {
            match step {
                Step::Key(key) => {
                    if !out.is_empty() {
                        out.push('.');
                    }
                    out.push_str(key);
                }
                Step::Index(at) => out.push_str(&format!("[{at}]")),
            }
        }
        if !out.is_empty() {
            out.push('.');
        }
        out.push_str(key);
        self.told.push(out);
    }
}

/// Takes away, in a whole object; the paths of what was taken, sorted.
pub(crate) fn prune(object: &mut Value, schema: &Schema) -> Vec<String> {
    let mut taken = Taken { path: Vec::new(), told: Vec::new() };
    node(object, Some(schema), (true, false), &mut taken);
    taken.told.sort();
    taken.told
}

/// `resource`: an object with a kind and metadata, which are not the schema's to know. `kept`: an item of a list that is
/// kept as it is.
fn node(value: &mut Value, schema: Option<&Schema>, (resource, kept): (bool, bool), taken: &mut Taken) {
    let skips = schema.is_some_and(|schema| kept || schema.preserves);
    match value {
        Value::Object(map) => {
            let at_root = taken.path.is_empty();
            map.retain(|key, value| {
                if resource && is_meta(key) {
                    return true;
                }
                let Some(schema) = schema else {
                    taken.tell(key);
                    return false;
                };
                let below = match (schema.properties.get(key.as_str()), &schema.additional) {
                    (Some(property), _) => Some(property),
                    (None, Additional::Schema(schema)) => Some(&**schema),
                    (None, Additional::Allowed(_)) => None,
                    // What is kept as it is may hold anything.
                    (None, Additional::Unsaid) if skips => return true,
                    (None, Additional::Unsaid) => {
                        if !is_meta(key) || !at_root {
                            taken.tell(key);
                        }
                        return false;
                    }
                };
                if matches!(value, Value::Object(_) | Value::Array(_)) {
                    taken.path.push(Step::Key(key.clone()));
                    node(value, below, (below.is_some_and(|below| below.embedded), false), taken);
                    taken.path.pop();
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
                // What a list of anything holds is anything.
                if skips && below.is_none() {
                    continue;
                }
                taken.path.push(Step::Index(at));
                node(item, below, (below.is_some_and(|below| below.embedded), skips), taken);
                taken.path.pop();
            }
        }
        _ => {}
    }
}
