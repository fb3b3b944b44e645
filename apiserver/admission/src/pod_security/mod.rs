//! PodSecurity: enforces the standard of a namespace's labels on pods, and warns about pod templates.

mod baseline;
mod checks;
mod configuration;
mod existing;
mod pod;
mod policy;
mod restricted;

use machinery_api::error::{ApiError, ApiResult, GroupResource};
use serde_json::Value;

use self::checks::{details, violations};
use self::pod::Pod;
use self::policy::{Level, Policy, Standard, of_namespace};
use super::template::pod_template;
use super::{Context, Effects, MaybeReady, Operation, Plugin};
use apiserver_resources::field::quoted;

pub(super) use self::configuration::Configuration;

pub(super) struct PodSecurity;

impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, effects: &'a mut Effects) -> MaybeReady<'a> {
        let request = context.request;
        if !matches!(request.operation, Operation::Create | Operation::Update) {
            return MaybeReady::Ready(Ok(()));
        }
        match (request.group, request.resource, request.subresource) {
            ("", "pods", subresource) if is_pod_changing(subresource) => {
                MaybeReady::Ready(pod(context, object, effects))
            }
            ("", "namespaces", "") => namespace(context, object, effects),
            (group, resource, "") => {
                if let Some(template) = pod_template(group, resource, object) {
                    warn_of_template(context, template, effects);
                }
                MaybeReady::Ready(Ok(()))
            }
            _ => MaybeReady::Ready(Ok(())),
        }
    }
}

/// Whether the subresource contains the pod and may change fields that count here. Unknown subresources do.
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

/// Whether the request's namespace or user is exempt.
fn is_exempt(context: &Context<'_>, effects: &mut Effects) -> bool {
    let (own, request) = (configuration(context), context.request);
    let why = match () {
        () if own.exempts_namespace(request.namespace) => "namespace",
        () if own.exempts_user(&request.user.name) => "user",
        () => return false,
    };
    record_exemption(why, effects);
    true
}

fn record_exemption(why: &str, effects: &mut Effects) {
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
        record_exemption("runtimeClass", effects);
        return Ok(());
    }
    effects.audit("pod-security.kubernetes.io/enforce-policy".into(), policy.enforce.to_string());
    audit(policy, Pod::of(object), effects);
    let found = violations(policy.enforce, Pod::of(object));
    if !found.is_empty() {
        let why = format!("violates PodSecurity \"{}\": {}", policy.enforce, details(&found));
        return Err(ApiError::Forbidden(GroupResource::new("", "pods"), request.name.to_owned(), why));
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
    let is_reported = |policy: &Policy| [policy.warn, policy.audit].iter().any(|of| of.level != Level::Privileged);
    let Some(policy) = policy_of(context).filter(is_reported) else { return };
    if configuration(context).exempts_class(template) {
        return record_exemption("runtimeClass", effects);
    }
    audit(policy, Pod::of(template), effects);
    warn(policy, Pod::of(template), effects);
}

/// Describes the violations of an admitted pod against a standard of mode `warn` or `audit`.
fn would_violate(standard: Standard, pod: Pod<'_>) -> Option<String> {
    if standard.level == Level::Privileged {
        return None;
    }
    let found = violations(standard, pod);
    (!found.is_empty()).then(|| format!("would violate PodSecurity \"{standard}\": {}", details(&found)))
}

fn warn(policy: Policy, pod: Pod<'_>, effects: &mut Effects) {
    effects.warnings.extend(would_violate(policy.warn, pod));
}

fn audit(policy: Policy, pod: Pod<'_>, effects: &mut Effects) {
    if let Some(message) = would_violate(policy.audit, pod) {
        effects.audit("pod-security.kubernetes.io/audit-violations".into(), message);
    }
}

/// Whether an update changes mutable fields that count here: the images, or the set of containers.
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

fn namespace<'a>(context: &'a Context<'_>, namespace: &'a Value, effects: &'a mut Effects) -> MaybeReady<'a> {
    let own = configuration(context);
    let (policy, wrong) = of_namespace(namespace, own.defaults);
    let old = context.old.map(|old| of_namespace(old, own.defaults));
    if !wrong.is_empty() && old.as_ref().is_none_or(|(_, before)| *before != wrong) {
        let name = context.request.name.to_owned();
        let kind = GroupResource::new("", "Namespace");
        return MaybeReady::Ready(Err(ApiError::Invalid(kind, name, wrong.into_causes())));
    }
    let name = pod::text(&namespace["metadata"]["name"]);
    let ignored = || policy_ignored(namespace, policy, own.defaults);
    let Some((old, _)) = old.filter(|_| context.request.operation == Operation::Update) else {
        if own.exempts_namespace(name) {
            effects.warnings.extend(ignored());
        }
        return MaybeReady::Ready(Ok(()));
    };
    let (new, old) = (policy.enforce, old.enforce);
    let relaxed = new.version == old.version && new.level <= old.level;
    if new == old || new.level == Level::Privileged || relaxed {
        return MaybeReady::Ready(Ok(()));
    }
    if own.exempts_namespace(name) {
        effects.warnings.extend(ignored());
        return MaybeReady::Ready(Ok(()));
    }
    MaybeReady::Pending(Box::pin(async move {
        let warnings = existing::warnings(context.objects, context.env, (name, own), new);
        effects.warnings.extend(warnings.await);
        Ok(())
    }))
}

/// The warning for an exempt namespace whose labels request a standard.
fn policy_ignored(namespace: &Value, policy: Policy, defaults: Policy) -> Option<String> {
    if policy.is_privileged() || policy == defaults {
        return None;
    }
    let labels = &namespace["metadata"]["labels"];
    let is_labelled = |mode: &str| {
        let label = |of: String| !labels[format!("pod-security.kubernetes.io/{of}")].is_null();
        label(mode.to_owned()) || label(format!("{mode}-version"))
    };
    let modes = [("enforce", policy.enforce), ("audit", policy.audit), ("warn", policy.warn)];
    let modes = modes.iter().filter(|(mode, standard)| standard.level != Level::Privileged && is_labelled(mode));
    let modes: Vec<String> = modes.map(|(mode, standard)| format!("{mode}={standard}")).collect();
    let name = quoted(pod::text(&namespace["metadata"]["name"]));
    let modes = modes.join(", ");
    Some(format!("namespace {name} is exempt from Pod Security, and the policy ({modes}) will be ignored"))
}

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;
