//! MutatingAdmissionPolicy: expressions make changes of what is written.

use std::borrow::Cow;
use std::sync::Arc;

use apiserver_cel::{Budget, limits, to_json};
use machinery_api::error::{ApiError, ApiResult, Cause};
use machinery_api::patch::{self, JsonPatchRefusal, PatchKind};
use machinery_api::schema::{self, FieldValidation, Target};
use serde_json::{Value, json};

use super::compile::{Binding, Mutation, Policy, Programs};
use super::evaluate::{Authorizing, Seen, activation, conditions_hold, evaluate};
use super::{Index, Kind, Policies, Turns, matches, merge, params};
use crate::admission::matching::{Matched, has_own_body, own};
use crate::admission::{Context, Effects, Operation, Plugin, Step};
use crate::catalog::{Catalog, Served};
use crate::turns::patience;
use apiserver_resources::ResourceInfo;

/// See the module.
pub(in crate::admission) struct Mutating(Policies);

/// A policy with a binding of it and one parameter.
struct Invocation<'a> {
    policy: &'a Policy,
    binding: &'a Binding,
    params: Arc<Value>,
    matched: Matched,
}

/// A failure, and whose it is.
struct Failed {
    policy: String,
    binding: Option<String>,
    why: String,
    /// Whether it is what the policy says of this request, and not how the policy is set up.
    of_request: bool,
}

impl Mutating {
    pub(in crate::admission) fn new(served: Arc<Served>) -> Self {
        Self(Policies::new(served, Kind::Mutating))
    }

