//! Questions about users and permissions: the kinds of `authentication.k8s.io` and `authorization.k8s.io` that are
//! answered and never stored.

use std::collections::BTreeMap;

use jiff::Timestamp;
use machinery_api::error::{ApiError, ApiResult, Cause, Named};
use machinery_api::names::TOKEN_ISSUER;
use machinery_api::selector::{go_quoted, label_key_problems};
use serde_json::{Map, Value, json};

use super::authenticate::with_group;
use super::rbac::aggregate;
use super::{Attributes, Authenticator, Authorizer, UserInfo};
use crate::request::selector;
use apiserver_resources::objects::Objects;
use apiserver_resources::rules;

/// What the answers are made from.
pub struct Context<'a> {
    /// Decides access reviews.
    pub authorizer: &'a Authorizer,
    /// Checks reviewed tokens.
    pub authenticator: &'a Authenticator,
    /// Everything else.
    pub objects: &'a dyn Objects,
    /// Who asks.
    pub user: &'a UserInfo,
    /// The request's namespace (LocalSubjectAccessReview).
    pub namespace: &'a str,
    /// The request's time.
    pub now: Timestamp,
}

/// Answers a review of the kind that `plural` names (`tokenreviews`, `subjectaccessreviews`, `localsubjectaccessreviews`,
/// `selfsubjectaccessreviews`, `selfsubjectrulesreviews`, `selfsubjectreviews`); the answer goes out with 201.
pub async fn answer(context: &Context<'_>, plural: &str, body: &Value) -> ApiResult<Value> {
    match plural {
        "tokenreviews" => context.token(body).await,
        "selfsubjectreviews" => Ok(context.me(body)),
        "selfsubjectrulesreviews" => context.my_rules(body),
        "subjectaccessreviews" => context.access(body, Whose::Anyone).await,
        "localsubjectaccessreviews" => context.access(body, Whose::AnyoneHere).await,
        "selfsubjectaccessreviews" => context.access(body, Whose::Mine).await,
        _ => Err(ApiError::NoSuchResource),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Anyone,
    AnyoneHere,
    Mine,
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
        let known = self.authenticator.token(self.objects, self.now, token.trim(), &audiences).await;
        let status = match known {
            Ok(known) => json!({
                "authenticated": true,
                "user": user_info(&with_group(known.user)),
                "audiences": known.audiences,
            }),
            Err(error) if error == "invalid bearer token" => json!({"user": {}, "error": error}),
            Err(error) => json!({"user": {}, "error": format!("[invalid bearer token, {error}]")}),
        };
        Ok(reply(body, status))
    }

    fn me(&self, body: &Value) -> Value {
        let _ = body;
        let at = self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "SelfSubjectReview",
            "metadata": {"creationTimestamp": at},
            "status": {"userInfo": user_info(self.user)},
        })
    }

    fn my_rules(&self, body: &Value) -> ApiResult<Value> {
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

    async fn access(&self, body: &Value, whose: Whose) -> ApiResult<Value> {
        let mut body = body.clone();
        if whose == Whose::AnyoneHere {
            self.settle_namespace(&mut body)?;
        }
        let causes = access_review_causes(&body, whose);
        if !causes.is_empty() {
            // Upstream's kind is empty here: the object lost it when it was decoded.
            return Err(ApiError::Invalid(Named::new("authorization.k8s.io", ""), String::new(), causes));
        }
        let spec = &body["spec"];
        let asked = (whose != Whose::Mine).then(|| asked_user(spec));
        let resource = &spec["resourceAttributes"];
        let fields = equal_fields(&resource["fieldSelector"]);
        let request = asked_attributes(spec, &fields);
        let decision = self.authorizer.authorize(self.objects, asked.as_ref().unwrap_or(self.user), &request).await;
        let mut status = Map::from_iter([("allowed".to_owned(), Value::from(decision.allowed))]);
        if !decision.reason.is_empty() {
            status.insert("reason".into(), decision.reason.into());
        }
        let ignored: Vec<String> =
            ["fieldSelector", "labelSelector"].iter().filter_map(|name| ignored(&resource[*name], name)).collect();
        if !ignored.is_empty() {
            status.insert("evaluationError".into(), ignored.join("; ").into());
        }
        Ok(reply(&body, status.into()))
    }

    /// Writes the path's namespace into a body that names none, and refuses another one.
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

/// Whom a review asks about.
fn asked_user(spec: &Value) -> UserInfo {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let extra = spec["extra"].as_object().into_iter().flatten();
    UserInfo {
        name: text(&spec["user"]),
        uid: text(&spec["uid"]),
        groups: strings(&spec["groups"]),
        extra: extra.map(|(key, values)| (key.clone(), strings(values))).collect(),
    }
}

/// What a review asks about.
fn asked_attributes<'a>(spec: &'a Value, fields: &'a [(String, String)]) -> Attributes<'a> {
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

/// The body with a status, and with metadata even where it has none.
fn reply(body: &Value, status: Value) -> Value {
    let mut answer = body.clone();
    if let Some(map) = answer.as_object_mut() {
        let mut metadata = map.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
        metadata.retain(|_, value| !value.is_null());
        map.insert("metadata".into(), metadata.into());
        map.insert("status".into(), status);
    }
    answer
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

fn cause(reason: &str, field: &str, message: String) -> Cause {
    Cause { reason: reason.into(), message, field: field.into() }
}

fn invalid(field: &str, value: &str, why: &str) -> Cause {
    cause("FieldValueInvalid", field, format!("Invalid value: {value}: {why}"))
}

/// Upstream's findings, in its order.
fn access_review_causes(body: &Value, whose: Whose) -> Vec<Cause> {
    let spec = &body["spec"];
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let path_value =
        format!("{{\"Path\":{},\"Verb\":{}}}", go_quoted(&text(&path["path"])), go_quoted(&text(&path["verb"])));
    let mut causes = Vec::new();
    if resource.is_object() && path.is_object() {
        let why = "cannot be specified in combination with resourceAttributes";
        causes.push(invalid("spec.nonResourceAttributes", &path_value, why));
    }
    if !resource.is_object() && !path.is_object() {
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        causes.push(invalid("spec.resourceAttributes", "null", why));
    }
    if whose != Whose::Mine && text(&spec["user"]).is_empty() && strings(&spec["groups"]).is_empty() {
        causes.push(invalid("spec.user", "\"\"", "at least one of user or group must be specified"));
    }
    for selector in ["fieldSelector", "labelSelector"] {
        if resource[selector].is_object() {
            let at = format!("spec.resourceAttributes.{selector}");
            selector_causes(&resource[selector], &at, selector == "labelSelector", &mut causes);
        }
    }
    let said = |metadata: &Value| {
        metadata.as_object().into_iter().flatten().any(|(key, value)| {
            let empty = match value {
                Value::Null => true,
                Value::String(s) => s.is_empty(),
                Value::Array(a) => a.is_empty(),
                Value::Object(o) => o.is_empty(),
                Value::Number(n) => n.as_i64() == Some(0),
                Value::Bool(b) => !b,
            };
            !empty && key != "managedFields" && !(whose == Whose::AnyoneHere && key == "namespace")
        })
    };
    if said(&body["metadata"]) {
        let why = if whose == Whose::AnyoneHere { "must be empty except for namespace" } else { "must be empty" };
        causes.push(invalid("metadata", &body["metadata"].to_string(), why));
    }
    if whose == Whose::AnyoneHere {
        let namespace = text(&resource["namespace"]);
        if resource.is_object() && namespace != text(&body["metadata"]["namespace"]) {
            let value = go_quoted(&namespace);
            causes.push(invalid("spec.resourceAttributes.namespace", &value, "must match metadata.namespace"));
        }
        if path.is_object() {
            causes.push(invalid("spec.nonResourceAttributes", &path_value, "disallowed on this kind of request"));
        }
    }
    causes
}

fn selector_causes(selector: &Value, at: &str, labels: bool, causes: &mut Vec<Cause>) {
    let raw = selector["rawSelector"].as_str().unwrap_or_default();
    let requirements = selector["requirements"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !raw.is_empty() && !requirements.is_empty() {
        let why = "may not specified at the same time as requirements";
        causes.push(invalid(&format!("{at}.rawSelector"), &go_quoted(raw), why));
    }
    if raw.is_empty() && requirements.is_empty() {
        let message = format!("Required value: when {at} is specified, requirements or rawSelector is required");
        causes.push(cause("FieldValueRequired", &format!("{at}.requirements"), message));
    }
    for (index, requirement) in requirements.iter().enumerate() {
        let at = format!("{at}.requirements[{index}]");
        let no_key = requirement["key"].as_str().unwrap_or_default().is_empty();
        if !labels && no_key {
            causes.push(cause("FieldValueRequired", &format!("{at}.key"), "Required value: must be specified".into()));
        }
        let values = requirement["values"].as_array().is_some_and(|values| !values.is_empty());
        match requirement["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" if !values => causes.push(cause(
                "FieldValueRequired",
                &format!("{at}.values"),
                "Required value: must be specified when `operator` is 'In' or 'NotIn'".into(),
            )),
            "Exists" | "DoesNotExist" if values => causes.push(cause(
                "FieldValueForbidden",
                &format!("{at}.values"),
                "Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'".into(),
            )),
            _ => {}
        }
        let (key, key_at) = (requirement["key"].as_str().unwrap_or_default(), format!("{at}.key"));
        if labels {
            let value = go_quoted(key);
            causes.extend(label_key_problems(key).iter().map(|why| invalid(&key_at, &value, why)));
        }
    }
}

/// What upstream tells of a selector that it couldn't read, or not wholly.
fn ignored(asked: &Value, name: &str) -> Option<String> {
    let raw = asked["rawSelector"].as_str().unwrap_or_default();
    let requirements = asked["requirements"].as_array().map(Vec::as_slice).unwrap_or_default();
    let labels = name == "labelSelector";
    let reads = |requirement: &Value| {
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
    let how = if requirements.is_empty() {
        let unread = if labels { selector::labels(raw).is_err() } else { selector::fields(raw).is_err() };
        unread.then_some("")?
    } else {
        match requirements.iter().filter(|r| reads(r)).count() {
            n if n == requirements.len() => return None,
            0 => "",
            _ => "partially ",
        }
    };
    Some(format!("spec.resourceAttributes.{name} {how}ignored due to parse error"))
}

/// The requirements `field=value` of a review's field selector. What else it asks for narrows the question, so that
/// leaving it out can only make the answer stricter.
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
