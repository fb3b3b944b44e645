//! The ValidatingAdmissionPolicy plugin: evaluates policies, and denies, warns or adds audit annotations.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use apiserver_cel::{Budget, limits};
use machinery_api::error::{ApiError, ApiResult, Cause};
use serde_json::{Value, json};

use super::compile::{Binding, Policy, Programs, Validation};
use super::evaluate::{ExpressionAuthorizer, OUT_OF_BUDGET, RequestVariables, activation, conditions_hold, evaluate};
use super::{Index, Kind, Policies, YieldTimer, matches, params};
use crate::matching::Matched;
use crate::review_input::with_managers;
use crate::{Context, Effects, Managed, MaybeReady, Plugin};
use apiserver_catalog::{Catalog, SharedCatalog};

const MESSAGE_BYTES_MAX: usize = 5 * 1024;
/// The maximum size of one audit annotation, as upstream, and the maximum number of values per key over all parameters.
const ANNOTATION_BYTES_MAX: usize = 10 * 1024;
const ANNOTATION_VALUES_MAX: usize = 16;

/// Audit annotations of a policy, by key.
type AuditAnnotations = BTreeMap<String, Vec<String>>;

pub(crate) struct Validating(Policies);

/// A failed validation.
#[derive(Debug, Clone)]
struct Denial {
    /// The index of the policy's validation.
    index: usize,
    reason: String,
    message: String,
}

impl Denial {
    /// The denial for a failed expression; `None` if the policy ignores errors.
    fn failed(policy: &Policy, index: usize, message: String) -> Option<Self> {
        (!policy.ignores_errors).then(|| Self { index, reason: "Invalid".into(), message })
    }
}

impl Validating {
    pub(crate) fn new(served: Arc<SharedCatalog>) -> Self {
        Self(Policies::new(served, Kind::Validating))
    }

    async fn decide(
        &self,
        index: &Index,
        context: &Context<'_>,
        object: &Value,
        effects: &mut Effects,
    ) -> ApiResult<()> {
        let (catalog, mut yield_timer) = (self.0.served.load(), YieldTimer::new(context));
        let mut first: Option<PolicyDenial> = None;
        for (policy, bindings) in &index.bound_policies {
            yield_timer.yield_if_due().await;
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
                    let denied = Denial::failed(policy, 0, format!("failed to configure policy: {why}"));
                    deny(&mut first, denied, policy, None);
                    continue;
                }
            };
            let policy_match =
                match MatchedPolicy::new(policy, context, (object, &effects.managed), &matched, &catalog).await {
                    Ok(policy_match) => policy_match,
                    Err(error) => {
                        let denied = Denial::failed(policy, 0, error.status().message);
                        deny(&mut first, denied, policy, None);
                        continue;
                    }
                };
            let mut annotations = AuditAnnotations::default();
            for binding in bindings {
                yield_timer.yield_if_due().await;
                let params = match policy_match.params(binding, object) {
                    Ok(params) => params,
                    Err(why) => {
                        let denied = Denial::failed(policy, 0, format!("failed to configure binding: {why}"));
                        deny(&mut first, denied, policy, Some(binding));
                        continue;
                    }
                };
                for params in params {
                    yield_timer.yield_if_due().await;
                    let (decisions, failed_annotations) = policy_match.evaluate_with(&params, &mut annotations);
                    for denied in decisions {
                        apply_actions(policy, binding, denied, effects, &mut first);
                    }
                    // A failed audit annotation denies the request, whatever the binding's actions are.
                    for denied in failed_annotations {
                        deny(&mut first, Some(denied), policy, Some(binding));
                    }
                }
            }
            for (key, values) in annotations {
                effects.audit([&policy.name, key.as_str()].join("/"), values.join(", "));
            }
        }
        match first {
            None => Ok(()),
            Some(PolicyDenial { denied, policy, binding }) => {
                Err(rejection_error(context, object, &denied, &policy, binding.as_deref()))
            }
        }
    }
}

/// The first denial, with its policy and binding.
struct PolicyDenial {
    denied: Denial,
    policy: String,
    binding: Option<String>,
}

fn deny(first: &mut Option<PolicyDenial>, denied: Option<Denial>, policy: &Policy, binding: Option<&Binding>) {
    if let Some(denied) = denied.filter(|_| first.is_none()) {
        let binding = binding.map(|binding| binding.name.clone());
        *first = Some(PolicyDenial { denied, policy: policy.name.clone(), binding });
    }
}

/// Applies the actions of a binding to a denial.
fn apply_actions(
    policy: &Policy,
    binding: &Binding,
    denied: Denial,
    effects: &mut Effects,
    first: &mut Option<PolicyDenial>,
) {
    for action in &binding.actions {
        match action.as_str() {
            "Deny" => deny(first, Some(denied.clone()), policy, Some(binding)),
            "Warn" => effects.warnings.push(format!(
                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                policy.name, binding.name, denied.message
            )),
            "Audit" => {
                let failure = json!([{
                    "message": denied.message, "policy": policy.name, "binding": binding.name,
                    "expressionIndex": denied.index, "validationActions": binding.actions,
                }]);
                effects.audit("validation.policy.admission.k8s.io/validation_failure".into(), failure.to_string());
            }
            _ => {}
        }
    }
}

/// A policy that matches the request.
struct MatchedPolicy<'a> {
    policy: &'a Policy,
    programs: &'a Programs,
    context: &'a Context<'a>,
    catalog: &'a Catalog,
    variables: RequestVariables,
    /// Both objects in the version that the policy matched.
    object: Cow<'a, Value>,
    old: Option<Cow<'a, Value>>,
}

