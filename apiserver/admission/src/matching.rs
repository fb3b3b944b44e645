//! Matches requests against webhooks and policies: by rules, namespace selector and object selector.

use std::borrow::Cow;
use std::sync::Arc;

use apiserver_schema::{SharedType, built_in, default, normalise};
use machinery_api::GroupVersionKind;
use machinery_api::error::{ApiError, ApiResult, GroupResource};
use machinery_api::selector::{LabelSelector, SelectorError};
use serde_json::Value;

use super::{Context, Operation, Request};
use apiserver_catalog::Catalog;
use apiserver_resources::ResourceInfo;

/// The kinds that configure admission itself. Webhooks are not called for them, so that a broken configuration can
/// always be repaired.
const EXEMPT: &[&str] = &[
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "MutatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
];

/// Whether the request is exempt from webhooks.
pub(crate) fn is_exempt(request: &Request<'_>) -> bool {
    request.kind.group == "admissionregistration.k8s.io" && EXEMPT.contains(&request.kind.kind)
}

/// Whether the request is exempt from policies. Authentication and authorization reviews are exempt: a policy that
/// rejects them would lock out everyone who could remove it. Policies do apply to webhook configurations.
pub(crate) fn is_exempt_from_policies(request: &Request<'_>) -> bool {
    match request.group {
        "authentication.k8s.io" | "authorization.k8s.io" => true,
        _ => is_exempt(request) && !request.kind.kind.ends_with("WebhookConfiguration"),
    }
}

/// One rule of a webhook or policy.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// Resource and subresource.
    resources: Vec<(String, String)>,
    /// Whether the scope is namespaced; `None` matches both.
    namespaced: Option<bool>,
}

fn texts(of: &Value) -> Vec<String> {
    of.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn any(list: &[String], value: &str) -> bool {
    list.iter().any(|one| one == "*" || one == value)
}

impl Rule {
    /// Parses a rule with operations from its stored form.
    #[must_use]
    pub(crate) fn parse(rule: &Value) -> Self {
        let split = |resource: String| match resource.split_once('/') {
            Some((resource, subresource)) => (resource.to_owned(), subresource.to_owned()),
            None => (resource, String::new()),
        };
        Self {
            operations: texts(&rule["operations"]),
            groups: texts(&rule["apiGroups"]),
            versions: texts(&rule["apiVersions"]),
            resources: texts(&rule["resources"]).into_iter().map(split).collect(),
            namespaced: match rule["scope"].as_str() {
                Some("Namespaced") => Some(true),
                Some("Cluster") => Some(false),
                _ => None,
            },
        }
    }

    /// The group and resource of every match of the rule; `*` matches any.
    pub(crate) fn resource_names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.groups
            .iter()
            .flat_map(|group| self.resources.iter().map(|(resource, _)| (group.as_str(), resource.as_str())))
    }

    /// Whether the rule matches a request for this resource.
    fn matches(&self, request: &Request<'_>, (group, version, resource): (&str, &str, &str)) -> bool {
        let is_namespace = (group, version, resource) == ("", "v1", "namespaces");
        let is_namespaced = !is_namespace && !request.namespace.is_empty();
        let subresource = request.subresource;
        self.namespaced.is_none_or(|namespaced| namespaced == is_namespaced)
            && any(&self.operations, request.operation.as_str())
            && any(&self.groups, group)
            && any(&self.versions, version)
            && self
                .resources
                .iter()
                .any(|(of, sub)| (of == "*" || of == resource) && (sub == "*" || sub == subresource))
    }
}

/// The resource version in which a webhook or policy receives the object: the request's own, or an equivalent one.
#[derive(Debug, Clone)]
pub(crate) enum Matched {
    /// The version of the request.
    Requested,
    /// An equivalent resource: the same objects in another version or group.
    Equivalent(Arc<ResourceInfo>),
}

