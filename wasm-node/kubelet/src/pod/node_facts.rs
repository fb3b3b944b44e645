//! The labels and taints of a Node that admission checks. Pure. The scheduler checks the same, but a pod may set
//! `nodeName` itself.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};
use machinery_rules::placement::{self, requirement_matches, tolerates};

use crate::static_pods::SOURCE;

/// The only field that `matchFields` supports.
const NAME_FIELD: &str = "metadata.name";

/// A node's properties that pods select by.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NodeFacts {
    /// The node's name.
    pub name: String,
    /// The node's labels.
    pub labels: BTreeMap<String, String>,
    /// The node's taints.
    pub taints: Vec<Taint>,
}

impl NodeFacts {
    /// The facts of a Node object.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).cloned().collect(),
        }
    }

    /// Whether the pod's node selector and its required node affinity admit the node.
    #[must_use]
    pub fn selected_by(&self, pod: &Pod) -> bool {
        let Some(spec) = &pod.spec else { return true };
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity.and_then(|of| of.required_during_scheduling_ignored_during_execution.as_ref());
        spec.node_selector.iter().flatten().all(|(key, value)| self.labels.get(key) == Some(value))
            && required.is_none_or(|selector| selector.node_selector_terms.iter().any(|term| self.matches(term)))
    }

    /// An empty term matches nothing.
    fn matches(&self, term: &NodeSelectorTerm) -> bool {
        let (labels, fields) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
        let holds = |of: &NodeSelectorRequirement, value: Option<&str>| {
            requirement_matches(&of.operator, of.values.as_deref().unwrap_or_default(), value)
        };
        let mut all = labels
            .map(|of| holds(of, self.labels.get(&of.key).map(String::as_str)))
            .chain(fields.map(|of| holds(of, (of.key == NAME_FIELD).then_some(self.name.as_str()))))
            .peekable();
        all.peek().is_some() && all.all(|holds| holds)
    }

    /// Whether the pod lacks a toleration for a `NoExecute` taint. The kubelet checks no other effect, and no static
    /// pods.
    #[must_use]
    pub fn repels(&self, pod: &Pod) -> bool {
        let sources = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(SOURCE));
        if sources.is_some_and(|source| source != "api") {
            return false;
        }
        let tolerations = || pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
        let drives = |taint: &&Taint| taint.effect == "NoExecute";
        self.taints.iter().filter(drives).any(|taint| !tolerations().any(|toleration| covers(toleration, taint)))
    }
}

fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    fn text(text: &Option<String>) -> &str {
        text.as_deref().unwrap_or_default()
    }
    let (key, operator) = (text(&toleration.key), text(&toleration.operator));
    let (value, effect) = (text(&toleration.value), text(&toleration.effect));
    let taint = placement::Taint { key: &taint.key, value: text(&taint.value), effect: &taint.effect };
    tolerates(placement::Toleration { key, operator, value, effect }, taint)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
    }

    fn facts() -> NodeFacts {
        let node = json!({"metadata": {"name": "n", "labels": {"disk": "ssd", "cores": "8"}}, "spec": {"taints": [
            {"key": "soft", "effect": "NoSchedule"}, {"key": "gone", "value": "yes", "effect": "NoExecute"},
        ]}});
        NodeFacts::of(&serde_json::from_value(node).unwrap())
    }

    #[test]
    fn selectors_and_required_terms_select() {
        let term =
            |key: &str, operator: &str, values: &[&str]| json!({"key": key, "operator": operator, "values": values});
        let selected = |selector: Value, terms: Option<Value>| {
            let affinity = terms.map(|terms| {
                json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}})
            });
            facts().selected_by(&pod(json!({"containers": [], "nodeSelector": selector, "affinity": affinity})))
        };
        assert!(selected(json!({}), None) && selected(json!({"disk": "ssd"}), None));
        assert!(!selected(json!({"disk": "hdd"}), None) && !selected(json!({"disk": "ssd", "more": ""}), None));
        let labels = |each: &[Value]| json!({"matchExpressions": each});
        let many = [term("cores", "Gt", &["4"]), term("disk", "In", &["ssd", "hdd"])];
        assert!(selected(json!({}), Some(json!([labels(&many)]))));
        let none = [many[0].clone(), term("disk", "DoesNotExist", &[])];
        assert!(!selected(json!({}), Some(json!([labels(&none)]))), "all of a term hold");
        assert!(selected(json!({}), Some(json!([labels(&none), labels(&many)]))), "one of the terms holds");
        assert!(!selected(json!({"disk": "hdd"}), Some(json!([labels(&many)]))), "the selector holds too");
        assert!(!selected(json!({}), Some(json!([{}]))) && !selected(json!({}), Some(json!([]))), "of nothing");
        let named = |name: &str| json!([{"matchFields": [term("metadata.name", "In", &[name])]}]);
        assert!(selected(json!({}), Some(named("n"))) && !selected(json!({}), Some(named("m"))));
    }

    #[test]
    fn a_taint_that_drives_away_is_to_be_tolerated() {
        let repelled = |tolerations: Value| facts().repels(&pod(json!({"containers": [], "tolerations": tolerations})));
        assert!(repelled(json!([])) && repelled(json!([{"key": "gone", "value": "no"}])));
        assert!(!repelled(json!([{"key": "gone", "value": "yes", "tolerationSeconds": 5}])));
        assert!(!repelled(json!([{"operator": "Exists"}])));
        let mut own = pod(json!({"containers": []}));
        own.metadata.annotations = Some([(SOURCE.to_owned(), "file".to_owned())].into());
        assert!(!facts().repels(&own), "a static pod is the node's own");
    }
}
