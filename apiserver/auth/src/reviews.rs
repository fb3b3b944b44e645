//! The review kinds of `authentication.k8s.io` and `authorization.k8s.io`, which are evaluated and never stored.

use std::collections::BTreeMap;

use jiff::Timestamp;
use machinery_api::error::{ApiError, ApiResult, GroupResource};
use machinery_api::names::TOKEN_ISSUER;
use machinery_api::selector::{FieldSelector, LabelSelector};
use serde_json::{Map, Value, json};

use super::authenticate::with_group;
use super::rbac::aggregate;
use super::{Attributes, Authenticator, Authorizer, UserInfo};
use apiserver_resources::field::ErrorList;
use apiserver_resources::objects::ObjectReader;
use apiserver_resources::{ResourceInfo, Review, rules};

/// The inputs of a review.
pub struct Context<'a> {
    /// Decides access reviews.
    pub authorizer: &'a Authorizer,
    /// Authenticates reviewed tokens.
    pub authenticator: &'a Authenticator,
    /// Reads all other objects.
    pub objects: &'a dyn ObjectReader,
    /// The requesting user.
    pub user: &'a UserInfo,
    /// The request's namespace (LocalSubjectAccessReview).
    pub namespace: &'a str,
    /// The time of the request.
    pub now: Timestamp,
}

/// Evaluates a review. The result is sent with status 201.
pub async fn evaluate(context: &Context<'_>, row: &ResourceInfo, body: &Value) -> ApiResult<Value> {
    match row.review {
        Some(Review::Token) => context.token(body).await,
        Some(Review::SelfSubject) => Ok(context.self_subject()),
        Some(Review::SelfRules) => context.self_rules(body),
        Some(review) => context.access(row, review, body).await,
        None => Err(ApiError::NoSuchResource),
    }
}

impl Context<'_> {
    async fn token(&self, body: &Value) -> ApiResult<Value> {
        let token = body["spec"]["token"].as_str().unwrap_or_default();
        if token.is_empty() {
            return Err(ApiError::BadRequest("token is required for TokenReview in authentication".into()));
        }
        let mut audiences = strings(&body["spec"]["audiences"]);
        if audiences.is_empty() {
            audiences.push(TOKEN_ISSUER.to_owned());
        }
        let authenticated =
            self.authenticator.authenticate_token(self.objects, self.now, token.trim(), &audiences).await;
        let status = match authenticated {
            Ok(authenticated) => json!({
                "authenticated": true,
                "user": user_info(&with_group(authenticated.user)),
                "audiences": authenticated.audiences,
            }),
            Err(error) if error == "invalid bearer token" => json!({"user": {}, "error": error}),
            Err(error) => json!({"user": {}, "error": format!("[invalid bearer token, {error}]")}),
        };
        Ok(with_status(body, status))
    }

    fn self_subject(&self) -> Value {
        let at = self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "SelfSubjectReview",
            "metadata": {"creationTimestamp": at},
            "status": {"userInfo": user_info(self.user)},
        })
    }

    fn self_rules(&self, body: &Value) -> ApiResult<Value> {
        let namespace = body["spec"]["namespace"].as_str().unwrap_or_default();
        if namespace.is_empty() {
            return Err(ApiError::BadRequest("no namespace on request".into()));
        }
        let granted = self.authorizer.rules_for(self.objects, self.user, namespace);
        let (mut of_resources, mut of_paths) = (Vec::new(), Vec::new());
        for rule in &granted.rules {
            if !rule.resources.is_empty() {
                let mut value = rule.to_value();
                if let Some(map) = value.as_object_mut() {
                    map.remove("nonResourceURLs");
                }
                of_resources.push(value);
            }
            if !rule.urls.is_empty() {
                of_paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.urls}));
            }
        }
        let node = self.user.node().is_some();
        let mut errors = granted.errors;
        if node {
            errors.insert(0, "node authorizer does not support user rule resolution".into());
        }
        let mut status = json!({"resourceRules": of_resources, "nonResourceRules": of_paths, "incomplete": node});
        if !errors.is_empty() {
            status["evaluationError"] = aggregate(&errors).into();
        }
        Ok(json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "metadata": {},
            "spec": {},
            "status": status,
        }))
    }

    async fn access(&self, row: &ResourceInfo, review: Review, body: &Value) -> ApiResult<Value> {
        let mut body = body.clone();
        if review == Review::LocalAccess {
            self.settle_namespace(&mut body)?;
        }
        let context = apiserver_resources::Context::of_server(self.now);
        let mut errors = ErrorList::new();
        row.strategy.validate(&context, &body, None, &mut errors);
        if !errors.is_empty() {
            // Upstream's kind is empty here, because decoding removed it from the object.
            return Err(ApiError::Invalid(GroupResource::new(&*row.group, ""), String::new(), errors.into_causes()));
        }
        let spec = &body["spec"];
        let user = (review != Review::SelfAccess).then(|| reviewed_user(spec));
        let resource = &spec["resourceAttributes"];
        let fields = equal_fields(&resource["fieldSelector"]);
        let request = reviewed_attributes(spec, &fields);
        let decision = self.authorizer.authorize(self.objects, user.as_ref().unwrap_or(self.user), &request).await;
        let mut status = Map::from_iter([("allowed".to_owned(), Value::from(decision.allowed))]);
        if !decision.reason.is_empty() {
            status.insert("reason".into(), decision.reason.into());
        }
        let ignored: Vec<String> = ["fieldSelector", "labelSelector"]
            .iter()
            .filter_map(|name| selector_error(&resource[*name], name))
            .collect();
        if !ignored.is_empty() {
            status.insert("evaluationError".into(), ignored.join("; ").into());
        }
        Ok(with_status(&body, status.into()))
    }

    /// Sets the path's namespace in a body without one, and rejects a different one.
    fn settle_namespace(&self, body: &mut Value) -> ApiResult<()> {
        match body["metadata"]["namespace"].as_str().unwrap_or_default() {
            "" => {
                if !body["metadata"].is_object() {
                    body["metadata"] = json!({});
                }
                body["metadata"]["namespace"] = self.namespace.into();
                Ok(())
            }
            namespace if namespace != self.namespace => Err(ApiError::BadRequest(
                "the namespace of the provided object does not match the namespace sent on the request".into(),
            )),
            _ => Ok(()),
        }
    }
}

