//! PodSecurity: pods keep to the standard that their namespace's labels ask for; templates are warned of.

mod baseline;
mod checks;
mod configuration;
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
use apiserver_resources::field::{causes, quoted};

pub(super) use self::configuration::Configuration;

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
                    warn_of_template(context, template, effects);
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
    Some(of_namespace(&namespace, configuration(context).defaults).0)
}

fn configuration<'a>(context: &Context<'a>) -> &'a Configuration {
    &context.configuration.pod_security
}

/// Whether nobody looks at what this user does, or at what is in this namespace.
fn is_exempt(context: &Context<'_>, effects: &mut Effects) -> bool {
    let (own, request) = (configuration(context), context.request);
    let why = match () {
        () if own.exempts_namespace(request.namespace) => "namespace",
        () if own.exempts_user(&request.user.name) => "user",
        () => return false,
    };
    exempted(why, effects);
    true
}

fn exempted(why: &str, effects: &mut Effects) {
    effects.audit("pod-security.kubernetes.io/exempt".into(), why.to_owned());
}

fn pod(context: &Context<'_>, object: &Value, effects: &mut Effects) -> ApiResult<()> {
    let request = context.request;
    if is_exempt(context, effects) {
        return Ok(());
    }
    let Some(policy) = policy_of(context) else {
        return Err(ApiError::Internal(format!("failed to lookup namespace \"{}\"", request.namespace)));
    };
    if policy.is_privileged() || context.old.is_some_and(|old| !is_significant(object, old)) {
        return Ok(());
    }
    if configuration(context).exempts_class(object) {
        exempted("runtimeClass", effects);
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

fn warn_of_template(context: &Context<'_>, template: &Value, effects: &mut Effects) {
    if is_exempt(context, effects) {
        return;
    }
    let told = |policy: &Policy| [policy.warn, policy.audit].iter().any(|of| of.level != Level::Privileged);
    let Some(policy) = policy_of(context).filter(told) else { return };
    if configuration(context).exempts_class(template) {
        return exempted("runtimeClass", effects);
    }
    note(policy, Pod::of(template), effects);
    warn(policy, Pod::of(template), effects);
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
    let own = configuration(context);
    let (policy, wrong) = of_namespace(namespace, own.defaults);
    let old = context.old.map(|old| of_namespace(old, own.defaults));
    if !wrong.is_empty() && old.as_ref().is_none_or(|(_, before)| *before != wrong) {
        let name = context.request.name.to_owned();
        return Step::Done(Err(ApiError::Invalid(Named::new("", "Namespace"), name, causes(wrong))));
    }
    let name = pod::text(&namespace["metadata"]["name"]);
    let ignored = || policy_ignored(namespace, policy, own.defaults);
    let Some((old, _)) = old.filter(|_| context.request.operation == Operation::Update) else {
        if own.exempts_namespace(name) {
            effects.warnings.extend(ignored());
        }
        return Step::Done(Ok(()));
    };
    let (new, old) = (policy.enforce, old.enforce);
    let relaxed = new.version == old.version && new.level <= old.level;
    if new == old || new.level == Level::Privileged || relaxed {
        return Step::Done(Ok(()));
    }
    if own.exempts_namespace(name) {
        effects.warnings.extend(ignored());
        return Step::Done(Ok(()));
    }
    Step::Wait(Box::pin(async move {
        let warnings = existing::warnings(context.objects, context.env, (name, own), new);
        effects.warnings.extend(warnings.await);
        Ok(())
    }))
}

/// What is told of a namespace that asks for a standard and is let pass.
fn policy_ignored(namespace: &Value, policy: Policy, defaults: Policy) -> Option<String> {
    if policy.is_privileged() || policy == defaults {
        return None;
    }
    let labels = &namespace["metadata"]["labels"];
    let asks = |mode: &str| {
        let label = |of: String| !labels[format!("pod-security.kubernetes.io/{of}")].is_null();
        label(mode.to_owned()) || label(format!("{mode}-version"))
    };
    let modes = [("enforce", policy.enforce), ("audit", policy.audit), ("warn", policy.warn)];
    let said = modes.iter().filter(|(mode, standard)| standard.level != Level::Privileged && asks(mode));
    let said: Vec<String> = said.map(|(mode, standard)| format!("{mode}={standard}")).collect();
    let name = quoted(pod::text(&namespace["metadata"]["name"]));
    let said = said.join(", ");
    Some(format!("namespace {name} is exempt from Pod Security, and the policy ({said}) will be ignored"))
}

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;
