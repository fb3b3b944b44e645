//! RuntimeClass: sets a pod's overhead, node selector and tolerations from its class.

use machinery_api::selector::go_quoted;
use std::collections::BTreeMap;
use std::sync::Arc;

use machinery_api::error::ApiResult;
use machinery_api::quantity::Quantity;
use serde_json::{Map, Value};

use super::{Context, Immediate, Operation};

pub(super) const PLUGIN: Immediate = Immediate { name: "RuntimeClass", mutate: Some(mutate), validate: Some(validate) };

fn class(context: &Context<'_>, pod: &Value) -> ApiResult<Option<Arc<Value>>> {
    let Some(name) = pod["spec"]["runtimeClassName"].as_str() else { return Ok(None) };
    match context.objects.get("node.k8s.io", "runtimeclasses", "", name) {
        Some(class) => Ok(Some(class)),
        None => {
            Err(context.request.forbidden(pod, format!("pod rejected: RuntimeClass {} not found", go_quoted(name))))
        }
    }
}

fn mutate(context: &Context<'_>, pod: &mut Value) -> ApiResult<()> {
    if !context.request.is_pod() || context.request.operation != Operation::Create {
        return Ok(());
    }
    let Some(class) = class(context, pod)? else { return Ok(()) };
    if class["overhead"].is_object() {
        let fixed = &class["overhead"]["podFixed"];
        let given = &pod["spec"]["overhead"];
        if given.as_object().is_some_and(|given| !given.is_empty()) && amounts(given) != amounts(fixed) {
            let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
            return Err(context.request.forbidden(pod, why));
        }
        if fixed.is_object()
            && let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut)
        {
            spec.insert("overhead".into(), fixed.clone());
        }
    }
    schedule(context, pod, &class["scheduling"])
}

fn schedule(context: &Context<'_>, pod: &mut Value, scheduling: &Value) -> ApiResult<()> {
    if !scheduling.is_object() {
        return Ok(());
    }
    let mut selector: Map<String, Value> = pod["spec"]["nodeSelector"].as_object().cloned().unwrap_or_default();
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        if let Some(own) = selector.get(key).filter(|own| *own != value) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let why = format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(value),
                text(own)
            );
            return Err(context.request.forbidden(pod, why));
        }
        selector.insert(key.clone(), value.clone());
    }
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let tolerations = merge(&[list(&pod["spec"]["tolerations"]), list(&scheduling["tolerations"])].concat());
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    if !selector.is_empty() {
        spec.insert("nodeSelector".into(), selector.into());
    }
    if !tolerations.is_empty() {
        spec.insert("tolerations".into(), tolerations.into());
    }
    Ok(())
}

fn validate(context: &Context<'_>, pod: &Value) -> ApiResult<()> {
    if !context.request.is_pod() || context.request.operation != Operation::Create {
        return Ok(());
    }
    let class = class(context, pod)?;
    let overhead = &pod["spec"]["overhead"];
    let why = match class.as_deref().map(|class| &class["overhead"]).filter(|overhead| overhead.is_object()) {
        Some(defined) if rounded(&defined["podFixed"]) == rounded(overhead) => return Ok(()),
        Some(_) => "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
        None if !overhead.is_object() => return Ok(()),
        None => "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
    };
    Err(context.request.forbidden(pod, why))
}

/// Quantities by resource, compared by value; `None` stands for an invalid quantity.
fn amounts(list: &Value) -> BTreeMap<&str, Option<Quantity>> {
    let quantity = |value: &Value| Quantity::parse(value.as_str()?).ok();
    list.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), quantity(value))).collect()
}

/// The same in thousandths, rounded up as a stored pod's overhead is.
fn rounded(list: &Value) -> BTreeMap<&str, Option<i64>> {
    amounts(list).into_iter().map(|(name, amount)| (name, amount.map(|amount| amount.milli()))).collect()
}

/// Upstream's merge: a toleration that another one covers is dropped; of equal ones the first is kept.
fn merge(all: &[Value]) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::new();
    for (index, toleration) in all.iter().enumerate() {
        let later = all.get(index + 1..).unwrap_or_default();
        let redundant = merged.iter().any(|kept| covers(kept, toleration))
            || later.iter().any(|other| other != toleration && covers(other, toleration));
        if !redundant {
            merged.push(toleration.clone());
        }
    }
    merged
}

fn covers(wide: &Value, narrow: &Value) -> bool {
    if wide == narrow {
        return true;
    }
    let text = |toleration: &Value, field: &str| toleration[field].as_str().unwrap_or_default().to_owned();
    let exists = text(wide, "operator") == "Exists";
    if text(narrow, "key") != text(wide, "key") && !(text(wide, "key").is_empty() && exists) {
        return false;
    }
    let effect = text(wide, "effect");
    if text(narrow, "effect") != effect && !effect.is_empty() {
        return false;
    }
    if effect == "NoExecute"
        && let Some(limit) = wide["tolerationSeconds"].as_i64()
        && narrow["tolerationSeconds"].as_i64().is_none_or(|seconds| seconds > limit)
    {
        return false;
    }
    match text(wide, "operator").as_str() {
        "" | "Equal" => text(narrow, "operator") == "Equal" && text(narrow, "value") == text(wide, "value"),
        "Exists" => true,
        _ => false,
    }
}
