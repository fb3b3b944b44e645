//! The accepted names of all definitions by group, so that a name check does not read the other definitions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use apiserver_resources::apiextensions::conditions;
use serde_json::Value;

use super::text;

#[derive(Debug, Default)]
pub(super) struct NameIndex {
    groups: HashMap<String, BTreeMap<String, DefinitionNames>>,
}

#[derive(Debug)]
struct DefinitionNames {
    accepted: Arc<Value>,
    /// Whether all names that the definition requests are accepted.
    all_accepted: bool,
}

impl NameIndex {
    /// Adds or updates a definition.
    pub(super) fn insert_names(&mut self, definition: &Value) {
        let accepted = Arc::new(definition["status"]["acceptedNames"].clone());
        let named =
            DefinitionNames { accepted, all_accepted: conditions::is_true(definition, conditions::NAMES_ACCEPTED) };
        let group = self.groups.entry(text(definition, "/spec/group").to_owned()).or_default();
        group.insert(text(definition, "/metadata/name").to_owned(), named);
    }

    /// Removes a definition.
    pub(super) fn remove(&mut self, group: &str, name: &str) {
        if let Some(definitions) = self.groups.get_mut(group) {
            definitions.remove(name);
            if definitions.is_empty() {
                self.groups.remove(group);
            }
        }
    }

    fn others<'a>(&'a self, group: &str, but: &'a str) -> impl Iterator<Item = (&'a String, &'a DefinitionNames)> {
        self.groups.get(group).into_iter().flatten().filter(move |(name, _)| *name != but)
    }

    /// The accepted names of the other definitions in a group.
    pub(super) fn accepted(&self, group: &str, but: &str) -> Vec<Arc<Value>> {
        self.others(group, but).map(|(_, named)| named.accepted.clone()).collect()
    }

    /// The other definitions in a group that wait for names.
    pub(super) fn waiting(&self, group: &str, but: &str) -> Vec<String> {
        self.others(group, but).filter(|(_, named)| !named.all_accepted).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pending_definitions_are_found_in_their_group() {
        let mut names = NameIndex::default();
        for (name, group, status) in [("a.g", "g", "True"), ("b.g", "g", "False"), ("c.h", "h", "False")] {
            names.insert_names(&json!({"metadata": {"name": name}, "spec": {"group": group}, "status": {
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
