//! ValidatingAdmissionPolicy: expressions say no, warn, or leave a note.

use std::sync::Arc;

use apiserver_cel::{Budget, limits};
use machinery_api::error::{ApiError, ApiResult, Cause};
use serde_json::Value;

use super::compile::{Binding, Policy, Validation};
use super::evaluate::{Authorizing, OUT_OF_BUDGET, Seen, activation, conditions_hold, evaluate};
use super::{Kind, Policies, matches, params};
use crate::admission::{Context, Effects, Plugin, Step};
use crate::catalog::{Catalog, Served};

const MESSAGE_BYTES_MAX: usize = 5 * 1024;

/// See the module.
pub(in crate::admission) struct Validating(Policies);

/// Why a policy says no.
#[derive(Debug, Clone)]
struct Denied {
    reason: String,
    message: String,
}

impl Denied {
    /// Where an expression failed: the policy says whether that is a no.
    fn failed(policy: &Policy, message: String) -> Option<Self> {
        (!policy.ignores_errors).then(|| Self { reason: "Invalid".into(), message })
    }
}

impl Validating {
    pub(in crate::admission) fn new(served: Arc<Served>) -> Self {
        Self(Policies::new(served, Kind::Validating))
    }

    fn decide(&self, context: &Context<'_>, object: &Value, effects: &mut Effects) -> ApiResult<()> {
        let index = self.0.in_force(context);
        if index.in_force.is_empty() {
            return Ok(());
        }
        let catalog = self.0.served.load();
        let mut first: Option<(Denied, String, Option<String>)> = None;
        let mut deny = |denied: Option<Denied>, policy: &Policy, binding: Option<&Binding>| {
            if let Some(denied) = denied.filter(|_| first.is_none()) {
                first = Some((denied, policy.name.clone(), binding.map(|binding| binding.name.clone())));
            }
        };
        for (policy, bindings) in &index.in_force {
            let matched = match matches(policy, context, object, &catalog) {
                Ok(None) => match &policy.error {
                    None => continue,
                    Some(why) => Err(why.clone()),
                },
                Ok(Some(matched)) => Ok(matched),
                Err(error) => Err(error.status().message),
            };
            let matched = match matched {
                Ok(matched) => matched,
                Err(why) => {
                    deny(Denied::failed(policy, format!("failed to configure policy: {why}")), policy, None);
                    continue;
                }
            };
            let seen = Seen::new(context, object, &matched);
            for binding in bindings {
                match bound(policy, binding, context, object, &catalog, &seen) {
                    Ok(decisions) => {
                        for denied in decisions {
                            act(policy, binding, denied, effects, &mut deny);
                        }
                    }
                    Err(why) => {
                        let message = format!("failed to configure binding: {why}");
                        deny(Denied::failed(policy, message), policy, Some(binding));
                    }
                }
            }
        }
        match first {
            None => Ok(()),
            Some((denied, policy, binding)) => Err(refusal(context, object, &denied, &policy, binding.as_deref())),
        }
    }
}

/// What a binding makes of a no.
fn act(
    policy: &Policy,
    binding: &Binding,
    denied: Denied,
    effects: &mut Effects,
    deny: &mut impl FnMut(Option<Denied>, &Policy, Option<&Binding>),
) {
    for action in &binding.actions {
        match action.as_str() {
            "Deny" => deny(Some(denied.clone()), policy, Some(binding)),
            "Warn" => effects.warnings.push(format!(
                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                policy.name, binding.name, denied.message
            )),
            // `Audit` notes it in the audit event, which this server doesn't write yet.
            _ => {}
        }
    }
}

/// What a policy says by a binding: a list of what it says no to.
fn bound(
    policy: &Policy,
    binding: &Binding,
    context: &Context<'_>,
    object: &Value,
    catalog: &Catalog,
    seen: &Seen,
) -> Result<Vec<Denied>, String> {
    if !binding.matches(context, object, catalog).map_err(|error| error.status().message)? {
        return Ok(Vec::new());
    }
    let mut denied = Vec::new();
    for params in params::collect(policy, binding, context, catalog)? {
        denied.extend(with_params(policy, context, object, &params, seen));
    }
    Ok(denied)
}

fn with_params(policy: &Policy, context: &Context<'_>, object: &Value, params: &Value, seen: &Seen) -> Vec<Denied> {
    let ask = Authorizing(context);
    let activation = activation(policy, seen, (object, context.old, params), &ask);
    match conditions_hold(&policy.conditions, &activation) {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(why) => return Denied::failed(policy, why).into_iter().collect(),
    }
    let mut denied = Vec::new();
    let mut budget = Budget::new(limits::PER_OBJECT);
    for validation in &policy.validations {
        match evaluate(&validation.expression, &validation.program, &activation, &mut budget) {
            Ok(value) if value.as_bool() == Some(true) => {}
            Ok(_) => {
                let message = message(validation, &activation, &mut budget);
                denied.push(Denied { reason: validation.reason.clone(), message });
            }
            Err(why) => {
                let out = why == OUT_OF_BUDGET;
                denied.extend(Denied::failed(policy, why));
                if out {
                    return denied;
                }
            }
        }
    }
    let mut budget = Budget::new(limits::PER_OBJECT);
    for annotation in &policy.annotations {
        // The values go to the audit event; what fails counts now.
        let value = evaluate(&annotation.expression, &annotation.program, &activation, &mut budget);
        if let Err(why) = value {
            tracing::debug!(policy = policy.name, key = annotation.key, "audit annotation: {why}");
            denied.extend(Denied::failed(policy, why));
        }
    }
    denied
}

/// What who is refused is told: what the expression says, what is written, or the expression itself.
fn message(validation: &Validation, activation: &apiserver_cel::Activation<'_>, budget: &mut Budget<'_>) -> String {
    let said = validation.message_program.as_ref().and_then(|program| {
        let value = program.as_ref().ok()?.eval(activation, budget).ok()?;
        let text = value.as_str()?.trim();
        let fits = !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n');
        fits.then(|| text.to_owned())
    });
    said.or_else(|| (!validation.message.is_empty()).then(|| validation.message.clone()))
        .unwrap_or_else(|| format!("failed expression: {}", validation.expression.trim()))
}

fn refusal(context: &Context<'_>, object: &Value, denied: &Denied, policy: &str, binding: Option<&str>) -> ApiError {
    let by = binding.map(|binding| format!(" with binding '{binding}'")).unwrap_or_default();
    let message = format!("ValidatingAdmissionPolicy '{policy}'{by} denied request: {}", denied.message);
    let mut status = context.request.refused(object, message.clone()).status();
    status.code = match denied.reason.as_str() {
        "Forbidden" => 403,
        "Unauthorized" => 401,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    status.reason = denied.reason.clone();
    status.details.get_or_insert_default().causes.push(Cause { message, ..Cause::default() });
    ApiError::Said(Box::new(status))
}

impl Plugin for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, effects: &'a mut Effects) -> Step<'a> {
        Step::Done(self.decide(context, object, effects))
    }
}
