//! Priority: resolves a pod's priority from its PriorityClass, and allows only one default class.

use std::sync::Arc;

use machinery_api::error::ApiResult;
use serde_json::Value;

use super::{Context, Immediate, Operation};

pub(super) const PLUGIN: Immediate = Immediate { name: "Priority", mutate: Some(mutate), validate: Some(validate) };

const GROUP: &str = "scheduling.k8s.io";
const PLURAL: &str = "priorityclasses";

fn mutate(context: &Context<'_>, pod: &mut Value) -> ApiResult<()> {
    let request = context.request;
    if !request.is_pod() {
        return Ok(());
    }
    match request.operation {
        Operation::Create => resolve(context, pod),
        Operation::Update => {
            restore_resolved(context, pod);
            Ok(())
        }
        Operation::Delete | Operation::Connect => Ok(()),
    }
}

fn resolve(context: &Context<'_>, pod: &mut Value) -> ApiResult<()> {
    let request = context.request;
    let named = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let class = if named.is_empty() {
        default_class(context)
    } else {
        let class = context.objects.get(GROUP, PLURAL, "", &named);
        Some(class.ok_or_else(|| request.forbidden(pod, format!("no PriorityClass with name {named} was found")))?)
    };
    let (name, priority, policy) = match &class {
        Some(class) => (
            class["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            class["value"].as_i64().unwrap_or_default(),
            class["preemptionPolicy"].as_str().map(str::to_owned),
        ),
        None => (String::new(), 0, Some("PreemptLowerPriority".to_owned())),
    };
    if let Some(given) = pod["spec"]["priority"].as_i64().filter(|given| *given != priority) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {priority} from the given PriorityClass name"
        );
        return Err(request.forbidden(pod, why));
    }
    if let (Some(given), Some(policy)) = (pod["spec"]["preemptionPolicy"].as_str(), &policy)
        && given != policy
    {
        let why = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        );
        return Err(request.forbidden(pod, why));
    }
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    if !name.is_empty() {
        spec.insert("priorityClassName".into(), name.into());
    }
    spec.insert("priority".into(), priority.into());
    if let Some(policy) = policy {
        spec.insert("preemptionPolicy".into(), policy.into());
    }
    Ok(())
}

/// Restores the resolved fields if an update omits them.
fn restore_resolved(context: &Context<'_>, pod: &mut Value) {
    let Some(old) = context.old else { return };
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for field in ["priority", "preemptionPolicy"] {
        if spec.get(field).is_none_or(Value::is_null)
            && let Some(value) = old["spec"].get(field)
        {
            spec.insert(field.into(), value.clone());
        }
    }
}

/// The global default class. If a race created several, the one with the lowest value.
fn default_class(context: &Context<'_>) -> Option<Arc<Value>> {
    let classes = context.objects.list(GROUP, PLURAL, None);
    let defaults = classes.into_iter().filter(|class| class["globalDefault"].as_bool() == Some(true));
    defaults.min_by_key(|class| class["value"].as_i64().unwrap_or_default())
}

fn validate(context: &Context<'_>, class: &Value) -> ApiResult<()> {
    let request = context.request;
    let applies = request.group == GROUP && request.resource == PLURAL && request.subresource.is_empty();
    if !applies || request.operation == Operation::Delete || class["globalDefault"].as_bool() != Some(true) {
        return Ok(());
    }
    let Some(default) = default_class(context) else { return Ok(()) };
    let name = default["metadata"]["name"].as_str().unwrap_or_default();
    if request.operation == Operation::Update && class["metadata"]["name"].as_str() == Some(name) {
        return Ok(());
    }
    let why = format!("PriorityClass {name} is already marked as default. Only one default can exist");
    Err(request.forbidden(class, why))
}
