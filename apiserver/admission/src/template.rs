//! Finds the pod template of an object, as a pure function.

use serde_json::Value;

/// The pod template of `object`, if its kind has one.
pub(super) fn pod_template<'a>(group: &str, resource: &str, object: &'a Value) -> Option<&'a Value> {
    let template = match (group, resource) {
        ("", "podtemplates") => &object["template"],
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => &object["spec"]["template"],
        ("batch", "cronjobs") => &object["spec"]["jobTemplate"]["spec"]["template"],
        _ => return None,
    };
    template.is_object().then_some(template)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn workloads_have_a_template() {
        let pod = json!({"spec": {"containers": []}});
        let rows = [
            ("", "podtemplates", json!({"template": pod})),
            ("apps", "deployments", json!({"spec": {"template": pod}})),
            ("batch", "cronjobs", json!({"spec": {"jobTemplate": {"spec": {"template": pod}}}})),
        ];
        for (group, resource, object) in rows {
            assert_eq!(pod_template(group, resource, &object), Some(&pod), "{resource}");
            assert_eq!(pod_template(group, resource, &json!({})), None);
        }
        assert_eq!(pod_template("", "pods", &json!({"spec": {"template": pod}})), None);
    }
}
