//! ValidatingAdmissionPolicy: expressions say no, warn, or leave a note.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use apiserver_cel::{Budget, limits};
use machinery_api::error::{ApiError, ApiResult, Cause};
use serde_json::{Value, json};

use super::compile::{Binding, Policy, Programs, Validation};
use super::evaluate::{Authorizing, OUT_OF_BUDGET, Seen, activation, conditions_hold, evaluate};
use super::{Index, Kind, Policies, Turns, matches, params};
use crate::admission::matching::Matched;
use crate::admission::webhooks::with_managers;
use crate::admission::{Context, Effects, Managed, Plugin, Step};
use crate::catalog::{Catalog, Served};
use crate::turns::patience;

const MESSAGE_BYTES_MAX: usize = 5 * 1024;
/// A note for the audit event, as upstream, and how many a policy's parameters make of one key.
const NOTE_BYTES_MAX: usize = 10 * 1024;
const NOTES_MAX: usize = 16;

/// Notes of a policy for the audit event, by their keys.
type Said = BTreeMap<String, Vec<String>>;

/// See the module.
pub(in crate::admission) struct Validating(Policies);

/// Why a policy says no.
#[derive(Debug, Clone)]
struct Denied {
    /// Which of the policy's validations.
    index: usize,
    reason: String,
    message: String,
}

impl Denied {
    /// Where an expression failed: the policy says whether that is a no.
    fn failed(policy: &Policy, index: usize, message: String) -> Option<Self> {
        (!policy.ignores_errors).then(|| Self { index, reason: "Invalid".into(), message })
    }
}

impl Validating {
    pub(in crate::admission) fn new(served: Arc<Served>) -> Self {
        Self(Policies::new(served, Kind::Validating))
    }

    async fn decide(
        &self,
        index: &Index,
        context: &Context<'_>,
        object: &Value,
        effects: &mut Effects,
    ) -> ApiResult<()> {
        let (catalog, mut turns) = (self.0.served.load(), Turns::new(context));
        let mut first: Option<Refused> = None;
        for (policy, bindings) in &index.in_force {
            turns.take().await;
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
                    let denied = Denied::failed(policy, 0, format!("failed to configure policy: {why}"));
                    deny(&mut first, denied, policy, None);
                    continue;
                }
            };
            let asked = match Asked::new(policy, context, (object, &effects.managed), &matched, &catalog).await {
                Ok(asked) => asked,
                Err(error) => {
                    let denied = Denied::failed(policy, 0, error.status().message);
                    deny(&mut first, denied, policy, None);
                    continue;
                }
            };
            let mut said = Said::default();
            for binding in bindings {
                turns.take().await;
                let params = match asked.params(binding, object) {
                    Ok(params) => params,
                    Err(why) => {
                        let denied = Denied::failed(policy, 0, format!("failed to configure binding: {why}"));
                        deny(&mut first, denied, policy, Some(binding));
                        continue;
                    }
                };
                for params in params {
                    turns.take().await;
                    let (decisions, unsaid) = asked.with(&params, &mut said);
                    for denied in decisions {
                        act(policy, binding, denied, effects, &mut first);
                    }
                    // Whatever the binding makes of a no: a note that can't be made is one.
                    for denied in unsaid {
                        deny(&mut first, Some(denied), policy, Some(binding));
                    }
                }
            }
            for (key, values) in said {
                effects.audit([&policy.name, key.as_str()].join("/"), values.join(", "));
            }
        }
        match first {
            None => Ok(()),
            Some(Refused { denied, policy, binding }) => {
                Err(refusal(context, object, &denied, &policy, binding.as_deref()))
            }
        }
    }
}

/// The first no, and whose it is.
struct Refused {
    denied: Denied,
    policy: String,
    binding: Option<String>,
}

fn deny(first: &mut Option<Refused>, denied: Option<Denied>, policy: &Policy, binding: Option<&Binding>) {
    if let Some(denied) = denied.filter(|_| first.is_none()) {
        let binding = binding.map(|binding| binding.name.clone());
        *first = Some(Refused { denied, policy: policy.name.clone(), binding });
    }
}

