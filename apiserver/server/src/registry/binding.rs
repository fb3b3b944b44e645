//! Binding a Pod to a node: `pods/NAME/binding`, and the older `bindings`.

use machinery_api::ApiError;
use machinery_api::error::{GroupResource, Status};
use machinery_api::selector::go_quoted;
use serde_json::{Value, json};

use super::change::{Existing, ObjectChange};
use super::intent::{Intent, RequestObject};
use super::object::{self, metadata_mut};
use super::{Registry, RequestScope, VerbResult, check_uid};
use apiserver_admission::Options;
use apiserver_resources::options::WriteOptions;
use apiserver_resources::rules;

impl Registry {
    /// Binds the pod that a decoded Binding names; `call` is about pods, with the Binding's name where the path has
    /// none.
    pub async fn bind(
        &self,
        call: &mut RequestScope<'_>,
        binding: RequestObject<'_>,
        options: &WriteOptions,
    ) -> Result<VerbResult, ApiError> {
        self.write(call, &mut Intent::Bind(binding), Options::Write(options)).await
    }
}

/// The pod after the binding.
pub(super) fn bind(
    call: &RequestScope<'_>,
    binding: &Value,
    existing: Option<&Existing>,
    dry_run: bool,
) -> Result<ObjectChange, ApiError> {
    let name = call.name;
    if object::text(binding, "name") != name {
        return Err(ApiError::BadRequest("name in URL does not match name in Binding object".into()));
    }
    let target = &binding["target"];
    let mut findings = Vec::new();
    if !matches!(target["kind"].as_str().unwrap_or(""), "" | "Node") {
        let kind = apiserver_resources::field::quoted(target["kind"].as_str().unwrap_or(""));
        findings.push(format!("target.kind: Unsupported value: {kind}: supported values: \"Node\", \"<empty>\""));
    }
    let node = target["name"].as_str().unwrap_or("");
    if node.is_empty() {
        findings.push("target.name: Required value".to_owned());
    }
    match findings.as_slice() {
        [] => {}
        [one] => return Err(ApiError::BadRequest(one.clone())),
        many => return Err(ApiError::BadRequest(format!("[{}]", many.join(", ")))),
    }
    // A binding of the collection names its pod in its metadata.
    if name.is_empty() {
        return Err(ApiError::BadRequest("Name parameter required.".into()));
    }
    rules::check_segment(name)?;
    let existing = existing.ok_or_else(|| call.not_found())?;
    let old = &*existing.value;
    check_uid(call, binding, old, dry_run)?;
    let version = object::client_version(binding)?;
    if version != 0 && version != existing.modified() {
        let why = format!(
            "StorageError: invalid object, Code: 4, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: \
             ResourceVersion in precondition: {version}, ResourceVersion in object meta: {}",
            call.key(),
            existing.modified()
        );
        return Err(ApiError::Conflict(call.resource(), name.to_owned(), why));
    }
    let new = bind_to_node(old, binding, node, &object::time(call.now))
        .map_err(|why| ApiError::Conflict(GroupResource::new("", "pods/binding"), name.to_owned(), why))?;
    Ok(ObjectChange::Update(new))
}

/// The response to a binding.
pub(super) fn success() -> VerbResult {
    VerbResult::Status(201, Box::new(Status::success(201, None)))
}

/// The pod assigned to the node, or the reason why it can't be.
fn bind_to_node(pod: &Value, binding: &Value, node: &str, now: &str) -> Result<Value, String> {
    let name = object::text(pod, "name");
    if object::is_deleting(pod) {
        return Err(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    if let Some(assigned) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
        return Err(format!("pod {name} is already assigned to node {}", go_quoted(assigned)));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return Err(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut new = pod.clone();
    new["spec"]["nodeName"] = json!(node);
    let metadata = metadata_mut(&mut new);
    for field in ["annotations", "labels"] {
        for (key, value) in object::field(binding, field).and_then(Value::as_object).into_iter().flatten() {
            let map = metadata.entry(field).or_insert_with(|| json!({}));
            // Existing labels of the pod are kept; annotations are overwritten.
            if field == "annotations" || map.get(key).is_none() {
                map[key.as_str()] = value.clone();
            }
        }
    }
    let mut condition =
        json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    if !new["status"].is_object() {
        new["status"] = json!({});
    }
    let status = &mut new["status"];
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let conditions = status["conditions"].as_array_mut().expect("just made a list of it");
    match conditions.iter_mut().find(|c| c["type"] == "PodScheduled") {
        Some(old) => {
            if old["status"] == "True" {
                condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            *old = condition;
        }
        None => conditions.push(condition),
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_once() {
        let pod = json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {}, "status": {"phase": "Pending"}});
        let binding = json!({"metadata": {"name": "p", "labels": {"a": "c", "x": "y"}}});
        let new = bind_to_node(&pod, &binding, "n", "now").unwrap();
        assert_eq!(new["spec"]["nodeName"], "n");
        assert_eq!(new["metadata"]["labels"], json!({"a": "b", "x": "y"}));
        assert_eq!(new["status"]["conditions"][0]["status"], "True");
        assert_eq!(bind_to_node(&new, &binding, "m", "now").unwrap_err(), "pod p is already assigned to node \"n\"");
    }
}
