//! Builds the variables that expressions see for a request, and evaluates them within their cost budget.

use std::sync::Arc;

use apiserver_cel::{
    Activation, AuthorizationDecision, AuthorizationRequest, Authorizer as CelAuthorizer, Budget, Program,
    Value as CelValue, limits,
};
use futures::FutureExt as _;
use machinery_api::GroupVersionKind;
use serde_json::{Value, json};

use super::compile::{Conditions, Programs};
use crate::matching::Matched;
use crate::review_input;
use crate::{Context, Interrupt};
use apiserver_auth::{Attributes, UserInfo};

/// The error of an expression whose cost budget is exhausted.
pub(super) const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// Runs authorization checks of expressions for the requesting user.
pub(super) struct ExpressionAuthorizer<'a>(pub(super) &'a Context<'a>);

impl CelAuthorizer for ExpressionAuthorizer<'_> {
    fn check(&self, request: &AuthorizationRequest) -> AuthorizationDecision {
        let context = self.0;
        let account = request.user.as_deref().map(service_account);
        let user = account.as_ref().unwrap_or(context.request.user);
        let attributes = Attributes {
            verb: &request.verb,
            group: &request.group,
            version: "*",
            resource: &request.resource,
            subresource: &request.subresource,
            namespace: &request.namespace,
            name: &request.name,
            path: request.path.as_deref().unwrap_or_default(),
            is_resource: request.path.is_none(),
            fields: &[],
            labels: "",
        };
        // Authorizers decide from caches. One that has to wait fails the check, because an expression cannot await.
        match context.authorizer.authorize(context.objects, user, &attributes).now_or_never() {
            Some(decision) => AuthorizationDecision { allowed: decision.allowed, reason: decision.reason, error: None },
            None => AuthorizationDecision {
                error: Some("the authorizer did not answer at once".into()),
                ..AuthorizationDecision::default()
            },
        }
    }
}

fn service_account(name: &str) -> UserInfo {
    let namespace = name.split(':').nth(2).unwrap_or_default();
    let groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    UserInfo { name: name.to_owned(), groups, ..UserInfo::default() }
}

/// The variables of expressions other than the objects.
pub(super) struct RequestVariables {
    request: Value,
    namespace: Arc<Value>,
    check: AuthorizationRequest,
}

impl RequestVariables {
    pub(super) fn new(context: &Context<'_>, object: &Value, matched: &Matched) -> Self {
        let request = context.request;
        let namespace = match request.namespace {
            "" => Arc::default(),
            _ if request.kind.kind == "Namespace" && request.kind.group.is_empty() => Arc::default(),
            name => context.objects.get("", "namespaces", "", name).unwrap_or_default(),
        };
        let name = match request.name {
            "" => super::name_of(object),
            name => name,
        };
        let check = AuthorizationRequest {
            group: request.group.to_owned(),
            resource: request.resource.to_owned(),
            subresource: request.subresource.to_owned(),
            namespace: request.namespace.to_owned(),
            name: name.to_owned(),
            ..AuthorizationRequest::default()
        };
        Self { request: request_of(context, name, matched), namespace, check }
    }
}

fn request_of(context: &Context<'_>, name: &str, matched: &Matched) -> Value {
    let request = context.request;
    let kind = |kind: GroupVersionKind<'_>| json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    let resource =
        |group: &str, version: &str, resource: &str| json!({"group": group, "version": version, "resource": resource});
    let requested = resource(request.group, request.version, request.resource);
    let (matched_kind, matched_resource) = match matched {
        Matched::Requested => (kind(request.kind), requested.clone()),
        Matched::Equivalent(other) => (kind(other.gvk()), resource(&other.group, &other.version, &other.plural)),
    };
    let mut shown = json!({
        "kind": matched_kind,
        "resource": matched_resource,
        "requestKind": kind(request.kind),
        "requestResource": requested,
        "operation": request.operation.as_str(),
        "userInfo": review_input::user(request),
        "dryRun": request.options.dry_run(),
        "options": review_input::options(request),
    });
    // As in a review, empty fields are absent: an expression tests them with `has`.
    for (field, text) in [
        ("subResource", request.subresource),
        ("requestSubResource", request.subresource),
        ("name", name),
        ("namespace", request.shown_namespace(name)),
    ] {
        if !text.is_empty() {
            shown[field] = json!(text);
        }
    }
    shown
}

static NULL: Value = Value::Null;

/// The variables that every expression has.
fn base_activation<'d>(
    variables: &'d RequestVariables,
    (object, old, params): (&'d Value, Option<&'d Value>, &'d Value),
    authorizer: &'d dyn CelAuthorizer,
) -> Activation<'d> {
    Activation::new()
        .json("object", object)
        .json("oldObject", old.unwrap_or(&NULL))
        .json("request", &variables.request)
        .json("namespaceObject", &variables.namespace)
        .json("params", params)
        .authorizer(authorizer)
        .request_resource("authorizer.requestResource", variables.check.clone())
}

/// The variables of a policy's expressions.
pub(super) fn activation<'d>(
    policy: &Programs,
    variables: &'d RequestVariables,
    objects: (&'d Value, Option<&'d Value>, &'d Value),
    authorizer: &'d dyn CelAuthorizer,
) -> Activation<'d> {
    let mut activation = base_activation(variables, objects, authorizer);
    for (name, program) in &policy.variables {
        match program {
            Ok(program) => activation.variable(name, program),
            Err(why) => activation.bind_failed_variable(name, why),
        }
    }
    activation
}

/// Returns the value of an expression, or its error message.
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

/// Whether all conditions hold. One false condition decides, also if another one failed. Otherwise the failures are
/// returned.
pub(super) fn conditions_hold(
    conditions: &Conditions,
    activation: &Activation<'_>,
    interrupt: Interrupt,
) -> Result<bool, String> {
    let mut budget = Budget::new(limits::MATCH_CONDITIONS).interrupt(&interrupt);
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
    /// Whether all conditions of a webhook hold for a request.
    pub(crate) fn hold(
        &self,
        context: &Context<'_>,
        (object, old): (&Value, Option<&Value>),
        matched: &Matched,
    ) -> Result<bool, String> {
        let (variables, authorizer) = (RequestVariables::new(context, object, matched), ExpressionAuthorizer(context));
        conditions_hold(self, &base_activation(&variables, (object, old, &NULL), &authorizer), context.interrupt)
    }
}