    async fn apply(
        &self,
        index: &Index,
        context: &Context<'_>,
        object: &mut Value,
        effects: &mut Effects,
    ) -> ApiResult<()> {
        let (catalog, mut turns) = (self.0.served.load(), Turns::new(context));
        let mut failed = Vec::new();
        let mut invocations = Vec::new();
        for (policy, bindings) in &index.in_force {
            turns.take().await;
            invoked(policy, bindings, context, object, &catalog, &mut invocations, &mut failed);
        }
        // In the second round only who wants to see what others change is asked once more.
        let second = effects.reinvocation.is_second;
        for invocation in invocations.iter().filter(|invocation| !second || invocation.policy.is_reinvoked) {
            turns.take().await;
            if run(invocation, context, object, &catalog, &mut failed).await {
                effects.reinvocation.is_due = true;
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(refusal(context, object, &failed)) }
    }
}

/// Adds what a policy is to be asked for this request.
fn invoked<'a>(
    policy: &'a Policy,
    bindings: &'a [Arc<Binding>],
    context: &Context<'_>,
    object: &Value,
    catalog: &Catalog,
    invocations: &mut Vec<Invocation<'a>>,
    failed: &mut Vec<Failed>,
) {
    let mut fail = |binding: Option<&Binding>, why: String| {
        if !policy.ignores_errors {
            let what = if binding.is_some() { "binding" } else { "policy" };
            let binding = binding.map(|binding| binding.name.clone());
            failed.push(Failed {
                policy: policy.name.clone(),
                binding,
                why: format!("failed to configure {what}: {why}"),
                of_request: false,
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

/// Makes the changes of a policy; whether there were any.
async fn run(
    invocation: &Invocation<'_>,
    context: &Context<'_>,
    object: &mut Value,
    catalog: &Catalog,
    failed: &mut Vec<Failed>,
) -> bool {
    let policy = invocation.policy;
    let programs = policy.programs().await;
    let (request, matched) = (context.request, &invocation.matched);
    let seen = Seen::new(context, object, matched);
    let mut fail = |why: String| {
        if !policy.ignores_errors {
            let binding = Some(invocation.binding.name.clone());
            failed.push(Failed { policy: policy.name.clone(), binding, why, of_request: true });
        }
    };
    // As the policy knows them.
    let known = match programs {
        Ok(programs) => shown(matched, context, object, catalog).await.map(|shown| (programs, shown)),
        Err(error) => Err(error),
    };
    let (programs, (before, old)) = match known {
        Ok(known) => known,
        Err(error) => {
            fail(error.status().message);
            return false;
        }
    };
    let old = old.as_deref();
    let holds = {
        let ask = Authorizing(context);
        let activation = activation(programs, &seen, (&before, old, &invocation.params), &ask);
        conditions_hold(&programs.conditions, &activation)
    };
    match holds {
        Ok(true) => {}
        Ok(false) => return false,
        Err(why) => {
            fail(why);
            return false;
        }
    }
    let mut shown = before.clone();
    for mutation in &programs.mutations {
        match changed((mutation, programs), invocation, (context, &seen, catalog), &shown, old) {
            Ok(mut changed) => {
                matched.print(request, catalog, &mut changed);
                shown = changed;
            }
            Err(why) => fail(why),
        }
    }
    if shown == before {
        return false;
    }
    match matched.back(context, catalog, shown).await {
        Ok(changed) => *object = changed,
        Err(error) => {
            fail(error.status().message);
            return false;
        }
    }
    true
}

/// The object and what is there, in the version that a policy knows.
async fn shown<'o>(
    matched: &Matched,
    context: &Context<'o>,
    object: &Value,
    catalog: &Catalog,
) -> ApiResult<(Value, Option<Cow<'o, Value>>)> {
    let before = matched.printed(context, catalog, object).await?;
    let old = match context.old {
        Some(old) => Some(matched.shown(context, catalog, old).await?),
        None => None,
    };
    Ok((before, old))
}

/// The object as a mutation leaves it.
fn changed(
    (mutation, programs): (&Mutation, &Programs),
    invocation: &Invocation<'_>,
    (context, seen, catalog): (&Context<'_>, &Seen, &Catalog),
    object: &Value,
    old: Option<&Value>,
) -> Result<Value, String> {
    let ask = Authorizing(context);
    let activation = activation(programs, seen, (object, old, &invocation.params), &ask);
    let mut budget = Budget::new(limits::PER_OBJECT).interrupt(&patience::is_over);
    let value = evaluate(&mutation.expression, &mutation.program, &activation, &mut budget)?;
    let made = to_json(&value).map_err(|error| error.to_string())?;
    let request = context.request;
    let row: Option<&ResourceInfo> = match &invocation.matched {
        Matched::Equivalent(other) => Some(&**other),
        Matched::Asked => own(request, catalog).map(|row| &**row),
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
        let patch = operations(made)?.to_string();
        let decoded = patch::apply(PatchKind::Json, patch.as_bytes(), object, &target, FieldValidation::Ignore);
        match decoded.map_err(|error| (patch::json_refusal(patch.as_bytes(), object), error)) {
            Ok(decoded) => decoded.object,
            // A test is a condition of the patch: where it doesn't hold, nothing is wrong and nothing is changed.
            Err((Some(JsonPatchRefusal::Test(_)), _)) => return Ok(object.clone()),
            Err((Some(JsonPatchRefusal::Operation(why)), _)) => return Err(format!("JSON Patch: {why}")),
            Err((None, error)) => return Err(format!("JSON Patch: {}", error.status().message)),
        }
    } else {
        let mut merged = object.clone();
        merge::merge(&mut merged, &made, target.schema)?;
        // What it is no configuration says: one kind can't be stored as another.
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

/// The operations of a JSON patch; `remove` and `move` have no value.
fn operations(made: Value) -> Result<Value, String> {
    let Value::Array(items) = made else { return Err("type mismatch: JSONPatchType.Convert: not a list".into()) };
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

fn refusal(context: &Context<'_>, object: &Value, failed: &[Failed]) -> ApiError {
    let mut status = context.request.refused(object, "admission request denied by policy").status();
    let messages = failed.iter().map(|failed| {
        let by = failed.binding.as_ref().map(|binding| format!(" with binding '{binding}'")).unwrap_or_default();
        format!("policy '{}'{by} denied request: {}", failed.policy, failed.why)
    });
    let causes: Vec<Cause> = messages.map(|message| Cause { message, ..Cause::default() }).collect();
    if let (Some(cause), Some(first)) = (causes.first(), failed.first()) {
        status.message = cause.message.clone();
        status.reason = if first.of_request { "Invalid" } else { "Forbidden" }.into();
    }
    status.details.get_or_insert_default().causes.extend(causes);
    ApiError::Said(Box::new(status))
}

impl Plugin for Mutating {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    fn mutate<'a>(&'a self, context: &'a Context<'_>, object: &'a mut Value, effects: &'a mut Effects) -> Step<'a> {
        if !matches!(context.request.operation, Operation::Create | Operation::Update) || !object.is_object() {
            return Step::Done(Ok(()));
        }
        let index = self.0.in_force(context);
        if index.in_force.is_empty() {
            return Step::Done(Ok(()));
        }
        Step::Wait(Box::pin(async move { self.apply(&index, context, object, effects).await }))
    }
}