impl<'a> MatchedPolicy<'a> {
    async fn new(
        policy: &'a Policy,
        context: &'a Context<'a>,
        (object, managed): (&'a Value, &Managed),
        matched: &Matched,
        catalog: &'a Catalog,
    ) -> ApiResult<Self> {
        let programs = policy.programs().await?;
        let variables = RequestVariables::new(context, object, matched);
        let old = match context.old {
            Some(old) => Some(matched.convert(context, catalog, old).await?),
            None => None,
        };
        let object = matched.convert(context, catalog, object).await?;
        let (object, old) = match policy.reads_managed_fields {
            true => {
                let old = old.map(|old| Cow::Owned(with_managers(old.into_owned(), &managed.old)));
                (Cow::Owned(with_managers(object.into_owned(), &managed.new)), old)
            }
            false => (object, old),
        };
        Ok(Self { policy, programs, context, catalog, variables, object, old })
    }

    /// The parameters of a binding. Empty if the binding does not match the request.
    fn params(&self, binding: &Binding, object: &Value) -> Result<Vec<Arc<Value>>, String> {
        let (context, catalog) = (self.context, self.catalog);
        if !binding.matches(context, object, catalog).map_err(|error| error.status().message)? {
            return Ok(Vec::new());
        }
        params::collect(self.policy, binding, context, catalog)
    }

    /// Evaluates the policy with one parameter. Returns the denials, and the failures of audit annotations.
    fn evaluate_with(&self, params: &Value, annotations: &mut AuditAnnotations) -> (Vec<Denial>, Vec<Denial>) {
        let (policy, programs, authorizer) = (self.policy, self.programs, ExpressionAuthorizer(self.context));
        let activation =
            activation(programs, &self.variables, (&self.object, self.old.as_deref(), params), &authorizer);
        match conditions_hold(&programs.conditions, &activation, self.context.interrupt) {
            Ok(true) => {}
            Ok(false) => return Default::default(),
            Err(why) => return (Denial::failed(policy, 0, why).into_iter().collect(), Vec::new()),
        }
        let mut denied = Vec::new();
        let mut budget = Budget::new(limits::PER_OBJECT).interrupt(&self.context.interrupt);
        for (index, validation) in programs.validations.iter().enumerate() {
            match evaluate(&validation.expression, &validation.program, &activation, &mut budget) {
                Ok(value) if value.as_bool() == Some(true) => {}
                Ok(_) => {
                    let message = message(validation, &activation, &mut budget);
                    denied.push(Denial { index, reason: validation.reason.clone(), message });
                }
                Err(why) => {
                    let out = why == OUT_OF_BUDGET;
                    denied.extend(Denial::failed(policy, index, why));
                    if out {
                        break;
                    }
                }
            }
        }
        (denied, add_annotations(self, &activation, annotations))
    }
}

/// Adds the audit annotations and returns the failures.
fn add_annotations(
    policy_match: &MatchedPolicy<'_>,
    activation: &apiserver_cel::Activation<'_>,
    annotations: &mut AuditAnnotations,
) -> Vec<Denial> {
    let mut denied = Vec::new();
    let mut budget = Budget::new(limits::PER_OBJECT).interrupt(&policy_match.context.interrupt);
    for annotation in &policy_match.programs.annotations {
        match evaluate(&annotation.expression, &annotation.program, activation, &mut budget) {
            Ok(value) => {
                let mut text = value.as_str().map(str::trim).unwrap_or_default();
                text = text.get(..text.floor_char_boundary(ANNOTATION_BYTES_MAX)).unwrap_or_default();
                let values = annotations.entry(annotation.key.clone()).or_default();
                if !text.is_empty() && values.len() < ANNOTATION_VALUES_MAX && !values.iter().any(|value| value == text)
                {
                    values.push(text.to_owned());
                }
            }
            Err(why) => denied.extend(Denial::failed(policy_match.policy, 0, why)),
        }
    }
    annotations.retain(|_, values| !values.is_empty());
    denied
}

/// The denial's message: the result of `messageExpression`, else `message`, else the expression itself.
fn message(validation: &Validation, activation: &apiserver_cel::Activation<'_>, budget: &mut Budget<'_>) -> String {
    let evaluated = validation.message_program.as_ref().and_then(|program| {
        let value = program.as_ref().ok()?.eval(activation, budget).ok()?;
        let text = value.as_str()?.trim();
        let fits = !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n');
        fits.then(|| text.to_owned())
    });
    evaluated
        .or_else(|| (!validation.message.is_empty()).then(|| validation.message.clone()))
        .unwrap_or_else(|| format!("failed expression: {}", validation.expression.trim()))
}

fn rejection_error(
    context: &Context<'_>,
    object: &Value,
    denied: &Denial,
    policy: &str,
    binding: Option<&str>,
) -> ApiError {
    let by = binding.map(|binding| format!(" with binding '{binding}'")).unwrap_or_default();
    let message = format!("ValidatingAdmissionPolicy '{policy}'{by} denied request: {}", denied.message);
    let mut status = context.request.forbidden(object, message.clone()).status();
    status.code = match denied.reason.as_str() {
        "Forbidden" => 403,
        "Unauthorized" => 401,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    status.reason = denied.reason.clone();
    status.details.get_or_insert_default().causes.push(Cause { message, ..Cause::default() });
    ApiError::ForwardedStatus(Box::new(status))
}

impl Plugin for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, effects: &'a mut Effects) -> MaybeReady<'a> {
        let index = self.0.bound_policies(context);
        if index.bound_policies.is_empty() {
            return MaybeReady::Ready(Ok(()));
        }
        MaybeReady::Pending(Box::pin(async move { self.decide(&index, context, object, effects).await }))
    }
}
