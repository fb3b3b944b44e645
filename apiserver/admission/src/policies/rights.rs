//! Requires read access to the parameters of a policy from users who write it or its binding. The message of an
//! expression may contain any parameter, so a policy could otherwise reveal Secrets to a user who cannot read them.

use std::sync::Arc;

use machinery_api::GroupVersion;
use machinery_api::error::{ApiError, ApiResult, Cause, GroupResource};
use serde_json::Value;

use super::{GROUP, Kind};
use crate::{Context, Effects, MaybeReady, Operation, Plugin};
use apiserver_auth::{Attributes, MASTERS, UserInfo};
use apiserver_catalog::{Catalog, SharedCatalog};

pub(crate) struct ParamRights {
    served: Arc<SharedCatalog>,
}

/// The API resource of a policy's parameters; `*` stands for all if it cannot be resolved.
struct ParamResource {
    group: String,
    version: String,
    resource: String,
}

impl ParamRights {
    pub(crate) fn new(served: Arc<SharedCatalog>) -> Self {
        Self { served }
    }

    async fn policy(&self, context: &Context<'_>, object: &Value) -> ApiResult<()> {
        let kind = &object["spec"]["paramKind"];
        if !kind.is_object() || context.old.is_some_and(|old| old["spec"]["paramKind"] == *kind) {
            return Ok(());
        }
        if self.is_allowed(context, "get", ("*", "*"), &params(&self.served.load(), kind)).await {
            return Ok(());
        }
        let text = |key: &str| kind[key].as_str().unwrap_or_default();
        let user = go_format(context.request.user);
        let why = format!(
            "user {user} must have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={})",
            text("kind"),
            text("apiVersion")
        );
        Err(forbidden_field(context, object, "spec.paramKind", &why))
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
        if self.is_allowed(context, verb, (text("namespace"), text("name")), &params).await {
            return Ok(());
        }
        let user = go_format(context.request.user);
        let why = match policy {
            Some(_) => format!("user {user} does not have \"{verb}\" permission on the object referenced by paramRef"),
            None => format!(
                "unable to get policy {name} to determine minimum required permissions and user {user} does not have \
                 \"{verb}\" permission for all groups, versions and resources"
            ),
        };
        Err(forbidden_field(context, object, "spec.paramRef", &why))
    }

    async fn is_allowed(
        &self,
        context: &Context<'_>,
        verb: &str,
        (namespace, name): (&str, &str),
        params: &ParamResource,
    ) -> bool {
        let attributes = Attributes {
            verb,
            group: &params.group,
            version: &params.version,
            resource: &params.resource,
            namespace,
            name,
            is_resource: true,
            ..Attributes::default()
        };
        context.authorizer.authorize(context.objects, context.request.user, &attributes).await.allowed
    }
}

fn params(catalog: &Catalog, kind: &Value) -> ParamResource {
    let text = |key: &str| kind[key].as_str().filter(|text| !text.is_empty());
    let all = || "*".to_owned();
    let Some(api_version) = text("apiVersion") else {
        return ParamResource { group: all(), version: all(), resource: all() };
    };
    let GroupVersion { group, version } = GroupVersion::parse(api_version);
    let matches_kind = |row: &&Arc<_>| {
        let row: &apiserver_resources::ResourceInfo = row;
        &*row.group == group && &*row.version == version && Some(&*row.kind) == text("kind")
    };
    let resource = catalog.resources().iter().find(matches_kind).map_or_else(all, |row| row.plural.to_string());
    ParamResource { group: group.to_owned(), version: version.to_owned(), resource }
}

/// Formats a user as Go prints one.
fn go_format(user: &UserInfo) -> String {
    let extra: Vec<String> = user.extra.iter().map(|(key, values)| format!("{key}:[{}]", values.join(" "))).collect();
    format!("&{{{} {} [{}] map[{}]}}", user.name, user.uid, user.groups.join(" "), extra.join(" "))
}

fn forbidden_field(context: &Context<'_>, object: &Value, field: &str, why: &str) -> ApiError {
    let cause =
        Cause { reason: "FieldValueForbidden".into(), message: format!("Forbidden: {why}"), field: field.into() };
    ApiError::Invalid(
        GroupResource::new(GROUP, context.request.kind.kind),
        super::name_of(object).to_owned(),
        vec![cause],
    )
}

impl Plugin for ParamRights {
    fn name(&self) -> &'static str {
        "PolicyParamRights"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, _: &'a mut Effects) -> MaybeReady<'a> {
        let request = context.request;
        let applies = request.group == GROUP
            && request.subresource.is_empty()
            && matches!(request.operation, Operation::Create | Operation::Update)
            && !request.user.is_in(MASTERS);
        let kinds = [Kind::Validating, Kind::Mutating];
        if !applies {
            return MaybeReady::Ready(Ok(()));
        }
        if kinds.iter().any(|kind| kind.policies() == request.resource) {
            return MaybeReady::Pending(Box::pin(self.policy(context, object)));
        }
        match kinds.into_iter().find(|kind| kind.bindings() == request.resource) {
            Some(kind) => MaybeReady::Pending(Box::pin(self.binding(context, object, kind))),
            None => MaybeReady::Ready(Ok(())),
        }
    }
}
