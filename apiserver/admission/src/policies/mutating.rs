//! The MutatingAdmissionPolicy plugin: applies the mutations of policies to the written object.

use std::borrow::Cow;
use std::sync::Arc;

use apiserver_cel::{Budget, limits, to_json};
use apiserver_schema::patch::{self, JsonPatchRefusal, PatchKind};
use apiserver_schema::{self as schema, FieldValidation, Target};
use machinery_api::error::{ApiError, ApiResult, Cause};
use serde_json::{Value, json};

use super::compile::{Binding, Mutation, Policy, Programs};
use super::evaluate::{ExpressionAuthorizer, RequestVariables, activation, conditions_hold, evaluate};
use super::{Index, Kind, Policies, YieldTimer, matches, merge, params};
use crate::matching::{Matched, has_own_body, resource_of};
use crate::{Context, Effects, MaybeReady, Operation, Plugin};
use apiserver_catalog::{Catalog, SharedCatalog};
use apiserver_resources::ResourceInfo;

pub(crate) struct Mutating(Policies);

/// A policy, one of its bindings, and one parameter.
struct Invocation<'a> {
    policy: &'a Policy,
    binding: &'a Binding,
    params: Arc<Value>,
    matched: Matched,
}

/// A failure, with the policy and binding that caused it.
struct PolicyFailure {
    policy: String,
    binding: Option<String>,
    why: String,
    /// Whether the evaluation failed, not the policy's configuration.
    is_evaluation: bool,
}

impl Mutating {
    pub(crate) fn new(served: Arc<SharedCatalog>) -> Self {
        Self(Policies::new(served, Kind::Mutating))
    }

    async fn apply(
        &self,
        index: &Index,
        context: &Context<'_>,
        object: &mut Value,
        effects: &mut Effects,
    ) -> ApiResult<()> {
        let (catalog, mut yield_timer) = (self.0.served.load(), YieldTimer::new(context));
        let mut failed = Vec::new();
        let mut invocations = Vec::new();
        for (policy, bindings) in &index.bound_policies {
            yield_timer.yield_if_due().await;
            add_invocations(policy, bindings, context, object, &catalog, &mut invocations, &mut failed);
        }
        // The second round runs only policies with `reinvocationPolicy: IfNeeded`.
        let second = effects.reinvocation.is_second;
        for invocation in invocations.iter().filter(|invocation| !second || invocation.policy.is_reinvoked) {
            yield_timer.yield_if_due().await;
            if run(invocation, context, object, &catalog, &mut failed).await {
                effects.reinvocation.is_due = true;
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(rejection_error(context, object, &failed)) }
    }
}

/// Adds the invocations of one policy for the request.
fn add_invocations<'a>(
    policy: &'a Policy,
    bindings: &'a [Arc<Binding>],
    context: &Context<'_>,
    object: &Value,
    catalog: &Catalog,
    invocations: &mut Vec<Invocation<'a>>,
    failed: &mut Vec<PolicyFailure>,
) {
    let mut fail = |binding: Option<&Binding>, why: String| {
        if !policy.ignores_errors {
            let what = if binding.is_some() { "binding" } else { "policy" };
            let binding = binding.map(|binding| binding.name.clone());
            failed.push(PolicyFailure {
                policy: policy.name.clone(),
                binding,
                why: format!("failed to configure {what}: {why}"),
                is_evaluation: false,
            });
        }
    };
    let matched = match matches(policy, context, object, catalog) {
        Ok(Some(matched)) => matched,
        Ok(None) => {
            if let Some(why) = &policy.error {
                fail(None, why.clone());
            }
            return;
        }
        Err(error) => return fail(None, error.status().message),
    };
    for binding in bindings {
        match binding.matches(context, object, catalog) {
            Ok(false) => continue,
            Ok(true) => {}
            Err(error) => {
                fail(Some(binding), error.status().message);
                continue;
            }
        }
        match params::collect(policy, binding, context, catalog) {
            Ok(found) => invocations.extend(found.into_iter().map(|params| Invocation {
                policy,
                binding,
                params,
                matched: matched.clone(),
            })),
            Err(why) => fail(Some(binding), why),
        }
    }
}

/// Runs the mutations of one invocation. Returns whether the object changed.
async fn run(
    invocation: &Invocation<'_>,
    context: &Context<'_>,
    object: &mut Value,
    catalog: &Catalog,
    failed: &mut Vec<PolicyFailure>,
) -> bool {
    let policy = invocation.policy;
    let programs = policy.programs().await;
    let (request, matched) = (context.request, &invocation.matched);
    let variables = RequestVariables::new(context, object, matched);
    let mut fail = |why: String| {
        if !policy.ignores_errors {
            let binding = Some(invocation.binding.name.clone());
            failed.push(PolicyFailure { policy: policy.name.clone(), binding, why, is_evaluation: true });
        }
    };
    // Both objects in the version that the policy matched.
    let converted = match programs {
        Ok(programs) => convert_objects(matched, context, object, catalog).await.map(|mutated| (programs, mutated)),
        Err(error) => Err(error),
    };
    let (programs, (before, old)) = match converted {
        Ok(converted) => converted,
        Err(error) => {
            fail(error.status().message);
            return false;
        }
    };
    let old = old.as_deref();
    let holds = {
        let authorizer = ExpressionAuthorizer(context);
        let activation = activation(programs, &variables, (&before, old, &invocation.params), &authorizer);
        conditions_hold(&programs.conditions, &activation, context.interrupt)
    };
    match holds {
        Ok(true) => {}
        Ok(false) => return false,
        Err(why) => {
            fail(why);
            return false;
        }
    }
    let mut mutated = before.clone();
    for mutation in &programs.mutations {
        match apply_mutation((mutation, programs), invocation, (context, &variables, catalog), &mutated, old) {
            Ok(mut changed) => {
                matched.normalise(request, catalog, &mut changed);
                mutated = changed;
            }
            Err(why) => fail(why),
        }
    }
    if mutated == before {
        return false;
    }
    match matched.convert_back(context, catalog, mutated).await {
        Ok(changed) => *object = changed,
        Err(error) => {
            fail(error.status().message);
            return false;
        }
    }
    true
}

