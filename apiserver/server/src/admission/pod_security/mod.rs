//! PodSecurity: pods keep to the standard that their namespace's labels ask for; templates are warned of.

mod baseline;
mod checks;
mod existing;
mod pod;
mod policy;
mod restricted;

use machinery_api::error::{ApiError, ApiResult, Named};
use serde_json::Value;

use self::checks::{details, violations};
use self::pod::Pod;
use self::policy::{Level, Policy, Standard, of_namespace};
use super::template::pod_template;
use super::{Context, Effects, Operation, Plugin, Step};
use apiserver_resources::field::causes;

pub(super) struct PodSecurity;

impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, effects: &'a mut Effects) -> Step<'a> {
        let request = context.request;
        if !matches!(request.operation, Operation::Create | Operation::Update) {
            return Step::Done(Ok(()));
        }
        match (request.group, request.resource, request.subresource) {
            ("", "pods", subresource) if is_pod_changing(subresource) => Step::Done(pod(context, object, effects)),
            ("", "namespaces", "") => namespace(context, object, effects),
            (group, resource, "") => {
                if let Some(template) = pod_template(group, resource, object) {
                    warn_of_template(context, Pod::of(template), effects);
                }
                Step::Done(Ok(()))
            }
            _ => Step::Done(Ok(())),
        }
    }
}

/// Subresources that hold the pod and may change what it may do; also those that nobody knows yet.
fn is_pod_changing(subresource: &str) -> bool {
    !matches!(subresource, "exec" | "attach" | "binding" | "eviction" | "log" | "portforward" | "proxy" | "status")
}

fn policy_of(context: &Context<'_>) -> Option<Policy> {
    let namespace = context.objects.get("", "namespaces", "", context.request.namespace)?;
    Some(of_namespace(&namespace).0)
}

fn pod(context: &Context<'_>, object: &Value, effects: &mut Effects) -> ApiResult<()> {
    let request = context.request;
    let Some(policy) = policy_of(context) else {
        return Err(ApiError::Internal(format!("failed to lookup namespace \"{}\"", request.namespace)));
    };
    if policy.is_privileged() || context.old.is_some_and(|old| !is_significant(object, old)) {
        return Ok(());
    }
    effects.audit("pod-security.kubernetes.io/enforce-policy".into(), policy.enforce.to_string());
    note(policy, Pod::of(object), effects);
    let found = violations(policy.enforce, Pod::of(object));
    if !found.is_empty() {
        let why = format!("violates PodSecurity \"{}\": {}", policy.enforce, details(&found));
        return Err(ApiError::Forbidden(Named::new("", "pods"), request.name.to_owned(), why));
    }
    if policy.warn != policy.enforce {
        warn(policy, Pod::of(object), effects);
    }
    Ok(())
}

fn warn_of_template(context: &Context<'_>, template: Pod<'_>, effects: &mut Effects) {
    if let Some(policy) = policy_of(context) {
        note(policy, template, effects);
        warn(policy, template, effects);
    }
}

/// What a pod that is let in does to a standard.
fn told(standard: Standard, pod: Pod<'_>) -> Option<String> {
    if standard.level == Level::Privileged {
        return None;
    }
    let found = violations(standard, pod);
    (!found.is_empty()).then(|| format!("would violate PodSecurity \"{standard}\": {}", details(&found)))
}

fn warn(policy: Policy, pod: Pod<'_>, effects: &mut Effects) {
    effects.warnings.extend(told(policy.warn, pod));
}

fn note(policy: Policy, pod: Pod<'_>, effects: &mut Effects) {
    if let Some(told) = told(policy.audit, pod) {
        effects.audit("pod-security.kubernetes.io/audit-violations".into(), told);
    }
}

/// Whether an update changes what may change of a pod and counts here: its images, and which containers there are.
fn is_significant(new: &Value, old: &Value) -> bool {
    let list = |pod: &Value, field: &str| -> Vec<(String, Value)> {
        let containers = pod["spec"][field].as_array().map(Vec::as_slice).unwrap_or_default();
        containers.iter().map(|c| (pod::text(&c["name"]).to_owned(), c["image"].clone())).collect()
    };
    for field in ["containers", "initContainers"] {
        let (new, old) = (list(new, field), list(old, field));
        if new.len() != old.len() || new.iter().zip(&old).any(|((_, new), (_, old))| new != old) {
            return true;
        }
    }
    let old = list(old, "ephemeralContainers");
    list(new, "ephemeralContainers")
        .iter()
        .any(|(name, image)| old.iter().find(|(other, _)| other == name).is_none_or(|(_, other)| other != image))
}

fn namespace<'a>(context: &'a Context<'_>, namespace: &'a Value, effects: &'a mut Effects) -> Step<'a> {
    let (policy, wrong) = of_namespace(namespace);
    let old = context.old.map(of_namespace);
    if !wrong.is_empty() && old.as_ref().is_none_or(|(_, before)| *before != wrong) {
        let name = context.request.name.to_owned();
        return Step::Done(Err(ApiError::Invalid(Named::new("", "Namespace"), name, causes(wrong))));
    }
    let Some((old, _)) = old.filter(|_| context.request.operation == Operation::Update) else {
        return Step::Done(Ok(()));
    };
    let (new, old) = (policy.enforce, old.enforce);
    let relaxed = new.version == old.version && new.level <= old.level;
    if new == old || new.level == Level::Privileged || relaxed {
        return Step::Done(Ok(()));
    }
    Step::Wait(Box::pin(async move {
        let warnings = existing::warnings(context.objects, context.env, pod::text(&namespace["metadata"]["name"]), new);
        effects.warnings.extend(warnings.await);
        Ok(())
    }))
}

#[cfg(test)]
mod tests;
