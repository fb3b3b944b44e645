//! Who hands parameters to a policy has to be able to read them: an expression's message shows whatever it is given, so that a
//! policy about Secrets would read them for who may not.

use std::sync::Arc;

use machinery_api::GroupVersion;
use machinery_api::error::{ApiError, ApiResult, Cause, Named};
use serde_json::Value;

use super::{GROUP, Kind};
use crate::admission::{Context, Effects, Operation, Plugin, Step};
use crate::auth::{Attributes, MASTERS, UserInfo};
use crate::catalog::{Catalog, Served};

/// See the module.
pub(in crate::admission) struct ParamRights {
    served: Arc<Served>,
}

/// What of the API a policy's parameters are; `*` is all, where that can't be known.
struct Params {
    group: String,
    version: String,
    resource: String,
}

impl ParamRights {
    pub(in crate::admission) fn new(served: Arc<Served>) -> Self {
        Self { served }
    }

    async fn policy(&self, context: &Context<'_>, object: &Value) -> ApiResult<()> {
        let kind = &object["spec"]["paramKind"];
        if !kind.is_object() || context.old.is_some_and(|old| old["spec"]["paramKind"] == *kind) {
            return Ok(());
        }
        if self.may(context, "get", ("*", "*"), &params(&self.served.load(), kind)).await {
            return Ok(());
        }
        let text = |key: &str| kind[key].as_str().unwrap_or_default();
        let user = shown(context.request.user);
        let why = format!(
            "user {user} must have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={})",
            text("kind"),
            text("apiVersion")
        );
        Err(refused(context, object, "spec.paramKind", &why))
    }

    async fn binding(&self, context: &Context<'_>, object: &Value, of: Kind) -> ApiResult<()> {
        let reference = &object["spec"]["paramRef"];
        if !reference.is_object() {
            return Ok(());
        }
        let text = |key: &str| reference[key].as_str().unwrap_or_default();
        let verb = if text("name").is_empty() { "list" } else { "get" };
        let name = object["spec"]["policyName"].as_str().unwrap_or_default();
        let policy = context.objects.get(GROUP, of.policies(), "", name);
        let kind = policy.as_ref().map(|policy| &policy["spec"]["paramKind"]).unwrap_or(&Value::Null);
        let params = params(&self.served.load(), kind);
        if self.may(context, verb, (text("namespace"), text("name")), &params).await {
            return Ok(());
        }
        let user = shown(context.request.user);
        let why = match policy {
            Some(_) => format!("user {user} does not have \"{verb}\" permission on the object referenced by paramRef"),
            None => format!(
                "unable to get policy {name} to determine minimum required permissions and user {user} does not have \
                 \"{verb}\" permission for all groups, versions and resources"
            ),
        };
        Err(refused(context, object, "spec.paramRef", &why))
    }

    async fn may(&self, context: &Context<'_>, verb: &str, (namespace, name): (&str, &str), params: &Params) -> bool {
        let asked = Attributes {
            verb,
            group: &params.group,
            version: &params.version,
            resource: &params.resource,
            namespace,
            name,
            is_resource: true,
            ..Attributes::default()
        };
        context.authorizer.authorize(context.objects, context.request.user, &asked).await.allowed
    }
}

fn params(catalog: &Catalog, kind: &Value) -> Params {
    let text = |key: &str| kind[key].as_str().filter(|text| !text.is_empty());
    let all = || "*".to_owned();
    let Some(api_version) = text("apiVersion") else {
        return Params { group: all(), version: all(), resource: all() };
    };
    let GroupVersion { group, version } = GroupVersion::parse(api_version);
    let is_meant = |row: &&Arc<_>| {
        let row: &apiserver_resources::ResourceInfo = row;
        &*row.group == group && &*row.version == version && Some(&*row.kind) == text("kind")
    };
    let resource = catalog.resources().iter().find(is_meant).map_or_else(all, |row| row.plural.to_string());
    Params { group: group.to_owned(), version: version.to_owned(), resource }
}

/// A user as Go prints one.
fn shown(user: &UserInfo) -> String {
    let extra: Vec<String> = user.extra.iter().map(|(key, values)| format!("{key}:[{}]", values.join(" "))).collect();
    format!("&{{{} {} [{}] map[{}]}}", user.name, user.uid, user.groups.join(" "), extra.join(" "))
}

fn refused(context: &Context<'_>, object: &Value, field: &str, why: &str) -> ApiError {
    let cause =
        Cause { reason: "FieldValueForbidden".into(), message: format!("Forbidden: {why}"), field: field.into() };
    ApiError::Invalid(Named::new(GROUP, context.request.kind.kind), super::name_of(object).to_owned(), vec![cause])
}

impl Plugin for ParamRights {
    fn name(&self) -> &'static str {
        "PolicyParamRights"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, _: &'a mut Effects) -> Step<'a> {
        let request = context.request;
        let is_asked = request.group == GROUP
            && request.subresource.is_empty()
            && matches!(request.operation, Operation::Create | Operation::Update)
            && !request.user.is_in(MASTERS);
        let kinds = [Kind::Validating, Kind::Mutating];
        if !is_asked {
            return Step::Done(Ok(()));
        }
        if kinds.iter().any(|kind| kind.policies() == request.resource) {
            return Step::Wait(Box::pin(self.policy(context, object)));
        }
        match kinds.into_iter().find(|kind| kind.bindings() == request.resource) {
            Some(kind) => Step::Wait(Box::pin(self.binding(context, object, kind))),
            None => Step::Done(Ok(())),
        }
    }
}