/// Converts the object and the stored object to the version that a policy matched.
async fn convert_objects<'o>(
    matched: &Matched,
    context: &Context<'o>,
    object: &Value,
    catalog: &Catalog,
) -> ApiResult<(Value, Option<Cow<'o, Value>>)> {
    let before = matched.convert_normalised(context, catalog, object).await?;
    let old = match context.old {
        Some(old) => Some(matched.convert(context, catalog, old).await?),
        None => None,
    };
    Ok((before, old))
}

/// Applies one mutation to an object.
fn apply_mutation(
    (mutation, programs): (&Mutation, &Programs),
    invocation: &Invocation<'_>,
    (context, variables, catalog): (&Context<'_>, &RequestVariables, &Catalog),
    object: &Value,
    old: Option<&Value>,
) -> Result<Value, String> {
    let authorizer = ExpressionAuthorizer(context);
    let activation = activation(programs, variables, (object, old, &invocation.params), &authorizer);
    let mut budget = Budget::new(limits::PER_OBJECT).interrupt(&context.interrupt);
    let value = evaluate(&mutation.expression, &mutation.program, &activation, &mut budget)?;
    let patch_value = to_json(&value).map_err(|error| error.to_string())?;
    let request = context.request;
    let row: Option<&ResourceInfo> = match &invocation.matched {
        Matched::Equivalent(other) => Some(&**other),
        Matched::Requested => resource_of(request, catalog).map(|row| &**row),
    };
    let row = row.filter(|_| has_own_body(request, catalog));
    let kind = request.kind;
    let types = row.map(|row| row.schema.hold());
    let target = match (row, &types) {
        (Some(row), Some(types)) => row.target(types),
        _ => Target::kind(kind.group, kind.version, kind.kind)
            .ok_or_else(|| format!("Resource kind {} not found", kind.kind))?,
    };
    let mut changed = if mutation.is_json_patch {
        let patch = operations(patch_value)?.to_string();
        let decoded = patch::apply(PatchKind::Json, patch.as_bytes(), object, &target, FieldValidation::Ignore);
        match decoded.map_err(|error| (patch::json_refusal(patch.as_bytes(), object), error)) {
            Ok(decoded) => decoded.object,
            // A failed `test` operation is a false precondition of the patch: the object stays unchanged, without an
            // error.
            Err((Some(JsonPatchRefusal::Test(_)), _)) => return Ok(object.clone()),
            Err((Some(JsonPatchRefusal::Operation(why)), _)) => return Err(format!("JSON Patch: {why}")),
            Err((None, error)) => return Err(format!("JSON Patch: {}", error.status().message)),
        }
    } else {
        let mut merged = object.clone();
        merge::merge(&mut merged, &patch_value, target.schema)?;
        // A configuration cannot change the kind of an object.
        for key in ["apiVersion", "kind"] {
            merged[key] = object[key].clone();
        }
        merged
    };
    schema::default(target.schema, &mut changed);
    if let Some(row) = row {
        row.strategy.default(&mut changed);
    }
    Ok(changed)
}

/// The operations of a JSON patch. An absent `value` of `add`, `replace` or `test` is null.
fn operations(patch_value: Value) -> Result<Value, String> {
    let Value::Array(items) = patch_value else {
        return Err("type mismatch: JSONPatchType.Convert: not a list".into());
    };
    let operation = |item: Value| {
        let mut item = item;
        let valued = matches!(item["op"].as_str(), Some("add" | "replace" | "test"));
        if let Some(map) = item.as_object_mut()
            && valued
        {
            map.entry("value").or_insert(Value::Null);
        }
        item
    };
    Ok(json!(items.into_iter().map(operation).collect::<Vec<_>>()))
}

fn rejection_error(context: &Context<'_>, object: &Value, failed: &[PolicyFailure]) -> ApiError {
    let mut status = context.request.forbidden(object, "admission request denied by policy").status();
    let messages = failed.iter().map(|failed| {
        let by = failed.binding.as_ref().map(|binding| format!(" with binding '{binding}'")).unwrap_or_default();
        format!("policy '{}'{by} denied request: {}", failed.policy, failed.why)
    });
    let causes: Vec<Cause> = messages.map(|message| Cause { message, ..Cause::default() }).collect();
    if let (Some(cause), Some(first)) = (causes.first(), failed.first()) {
        status.message = cause.message.clone();
        status.reason = if first.is_evaluation { "Invalid" } else { "Forbidden" }.into();
    }
    status.details.get_or_insert_default().causes.extend(causes);
    ApiError::ForwardedStatus(Box::new(status))
}

impl Plugin for Mutating {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    fn mutate<'a>(
        &'a self,
        context: &'a Context<'_>,
        object: &'a mut Value,
        effects: &'a mut Effects,
    ) -> MaybeReady<'a> {
        if !matches!(context.request.operation, Operation::Create | Operation::Update) || !object.is_object() {
            return MaybeReady::Ready(Ok(()));
        }
        let index = self.0.bound_policies(context);
        if index.bound_policies.is_empty() {
            return MaybeReady::Ready(Ok(()));
        }
        MaybeReady::Pending(Box::pin(async move { self.apply(&index, context, object, effects).await }))
    }
}