/// The user in a review's spec.
fn reviewed_user(spec: &Value) -> UserInfo {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let extra = spec["extra"].as_object().into_iter().flatten();
    UserInfo {
        name: text(&spec["user"]),
        uid: text(&spec["uid"]),
        groups: strings(&spec["groups"]),
        extra: extra.map(|(key, values)| (key.clone(), strings(values))).collect(),
    }
}

/// The attributes in a review's spec.
fn reviewed_attributes<'a>(spec: &'a Value, fields: &'a [(String, String)]) -> Attributes<'a> {
    let resource = &spec["resourceAttributes"];
    if !resource.is_object() {
        let path = &spec["nonResourceAttributes"];
        let part = |name: &str| path[name].as_str().unwrap_or_default();
        return Attributes { verb: part("verb"), path: part("path"), ..Attributes::default() };
    }
    let field = |name: &str| resource[name].as_str().unwrap_or_default();
    Attributes {
        verb: field("verb"),
        group: field("group"),
        version: field("version"),
        resource: field("resource"),
        subresource: field("subresource"),
        namespace: field("namespace"),
        name: field("name"),
        is_resource: true,
        fields,
        ..Attributes::default()
    }
}

/// The body with a status, and with metadata even if it had none.
fn with_status(body: &Value, status: Value) -> Value {
    let mut review = body.clone();
    if let Some(map) = review.as_object_mut() {
        let mut metadata = map.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
        metadata.retain(|_, value| !value.is_null());
        map.insert("metadata".into(), metadata.into());
        map.insert("status".into(), status);
    }
    review
}

fn user_info(user: &UserInfo) -> Value {
    let mut info = Map::new();
    if !user.name.is_empty() {
        info.insert("username".into(), json!(user.name));
    }
    if !user.uid.is_empty() {
        info.insert("uid".into(), json!(user.uid));
    }
    if !user.groups.is_empty() {
        info.insert("groups".into(), json!(user.groups));
    }
    let extra: BTreeMap<&String, &Vec<String>> = user.extra.iter().collect();
    if !extra.is_empty() {
        info.insert("extra".into(), json!(extra));
    }
    info.into()
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Upstream's message about a selector that cannot be parsed, or only in part.
fn selector_error(selector: &Value, name: &str) -> Option<String> {
    let raw = selector["rawSelector"].as_str().unwrap_or_default();
    let requirements = selector["requirements"].as_array().map(Vec::as_slice).unwrap_or_default();
    let labels = name == "labelSelector";
    let is_valid = |requirement: &Value| {
        let values = strings(&requirement["values"]);
        let operator = requirement["operator"].as_str().unwrap_or_default();
        let key = requirement["key"].as_str().unwrap_or_default();
        match operator {
            "In" | "NotIn" if labels => {
                let values_read = values.iter().all(|value| rules::label_value(value).is_empty());
                !values.is_empty() && values_read && rules::label_key(key).is_empty()
            }
            "Exists" | "DoesNotExist" if labels => values.is_empty() && rules::label_key(key).is_empty(),
            "In" | "NotIn" => values.len() == 1,
            _ => false,
        }
    };
    let extent = if requirements.is_empty() {
        let unread = if labels { LabelSelector::parse(raw).is_err() } else { FieldSelector::parse(raw).is_err() };
        unread.then_some("")?
    } else {
        match requirements.iter().filter(|r| is_valid(r)).count() {
            n if n == requirements.len() => return None,
            0 => "",
            _ => "partially ",
        }
    };
    Some(format!("spec.resourceAttributes.{name} {extent}ignored due to parse error"))
}

/// The requirements `field=value` of a review's field selector. Other requirements only narrow the request, so that
/// ignoring them can only make the decision stricter.
fn equal_fields(selector: &Value) -> Vec<(String, String)> {
    let raw = selector["rawSelector"].as_str().unwrap_or_default();
    let mut fields: Vec<(String, String)> = raw
        .split(',')
        .filter(|part| !part.contains("!="))
        .filter_map(|part| part.split_once('='))
        .map(|(field, value)| (field.to_owned(), value.trim_start_matches('=').to_owned()))
        .collect();
    for requirement in selector["requirements"].as_array().into_iter().flatten() {
        if requirement["operator"] == "In"
            && let (Some(key), [value]) = (requirement["key"].as_str(), strings(&requirement["values"]).as_slice())
        {
            fields.push((key.to_owned(), value.clone()));
        }
    }
    fields
}
