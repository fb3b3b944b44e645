//! The names that definitions have, by group: what a new one's are compared with, so that nobody reads all others for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use apiserver_resources::apiextensions::conditions;
use serde_json::Value;

use super::text;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Names {
    groups: HashMap<String, BTreeMap<String, Named>>,
}

#[derive(Debug)]
struct Named {
    accepted: Arc<Value>,
    /// Whether it has all the names that it wants.
    is_content: bool,
}

impl Names {
    /// A definition as it is now.
    pub(super) fn put(&mut self, definition: &Value) {
        let accepted = Arc::new(definition["status"]["acceptedNames"].clone());
        let named = Named { accepted, is_content: conditions::is_true(definition, conditions::NAMES_ACCEPTED) };
        let group = self.groups.entry(text(definition, "/spec/group").to_owned()).or_default();
        group.insert(text(definition, "/metadata/name").to_owned(), named);
    }

    /// A definition is gone.
    pub(super) fn remove(&mut self, group: &str, name: &str) {
        if let Some(definitions) = self.groups.get_mut(group) {
            definitions.remove(name);
            if definitions.is_empty() {
                self.groups.remove(group);
            }
        }
    }

    fn others<'a>(&'a self, group: &str, but: &'a str) -> impl Iterator<Item = (&'a String, &'a Named)> {
        self.groups.get(group).into_iter().flatten().filter(move |(name, _)| *name != but)
    }

    /// What all others of a group are called.
    pub(super) fn accepted(&self, group: &str, but: &str) -> Vec<Arc<Value>> {
        self.others(group, but).map(|(_, named)| named.accepted.clone()).collect()
    }

    /// Which others of a group wait for a name.
    pub(super) fn waiting(&self, group: &str, but: &str) -> Vec<String> {
        self.others(group, but).filter(|(_, named)| !named.is_content).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn those_who_wait_are_found_in_their_group() {
        let mut names = Names::default();
        for (name, group, status) in [("a.g", "g", "True"), ("b.g", "g", "False"), ("c.h", "h", "False")] {
            names.put(&json!({"metadata": {"name": name}, "spec": {"group": group}, "status": {
                "acceptedNames": {"plural": name}, "conditions": [{"type": "NamesAccepted", "status": status}]}}));
        }
        assert_eq!(names.waiting("g", "a.g"), ["b.g"]);
        assert!(names.waiting("g", "b.g").is_empty());
        assert_eq!(names.accepted("g", "b.g"), [Arc::new(json!({"plural": "a.g"}))]);
        names.remove("g", "b.g");
        names.remove("h", "c.h");
        assert!(names.waiting("g", "a.g").is_empty());
        assert_eq!(names.groups.len(), 1);
    }
}
