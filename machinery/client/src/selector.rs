//! Matches typed label selectors (`metav1.LabelSelector` of k8s-openapi) against labels without parsing;
//! `api::selector` is for selectors in requests.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// An object's labels.
pub type Labels = BTreeMap<String, String>;

/// Whether a selector matches these labels. An empty selector matches everything; a selector with an unknown operator
/// nothing.
#[must_use]
pub fn selects(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let exact = selector.match_labels.as_ref().is_none_or(|wanted| contains(labels, wanted));
    exact
        && selector.match_expressions.iter().flatten().all(|wish| {
            let value = labels.and_then(|l| l.get(&wish.key));
            let among = |value: &String| wish.values.iter().flatten().any(|v| v == value);
            match wish.operator.as_str() {
                "In" => value.is_some_and(among),
                "NotIn" => !value.is_some_and(among),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// Whether labels contain all wanted ones.
#[must_use]
pub fn contains(labels: Option<&Labels>, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
}

/// Whether a selector is empty, that is matches everything.
#[must_use]
pub fn is_everything(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// A selector in the syntax of requests.
#[must_use]
pub fn text(selector: &LabelSelector) -> String {
    let exact = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let wishes = selector.match_expressions.iter().flatten().map(|wish| {
        let values = wish.values.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(",");
        match wish.operator.as_str() {
            "In" => format!("{} in ({values})", wish.key),
            "NotIn" => format!("{} notin ({values})", wish.key),
            "DoesNotExist" => format!("!{}", wish.key),
            _ => wish.key.clone(),
        }
    });
    exact.chain(wishes).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator() {
        let labels = Labels::from([("app".into(), "web".into()), ("tier".into(), "a".into())]);
        for (selector, chosen) in [
            (serde_json::json!({}), true),
            (serde_json::json!({"matchLabels": {"app": "web"}}), true),
            (serde_json::json!({"matchLabels": {"app": "web", "x": "y"}}), false),
            (serde_json::json!({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]}), true),
            (serde_json::json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["a"]}]}), false),
            (serde_json::json!({"matchExpressions": [{"key": "none", "operator": "NotIn", "values": ["a"]}]}), true),
            (serde_json::json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}), false),
            (serde_json::json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]}), true),
            (serde_json::json!({"matchExpressions": [{"key": "app", "operator": "Near"}]}), false),
        ] {
            let parsed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(selects(&parsed, Some(&labels)), chosen, "{selector}");
        }
    }

    #[test]
    fn a_selector_as_text() {
        let selector = serde_json::json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "NotIn", "values": ["d", "e"]}, {"key": "f", "operator": "DoesNotExist"}]});
        assert_eq!(text(&serde_json::from_value(selector).unwrap()), "a=b,c notin (d,e),!f");
    }
}