/// What a binding makes of a no.
fn act(policy: &Policy, binding: &Binding, denied: Denied, effects: &mut Effects, first: &mut Option<Refused>) {
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

/// A policy that is asked about a request.
struct Asked<'a> {
    policy: &'a Policy,
    programs: &'a Programs,
    context: &'a Context<'a>,
    catalog: &'a Catalog,
    seen: Seen,
    /// As the policy knows them.
    object: Cow<'a, Value>,
    old: Option<Cow<'a, Value>>,
}

impl<'a> Asked<'a> {
    async fn new(
        policy: &'a Policy,
        context: &'a Context<'a>,
        (object, managed): (&'a Value, &Managed),
        matched: &Matched,
        catalog: &'a Catalog,
    ) -> ApiResult<Self> {
        let programs = policy.programs().await?;
        let seen = Seen::new(context, object, matched);
        let old = match context.old {
            Some(old) => Some(matched.shown(context, catalog, old).await?),
            None => None,
        };
        let object = matched.shown(context, catalog, object).await?;
        let (object, old) = match policy.sees_managers {
            true => {
                let old = old.map(|old| Cow::Owned(with_managers(old.into_owned(), &managed.old)));
                (Cow::Owned(with_managers(object.into_owned(), &managed.new)), old)
            }
            false => (object, old),
        };
        Ok(Self { policy, programs, context, catalog, seen, object, old })
    }

    /// What a binding has it asked with; none where the binding is about something else.
    fn params(&self, binding: &Binding, object: &Value) -> Result<Vec<Arc<Value>>, String> {
        let (context, catalog) = (self.context, self.catalog);
        if !binding.matches(context, object, catalog).map_err(|error| error.status().message)? {
            return Ok(Vec::new());
        }
        params::collect(self.policy, binding, context, catalog)
    }

    /// What it says no to, and why notes for the audit event can't be made.
    fn with(&self, params: &Value, said: &mut Said) -> (Vec<Denied>, Vec<Denied>) {
        let (policy, programs, ask) = (self.policy, self.programs, Authorizing(self.context));
        let activation = activation(programs, &self.seen, (&self.object, self.old.as_deref(), params), &ask);
        match conditions_hold(&programs.conditions, &activation) {
            Ok(true) => {}
            Ok(false) => return Default::default(),
            Err(why) => return (Denied::failed(policy, 0, why).into_iter().collect(), Vec::new()),
        }
        let mut denied = Vec::new();
        let mut budget = Budget::new(limits::PER_OBJECT).interrupt(&patience::is_over);
        for (index, validation) in programs.validations.iter().enumerate() {
            match evaluate(&validation.expression, &validation.program, &activation, &mut budget) {
                Ok(value) if value.as_bool() == Some(true) => {}
                Ok(_) => {
                    let message = message(validation, &activation, &mut budget);
                    denied.push(Denied { index, reason: validation.reason.clone(), message });
                }
                Err(why) => {
                    let out = why == OUT_OF_BUDGET;
                    denied.extend(Denied::failed(policy, index, why));
                    if out {
                        break;
                    }
                }
            }
        }
        (denied, notes(self, &activation, said))
    }
}

/// Adds to the notes for the audit event; what fails is handed back.
fn notes(asked: &Asked<'_>, activation: &apiserver_cel::Activation<'_>, said: &mut Said) -> Vec<Denied> {
    let mut denied = Vec::new();
    let mut budget = Budget::new(limits::PER_OBJECT).interrupt(&patience::is_over);
    for annotation in &asked.programs.annotations {
        match evaluate(&annotation.expression, &annotation.program, activation, &mut budget) {
            Ok(value) => {
                let mut text = value.as_str().map(str::trim).unwrap_or_default();
                text = text.get(..text.floor_char_boundary(NOTE_BYTES_MAX)).unwrap_or_default();
                let values = said.entry(annotation.key.clone()).or_default();
                if !text.is_empty() && values.len() < NOTES_MAX && !values.iter().any(|value| value == text) {
                    values.push(text.to_owned());
                }
            }
            Err(why) => denied.extend(Denied::failed(asked.policy, 0, why)),
        }
    }
    said.retain(|_, values| !values.is_empty());
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
        let index = self.0.in_force(context);
        if index.in_force.is_empty() {
            return Step::Done(Ok(()));
        }
        Step::Wait(Box::pin(async move { self.decide(&index, context, object, effects).await }))
    }
}