impl Matched {
    /// Converts an object to the matched version.
    ///
    /// # Errors
    /// Fails if a custom resource's conversion fails.
    pub(crate) async fn convert<'o>(
        &self,
        context: &Context<'_>,
        catalog: &Catalog,
        object: &'o Value,
    ) -> ApiResult<Cow<'o, Value>> {
        match (self, resource_of(context.request, catalog)) {
            (Self::Equivalent(other), Some(own)) if object.is_object() && own.gvk() == context.request.kind => {
                convert_object(context, object.clone(), own, other).await.map(Cow::Owned)
            }
            _ => Ok(Cow::Borrowed(object)),
        }
    }

    /// Like [`Self::convert`], and removes the fields that a serializer omits because they are empty.
    ///
    /// # Errors
    /// See [`Self::convert`].
    pub(crate) async fn convert_normalised(
        &self,
        context: &Context<'_>,
        catalog: &Catalog,
        object: &Value,
    ) -> ApiResult<Value> {
        let mut object = self.convert(context, catalog, object).await?.into_owned();
        self.normalise(context.request, catalog, &mut object);
        Ok(object)
    }

    /// Normalises an object of [`Self::convert`] to its serialized form, without empty fields.
    pub(crate) fn normalise(&self, request: &Request<'_>, catalog: &Catalog, object: &mut Value) {
        let row = match self {
            Self::Equivalent(other) => Some(other),
            Self::Requested => resource_of(request, catalog),
        };
        let GroupVersionKind { group, version, kind } = request.kind;
        let body = match row.filter(|_| has_own_body(request, catalog)) {
            Some(row) => row.schema.made().map(SharedType::get),
            None => built_in().of_kind(group, version, kind),
        };
        if let Some(body) = body.filter(|_| object.is_object()) {
            // A value of the wrong type stays unchanged; validation of the object rejects it.
            let _ = normalise(body, object);
        }
    }

    /// Converts an object from the matched version back to the request's.
    ///
    /// # Errors
    /// See [`Self::convert`].
    pub(crate) async fn convert_back(
        &self,
        context: &Context<'_>,
        catalog: &Catalog,
        object: Value,
    ) -> ApiResult<Value> {
        match (self, resource_of(context.request, catalog)) {
            (Self::Equivalent(other), Some(own)) if object.is_object() && own.gvk() == context.request.kind => {
                convert_object(context, object, other, own).await
            }
            _ => Ok(object),
        }
    }
}

/// The resource of a request.
#[must_use]
pub(crate) fn resource_of<'c>(request: &Request<'_>, catalog: &'c Catalog) -> Option<&'c Arc<ResourceInfo>> {
    let (group, version, resource) = (request.group, request.version, request.resource);
    catalog.get(machinery_api::GroupVersionResource { group, version, resource })
}

/// Whether the request's body is an object of the resource itself, not of a subresource's kind.
#[must_use]
pub(crate) fn has_own_body(request: &Request<'_>, catalog: &Catalog) -> bool {
    resource_of(request, catalog).is_some_and(|own| own.gvk() == request.kind)
}

async fn convert_object(
    context: &Context<'_>,
    mut object: Value,
    from: &ResourceInfo,
    to: &ResourceInfo,
) -> ApiResult<Value> {
    if let (Some(custom), Some(converter)) = (&from.custom, context.converter) {
        let converted = converter.convert(&custom.definition, &to.api_version, vec![object]).await;
        let converted = converted.map_err(|error| ApiError::Internal(error.status().message))?;
        let mut converted = converted.into_iter().next().unwrap_or_default();
        default(to.schema.hold().get(), &mut converted);
        return Ok(converted);
    }
    if from.stored_as.is_some() {
        object = from.strategy.write_storage_version(object);
    }
    if to.stored_as.is_some() {
        object = to.strategy.read_storage_version(object);
    }
    object["apiVersion"] = Value::from(&*to.api_version);
    object["kind"] = Value::from(&*to.kind);
    Ok(object)
}

/// The match criteria of a webhook or policy.
#[derive(Debug, Clone)]
pub(crate) struct Matcher {
    rules: Vec<Rule>,
    /// Whether the match policy is `Exact`.
    exact: bool,
    namespaces: LabelSelector,
    objects: LabelSelector,
}

impl Matcher {
    /// Parses the criteria of a webhook, or of a policy's `matchConstraints`, with a list of rules.
    ///
    /// # Errors
    /// Fails if a selector is invalid.
    pub(crate) fn parse(matching: &Value, rules: &Value) -> Result<Self, SelectorError> {
        let selector = |field: &str| match &matching[field] {
            Value::Null => Ok(LabelSelector::everything()),
            selector => LabelSelector::from_value(Some(selector)),
        };
        Ok(Self {
            rules: rules.as_array().into_iter().flatten().map(Rule::parse).collect(),
            exact: matching["matchPolicy"] == "Exact",
            namespaces: selector("namespaceSelector")?,
            objects: selector("objectSelector")?,
        })
    }

    /// The rules that select requests.
    #[must_use]
    pub(crate) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether equivalent resources are excluded.
    #[must_use]
    pub(crate) fn is_exact(&self) -> bool {
        self.exact
    }

    /// Whether a request matches, and in which version.
    ///
    /// # Errors
    /// Fails if the namespace does not exist and must be matched by a selector.
    pub(crate) fn matches(
        &self,
        context: &Context<'_>,
        object: &Value,
        catalog: &Catalog,
    ) -> ApiResult<Option<Matched>> {
        let request = context.request;
        let selected = self.selects_namespace(context, object);
        if matches!(selected, Ok(false)) || !self.selects_object(context, object) {
            return Ok(None);
        }
        let Some(matched) = self.matches_rule(request, catalog) else { return Ok(None) };
        selected.map(|_| Some(matched))
    }

