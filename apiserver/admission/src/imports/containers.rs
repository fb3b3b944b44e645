//! The containers of a pod spec and their images, as pure functions.

use std::collections::BTreeSet;

use serde_json::Value;

/// A container's list, name and image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Container<'a> {
    list: &'static str,
    pub(super) name: &'a str,
    pub(super) image: &'a str,
}

/// All containers of a pod spec.
pub(super) fn containers(spec: &Value) -> impl Iterator<Item = Container<'_>> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(move |list| {
        let text = |value: &'_ Value| value.as_str().map(str::len).unwrap_or_default() > 0;
        let all = spec[list].as_array().into_iter().flatten().filter(move |container| text(&container["name"]));
        all.map(move |container| {
            let text = |field: &str| container[field].as_str().unwrap_or_default();
            Container { list, name: text("name"), image: text("image") }
        })
    })
}

/// Containers that are new or have a different image.
pub(super) fn changed<'a>(spec: &'a Value, old: Option<&Value>) -> Vec<Container<'a>> {
    match old {
        None => containers(spec).collect(),
        Some(old) => {
            let before: BTreeSet<Container<'_>> = containers(old).collect();
            containers(spec).filter(|container| !before.contains(container)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn changed_containers_are_new_or_have_another_image() {
        let old = json!({"initContainers": [{"name": "i", "image": "1"}], "containers": [{"name": "a", "image": "1"}]});
        let new = json!({
            "initContainers": [{"name": "i", "image": "1"}],
            "containers": [{"name": "a", "image": "2"}, {"image": "x"}],
            "ephemeralContainers": [{"name": "i", "image": "1"}],
        });
        let names =
            |found: Vec<Container<'_>>| found.iter().map(|c| format!("{}={}", c.name, c.image)).collect::<Vec<_>>();
        assert_eq!(names(changed(&new, Some(&old))), ["a=2", "i=1"]);
        assert_eq!(names(changed(&new, None)), ["i=1", "a=2", "i=1"]);
        assert!(changed(&old, Some(&old)).is_empty() && changed(&json!("x"), None).is_empty());
    }
}
