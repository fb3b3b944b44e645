//! Admin access to devices: allowed only in namespaces that carry its label. Upstream checks this in the registry of
//! claims and templates.

use machinery_api::error::{ApiError, ApiResult, Cause, GroupResource};
use serde_json::Value;

use super::{Context, Immediate, Operation, Request};

/// The label of namespaces that allow admin access.
const LABEL: &str = "resource.kubernetes.io/admin-access";

pub(super) const PLUGIN: Immediate =
    Immediate { name: "ResourceClaimAdminAccess", mutate: None, validate: Some(validate) };

fn validate(context: &Context<'_>, object: &Value) -> ApiResult<()> {
    let Request { group, resource, subresource, operation, namespace, kind, .. } = *context.request;
    if group != "resource.k8s.io" {
        return Ok(());
    }
    let Some(field) = requesting_field((resource, subresource, operation), object, context.old) else { return Ok(()) };
    let marked = context.objects.get("", "namespaces", "", namespace);
    if marked.is_some_and(|namespace| namespace["metadata"]["labels"][LABEL] == "true") {
        return Ok(());
    }
    let why = format!("admin access to devices requires the `{LABEL}: true` label on the containing namespace");
    let cause = Cause { reason: "FieldValueForbidden".into(), message: format!("Forbidden: {why}"), field };
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    Err(ApiError::Invalid(GroupResource::new(kind.group, kind.kind), name, vec![cause]))
}

/// Returns the field that requests admin access: in a new claim or template, or in an allocation that did not have it
/// before.
fn requesting_field(what: (&str, &str, Operation), object: &Value, old: Option<&Value>) -> Option<String> {
    const RESULTS: &str = "status.allocation.devices.results";
    let is_set = |entry: &Value| entry["adminAccess"].as_bool() == Some(true);
    let results = |of: &Value| of["status"]["allocation"]["devices"]["results"].as_array()?.iter().position(is_set);
    let requests = |spec: &Value| {
        let mut requests = spec["devices"]["requests"].as_array()?.iter();
        requests.position(|request| is_set(&request["exactly"]))
    };
    let (path, at) = match what {
        ("resourceclaims", "", Operation::Create) => ("spec.devices.requests", requests(&object["spec"])?),
        ("resourceclaimtemplates", "", Operation::Create) => {
            ("spec.devices.requests", requests(&object["spec"]["spec"])?)
        }
        ("resourceclaims", "status", Operation::Update) if old.and_then(results).is_none() => {
            (RESULTS, results(object)?)
        }
        _ => return None,
    };
    Some(format!("{path}[{at}].adminAccess"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_templates_and_allocations_are_looked_at_when_they_first_ask() {
        let devices = json!({"devices": {"requests": [
            {"name": "a", "exactly": {"adminAccess": false}}, {"name": "b", "exactly": {"adminAccess": true}}]}});
        let (claim, template) = (json!({"spec": devices}), json!({"spec": {"spec": devices}}));
        let found = Some("spec.devices.requests[1].adminAccess".to_owned());
        assert_eq!(requesting_field(("resourceclaims", "", Operation::Create), &claim, None), found);
        assert_eq!(requesting_field(("resourceclaimtemplates", "", Operation::Create), &template, None), found);
        assert_eq!(
            requesting_field(("resourceclaims", "", Operation::Update), &claim, Some(&claim)),
            None,
            "a spec never changes"
        );
        let status = |set: bool| json!({"status": {"allocation": {"devices": {"results": [{"adminAccess": set}]}}}});
        let update = ("resourceclaims", "status", Operation::Update);
        let found = Some("status.allocation.devices.results[0].adminAccess".to_owned());
        assert_eq!(requesting_field(update, &status(true), Some(&json!({}))), found);
        assert_eq!(requesting_field(update, &status(true), Some(&status(true))), None, "granted before");
        assert_eq!(requesting_field(update, &status(false), Some(&json!({}))), None);
        assert_eq!(requesting_field(("resourceclaims", "", Operation::Delete), &Value::Null, Some(&claim)), None);
    }
}
