//! Finds the pods of many selectors without a look at each pod for each. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value};

/// The pods of a namespace by label.
pub(super) struct PodsByLabel<'a> {
    pods: &'a [Arc<Value>],
    /// By key, then by value.
    by_label: HashMap<&'a str, HashMap<&'a str, Vec<usize>>>,
}

fn labels(pod: &Value) -> impl Iterator<Item = (&str, &str)> {
    let labels = pod["metadata"]["labels"].as_object().into_iter().flatten();
    labels.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

impl<'a> PodsByLabel<'a> {
    pub(super) fn new(pods: &'a [Arc<Value>]) -> Self {
        let mut by_label: HashMap<_, HashMap<_, Vec<usize>>> = HashMap::new();
        for (at, pod) in pods.iter().enumerate() {
            for (key, value) in labels(pod) {
                by_label.entry(key).or_default().entry(value).or_default().push(at);
            }
        }
        Self { pods, by_label }
    }

    fn having(&self, (key, value): (&str, &str)) -> &[usize] {
        let pods = self.by_label.get(key).and_then(|by_value| by_value.get(value));
        pods.map(Vec::as_slice).unwrap_or_default()
    }

    /// The pods with all of these labels, in their order; none without labels, as a Service without a selector has none.
    pub(super) fn selected(&self, selector: &Map<String, Value>) -> Vec<&'a Arc<Value>> {
        let pairs = selector.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()));
        let pairs: Vec<_> = pairs.collect();
        let rarest = pairs.iter().map(|pair| self.having(*pair)).min_by_key(|pods| pods.len()).unwrap_or_default();
        let has = |pod: &Value, (key, value): &(&str, &str)| pod["metadata"]["labels"][*key] == **value;
        let pods = rarest.iter().map(|at| &self.pods[*at]);
        pods.filter(|pod| pairs.iter().all(|pair| has(pod, pair))).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_have_all_labels_of_a_selector() {
        let pod = |name: &str, labels: Value| Arc::new(json!({"metadata": {"name": name, "labels": labels}}));
        let pods = [
            pod("a", json!({"app": "web", "track": "stable"})),
            pod("b", json!({"app": "web", "track": "canary"})),
            pod("c", json!({"app": "web"})),
            pod("d", Value::Null),
        ];
        let index = PodsByLabel::new(&pods);
        let names = |selector: Value| -> Vec<String> {
            let found = index.selected(selector.as_object().unwrap());
            found.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(json!({"app": "web"})), ["a", "b", "c"]);
        assert_eq!(names(json!({"app": "web", "track": "canary"})), ["b"]);
        assert!(names(json!({"app": "web", "track": "none"})).is_empty());
        assert!(names(json!({})).is_empty());
    }
}
