//! What expressions see of a request, and what they come to.

use std::sync::Arc;

use apiserver_cel::{
    Activation, AuthorizationRequest, Authorizer as Ask, Budget, Decided, Program, Value as CelValue, limits,
};
use futures::FutureExt as _;
use machinery_api::GroupVersionKind;
use serde_json::{Value, json};

use super::compile::{Conditions, Programs};
use crate::admission::Context;
use crate::admission::matching::Matched;
use crate::admission::webhooks::request_options;
use crate::auth::{Attributes, UserInfo};
use crate::turns::patience;

/// What an expression fails with.
pub(super) const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// Answers expressions from the server's authorizers, for who makes the request.
pub(super) struct Authorizing<'a>(pub(super) &'a Context<'a>);

impl Ask for Authorizing<'_> {
    fn check(&self, asked: &AuthorizationRequest) -> Decided {
        let context = self.0;
        let account = asked.user.as_deref().map(service_account);
        let user = account.as_ref().unwrap_or(context.request.user);
        let attributes = Attributes {
            verb: &asked.verb,
            group: &asked.group,
            version: "*",
            resource: &asked.resource,
            subresource: &asked.subresource,
            namespace: &asked.namespace,
            name: &asked.name,
            path: asked.path.as_deref().unwrap_or_default(),
            is_resource: asked.path.is_none(),
            fields: &[],
        };
        // Authorizers answer from caches. One that has to wait can't be waited for within an expression.
        match context.authorizer.authorize(context.objects, user, &attributes).now_or_never() {
            Some(decision) => Decided { allowed: decision.allowed, reason: decision.reason, error: None },
            None => Decided { error: Some("the authorizer did not answer at once".into()), ..Decided::default() },
        }
    }
}

fn service_account(name: &str) -> UserInfo {
    let namespace = name.split(':').nth(2).unwrap_or_default();
    let groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    UserInfo { name: name.to_owned(), groups, ..UserInfo::default() }
}

/// What expressions see beside the object.
pub(super) struct Seen {
    request: Value,
    namespace: Arc<Value>,
    check: AuthorizationRequest,
}

impl Seen {
    pub(super) fn new(context: &Context<'_>, object: &Value, matched: &Matched) -> Self {
        let request = context.request;
        let namespace = match request.namespace {
            "" => Arc::default(),
            _ if request.kind.kind == "Namespace" && request.kind.group.is_empty() => Arc::default(),
            name => context.objects.get("", "namespaces", "", name).unwrap_or_default(),
        };
        let named = match request.name {
            "" => super::name_of(object),
            name => name,
        };
        let check = AuthorizationRequest {
            group: request.group.to_owned(),
            resource: request.resource.to_owned(),
            subresource: request.subresource.to_owned(),
            namespace: request.namespace.to_owned(),
            name: named.to_owned(),
            ..AuthorizationRequest::default()
        };
        Self { request: request_of(context, named, matched), namespace, check }
    }
}

fn request_of(context: &Context<'_>, name: &str, matched: &Matched) -> Value {
    let request = context.request;
    let kind = |kind: GroupVersionKind<'_>| json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    let resource =
        |group: &str, version: &str, resource: &str| json!({"group": group, "version": version, "resource": resource});
    let asked = resource(request.group, request.version, request.resource);
    let (matched_kind, matched_resource) = match matched {
        Matched::Asked => (kind(request.kind), asked.clone()),
        Matched::Equivalent(other) => (kind(other.gvk()), resource(&other.group, &other.version, &other.plural)),
    };
    let user = request.user;
    json!({
        "kind": matched_kind,
        "resource": matched_resource,
        "subResource": request.subresource,
        "requestKind": kind(request.kind),
        "requestResource": asked,
        "requestSubResource": request.subresource,
        "name": name,
        "namespace": request.namespace,
        "operation": request.operation.as_str(),
        "userInfo": {"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra},
        "dryRun": request.options.dry_run(),
        "options": request_options(request),
    })
}

static NULL: Value = Value::Null;

/// The names that every expression may use.
fn names<'d>(
    seen: &'d Seen,
    (object, old, params): (&'d Value, Option<&'d Value>, &'d Value),
    ask: &'d dyn Ask,
) -> Activation<'d> {
    Activation::new()
        .json("object", object)
        .json("oldObject", old.unwrap_or(&NULL))
        .json("request", &seen.request)
        .json("namespaceObject", &seen.namespace)
        .json("params", params)
        .authorizer(ask)
        .request_resource("authorizer.requestResource", seen.check.clone())
}

/// The names that a policy's expressions may use.
pub(super) fn activation<'d>(
    policy: &Programs,
    seen: &'d Seen,
    objects: (&'d Value, Option<&'d Value>, &'d Value),
    ask: &'d dyn Ask,
) -> Activation<'d> {
    let mut activation = names(seen, objects, ask);
    for (name, program) in &policy.variables {
        match program {
            Ok(program) => activation.variable(name, program),
            Err(why) => activation.failed_variable(name, why),
        }
    }
    activation
}

/// What an expression comes to, or the words of its failure.
pub(super) fn evaluate<'d>(
    expression: &str,
    program: &Result<Program, String>,
    activation: &Activation<'d>,
    budget: &mut Budget<'_>,
) -> Result<CelValue<'d>, String> {
    if budget.exhausted() {
        return Err(OUT_OF_BUDGET.to_owned());
    }
    let program = program.as_ref().map_err(|why| format!("compilation error: {why}"))?;
    let value = program.eval(activation, budget);
    if budget.exhausted() {
        return Err(OUT_OF_BUDGET.to_owned());
    }
    value.map_err(|error| format!("expression '{expression}' resulted in error: {error}"))
}

/// Whether all conditions hold. One that doesn't settles it; otherwise what failed is told.
pub(super) fn conditions_hold(conditions: &Conditions, activation: &Activation<'_>) -> Result<bool, String> {
    let mut budget = Budget::new(limits::MATCH_CONDITIONS).interrupt(&patience::is_over);
    let mut failed = Vec::new();
    for (expression, program) in &conditions.expressions {
        match evaluate(expression, program, activation, &mut budget) {
            Ok(value) if value.as_bool() == Some(true) => {}
            Ok(_) => return Ok(false),
            Err(why) => failed.push(why),
        }
    }
    match failed.as_slice() {
        [] => Ok(true),
        _ if conditions.ignores_errors => Ok(false),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

impl Conditions {
    /// Whether all of a webhook's hold for a request.
    pub(in crate::admission) fn hold(
        &self,
        context: &Context<'_>,
        (object, old): (&Value, Option<&Value>),
        matched: &Matched,
    ) -> Result<bool, String> {
        let (seen, ask) = (Seen::new(context, object, matched), Authorizing(context));
        conditions_hold(self, &names(&seen, (object, old, &NULL), &ask))
    }
}
