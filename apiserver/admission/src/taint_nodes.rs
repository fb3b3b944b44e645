//! TaintNodesByCondition: taints a new Node as not ready, until its controller has seen it ready.

use machinery_api::error::ApiResult;
use serde_json::{Value, json};

use super::{Context, Immediate, Operation, list_mut};

pub(super) const PLUGIN: Immediate = Immediate { name: "TaintNodesByCondition", mutate: Some(admit), validate: None };

const NOT_READY: &str = "node.kubernetes.io/not-ready";

fn admit(context: &Context<'_>, node: &mut Value) -> ApiResult<()> {
    if !context.request.is("nodes") || context.request.operation != Operation::Create {
        return Ok(());
    }
    // A missing spec is created.
    if let Some(map) = node.as_object_mut() {
        let spec = map.entry("spec").or_insert(Value::Null);
        if spec.is_null() {
            *spec = json!({});
        }
    }
    if let Some(taints) = list_mut(node, "spec", "taints")
        && !taints.iter().any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule")
    {
        taints.push(json!({"effect": "NoSchedule", "key": NOT_READY}));
    }
    Ok(())
}