    fn matches_rule(&self, request: &Request<'_>, catalog: &Catalog) -> Option<Matched> {
        let requested = (request.group, request.version, request.resource);
        if self.rules.iter().any(|rule| rule.matches(request, requested)) {
            return Some(Matched::Requested);
        }
        if self.exact {
            return None;
        }
        let others: Vec<&Arc<ResourceInfo>> = equivalents(catalog, requested).collect();
        let of_rule = |rule: &Rule| {
            others.iter().find(|other| rule.matches(request, (&other.group, &other.version, &other.plural)))
        };
        self.rules.iter().find_map(of_rule).map(|other| Matched::Equivalent(Arc::clone(other)))
    }

    fn selects_object(&self, context: &Context<'_>, object: &Value) -> bool {
        let matches = |object: &Value| object.is_object() && self.objects.matches_object(object);
        self.objects.is_everything() || matches(object) || context.old.is_some_and(matches)
    }

    fn selects_namespace(&self, context: &Context<'_>, object: &Value) -> ApiResult<bool> {
        let request = context.request;
        let is_namespace = request.resource == "namespaces";
        if (request.namespace.is_empty() && !is_namespace) || self.namespaces.is_everything() {
            return Ok(true);
        }
        let changes = matches!(request.operation, Operation::Create | Operation::Update);
        if is_namespace && request.subresource.is_empty() && changes {
            return Ok(self.namespaces.matches_object(object));
        }
        match context.objects.get("", "namespaces", "", request.namespace) {
            Some(namespace) => Ok(self.namespaces.matches_object(&namespace)),
            None => Err(ApiError::NotFound(GroupResource::new("", "namespaces"), request.namespace.to_owned())),
        }
    }
}

/// The other resources that serve the same objects.
pub(crate) fn equivalents<'a>(
    catalog: &'a Catalog,
    (group, version, resource): (&str, &str, &str),
) -> impl Iterator<Item = &'a Arc<ResourceInfo>> {
    let own = catalog.get(machinery_api::GroupVersionResource { group, version, resource });
    let stored = own.map(|own| own.stored().gvr());
    catalog.resources().iter().filter(move |other| {
        other.prefix.is_some()
            && stored.is_some_and(|stored| stored == other.stored().gvr())
            && own.is_some_and(|own| own.gvr() != other.gvr())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Options;
    use apiserver_auth::UserInfo;
    use apiserver_resources::options::WriteOptions;

    fn matches(
        rule: Value,
        (group, version, resource, subresource): (&str, &str, &str, &str),
        namespace: &str,
    ) -> bool {
        let (user, options) = (UserInfo::default(), WriteOptions::default());
        let request = Request {
            user: &user,
            group,
            version,
            resource,
            subresource,
            kind: GroupVersionKind::default(),
            operation: Operation::Create,
            namespace,
            name: "x",
            path_name: "x",
            options: Options::Write(&options),
        };
        Rule::parse(&rule).matches(&request, (group, version, resource))
    }

    fn rule(resources: Value, scope: &str) -> Value {
        json!({"operations": ["CREATE"], "apiGroups": ["", "apps"], "apiVersions": ["v1"], "resources": resources, "scope": scope})
    }

    #[test]
    fn rules_name_resources() {
        let pods = ("", "v1", "pods", "");
        for (resources, scope, of, namespace, expected) in [
            (json!(["pods"]), "*", pods, "ns", true),
            (json!(["*"]), "*", pods, "ns", true),
            (json!(["*/*"]), "*", pods, "ns", true),
            (json!(["*"]), "*", ("", "v1", "pods", "status"), "ns", false),
            (json!(["*/status"]), "*", ("", "v1", "pods", "status"), "ns", true),
            (json!(["pods/*"]), "*", pods, "ns", true),
            (json!(["pods"]), "Cluster", pods, "ns", false),
            (json!(["*"]), "Namespaced", ("", "v1", "nodes", ""), "", false),
            (json!(["*"]), "Cluster", ("", "v1", "namespaces", ""), "ns", true),
            (json!(["deployments"]), "Namespaced", ("apps", "v1", "deployments", ""), "ns", true),
            (json!(["deployments"]), "*", ("apps", "v2", "deployments", ""), "ns", false),
            (json!(["jobs"]), "*", ("batch", "v1", "jobs", ""), "ns", false),
        ] {
            assert_eq!(matches(rule(resources.clone(), scope), of, namespace), expected, "{resources} {scope} {of:?}");
        }
    }

    #[test]
    fn the_same_objects_in_another_group_are_equivalent() {
        let catalog = Catalog::built_in("");
        let names = |group, resource| -> Vec<String> {
            equivalents(&catalog, (group, "v1", resource)).map(|other| other.qualified()).collect()
        };
        assert_eq!(names("", "events"), ["events.events.k8s.io"]);
        assert_eq!(names("events.k8s.io", "events"), ["events"]);
        assert_eq!(names("", "pods"), Vec::<String>::new());
    }
}
