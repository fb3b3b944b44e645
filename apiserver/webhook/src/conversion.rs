//! Conversion webhooks: converts a batch of custom objects to another version and validates the response. The order,
//! kind, name, namespace and UID must not change; of the metadata only labels and annotations may (upstream's
//! `webhook_converter`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apiserver_resources::apiextensions::custom::{Conversion, Definition};
use apiserver_resources::metadata;
use bytes::Bytes;
use machinery_api::error::Status;
use machinery_api::selector::go_quoted;
use machinery_api::{ApiError, GroupVersion};
use machinery_env::Env;
use serde_json::{Map, Value, json};

use crate::{Accounts, Caller, Client, WebhookRequest};

/// The maximum duration of a call (upstream's default).
const TIMEOUT: Duration = Duration::from_secs(30);
/// The response limit in addition to that by request size.
const RESPONSE_BYTES_MIN: usize = 4 << 20;
/// The response limit as a multiple of the request size.
const RESPONSE_FACTOR: usize = 8;
/// The maximum number of cached clients.
const CLIENTS_MAX: usize = 1000;

/// A webhook by its `clientConfig`, and its client or the reason why there is none.
type CachedClient = (Value, Result<Arc<Client>, String>);

/// Converts objects by webhook.
pub struct Converter {
    caller: Caller,
    env: Env,
    /// By definition.
    clients: Mutex<HashMap<Arc<str>, CachedClient>>,
}

/// A failed conversion: upstream's failure type for metrics, and the message after the webhook's name.
#[derive(Debug, PartialEq)]
struct Failure(&'static str, String);

impl Failure {
    fn call(why: &str) -> Self {
        Self("conversion_webhook_call_failure", format!("failed: {why}"))
    }

    fn malformed(why: &str) -> Self {
        Self("conversion_webhook_malformed_response_failure", format!("failed: {why}"))
    }

    fn partial(got: usize, expected: usize) -> Self {
        let why = format!("returned {got} objects, expected {expected}");
        Self("conversion_webhook_partial_response_failure", why)
    }

    fn object(why: String) -> Self {
        Self("conversion_webhook_invalid_converted_object_failure", why)
    }
}

impl Converter {
    /// A converter without cached clients.
    #[must_use]
    pub fn new(caller: Caller, env: Env) -> Self {
        Self { caller, env, clients: Mutex::default() }
    }

    /// Converts objects to another version of the same definition.
    pub async fn convert(
        &self,
        definition: &Definition,
        api_version: &str,
        mut objects: Vec<Value>,
    ) -> Result<Vec<Value>, ApiError> {
        let is_converted = |object: &Value| object["apiVersion"].as_str() == Some(api_version);
        if objects.iter().all(is_converted) {
            return Ok(objects);
        }
        match &definition.conversion {
            Conversion::None => objects.iter_mut().for_each(|object| object["apiVersion"] = api_version.into()),
            Conversion::Webhook(webhook) => {
                objects = self.convert_by_webhook(definition, webhook, api_version, objects).await?;
            }
        }
        if let Some(version) = definition.version_of(api_version) {
            objects.iter_mut().for_each(|object| version.coerce(object));
        }
        Ok(objects)
    }

    /// Converts objects by webhook. Objects already in the version are not sent.
    async fn convert_by_webhook(
        &self,
        definition: &Definition,
        webhook: &Value,
        api_version: &str,
        objects: Vec<Value>,
    ) -> Result<Vec<Value>, ApiError> {
        let sent: Vec<&Value> = objects.iter().filter(|object| object["apiVersion"] != *api_version).collect();
        let Some(first) = sent.first() else { return Ok(objects) };
        let from = first["apiVersion"].as_str().unwrap_or_default().to_owned();
        let started = self.env.elapsed();
        let done = match self.send_review(definition, webhook, api_version, &sent).await {
            Ok(converted) => replace_converted(objects, converted, api_version),
            Err(failure) => Err(failure),
        };
        let duration = self.env.elapsed().saturating_sub(started);
        let versions = [&from, api_version].map(|api_version| GroupVersion::parse(api_version).version);
        let of = (&definition.name, versions[0], versions[1]);
        self.caller.metrics.conversion(of, done.as_ref().err().map(|failure| failure.0), duration);
        done.map_err(|Failure(_, why)| {
            let who = format!("conversion webhook for {from}, Kind={}", definition.kind);
            // Without a reason, as upstream.
            ApiError::ForwardedStatus(Box::new(Status::failure(500, "", format!("{who} {why}"))))
        })
    }

    async fn send_review(
        &self,
        definition: &Definition,
        webhook: &Value,
        api_version: &str,
        sent: &[&Value],
    ) -> Result<Vec<Value>, Failure> {
        let review = review_version(webhook).ok_or_else(|| Failure::call("no supported conversion review versions"))?;
        let client = self.client(definition, &webhook["clientConfig"]).map_err(|why| Failure::call(&why))?;
        let uid = self.env.uid();
        let request = json!({
            "kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{review}"),
            "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": sent},
        });
        let body = Bytes::from(request.to_string());
        drop(request);
        let response_bytes_max = RESPONSE_BYTES_MIN + body.len() * RESPONSE_FACTOR;
        let call = WebhookRequest { body, timeout: TIMEOUT, response_bytes_max };
        let response = client.post(&self.caller, call).await.map_err(|no| Failure::call(&no.why))?;
        let response: Value = serde_json::from_slice(&response.bytes)
            .map_err(|error| Failure::call(&format!("couldn't get version/kind; json parse error: {error}")))?;
        let converted = parse_response(review, &uid, response).map_err(|why| Failure::malformed(&why))?;
        match converted.len() == sent.len() {
            true => Ok(converted),
            false => Err(Failure::partial(converted.len(), sent.len())),
        }
    }

    fn client(&self, definition: &Definition, config: &Value) -> Result<Arc<Client>, String> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, client)) = clients.get(&definition.name)
            && known == config
        {
            return client.clone();
        }
        // The public authorities are not trusted for conversion, because all objects of the definition pass through it.
        let client = match config["caBundle"].as_str().unwrap_or_default().is_empty() {
            true => Err("tls: failed to verify certificate: the webhook names no caBundle".to_owned()),
            false => Client::new(config, &Accounts::default()).map(Arc::new),
        };
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        clients.insert(definition.name.clone(), (config.clone(), client.clone()));
        client
    }
}

/// Puts converted objects in the places of those that had another version.
fn replace_converted(mut objects: Vec<Value>, converted: Vec<Value>, api_version: &str) -> Result<Vec<Value>, Failure> {
    let is_single = objects.len() == 1;
    let others = objects.iter_mut().filter(|object| object["apiVersion"] != *api_version);
    for (at, (old, new)) in others.zip(converted).enumerate() {
        let at = if is_single { None } else { Some(at) };
        *old = enforce_unchanged(new, old, api_version, at).map_err(Failure::object)?;
    }
    Ok(objects)
}

/// The first supported review version in the webhook's order of preference.
fn review_version(webhook: &Value) -> Option<&'static str> {
    let known = webhook["conversionReviewVersions"].as_array().into_iter().flatten();
    known.into_iter().find_map(|version| match version.as_str() {
        Some("v1") => Some("v1"),
        Some("v1beta1") => Some("v1beta1"),
        _ => None,
    })
}

/// Parses the response to a review.
fn parse_response(version: &str, uid: &str, mut response: Value) -> Result<Vec<Value>, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let expected = format!("apiextensions.k8s.io/{version}");
    // As upstream, v1beta1 responses are not checked for their kind.
    let is_checked = version == "v1";
    if is_checked && (response["kind"] != "ConversionReview" || response["apiVersion"] != *expected) {
        let (got, kind) = (text(&response["apiVersion"]), text(&response["kind"]));
        return Err(format!("expected webhook response of {expected}, Kind=ConversionReview, got {got}, Kind={kind}"));
    }
    let Some(response) = response.get_mut("response").filter(|response| response.is_object()) else {
        return Err("no response provided".into());
    };
    if is_checked && response["uid"] != *uid {
        let got = go_quoted(&text(&response["uid"]));
        return Err(format!("expected response.uid={}, got {got}", go_quoted(uid)));
    }
    let (status, message) = (text(&response["result"]["status"]), text(&response["result"]["message"]));
    if status != "Success" {
        return Err(match message.is_empty() {
            true => format!("response.result.status was '{status}', not 'Success'"),
            false => message,
        });
    }
    match response["convertedObjects"].take() {
        Value::Array(objects) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

/// Restores the fields of a converted object that a webhook must not change. The error describes the webhook's
/// violation; `at` is the index among several objects.
fn enforce_unchanged(mut new: Value, old: &Value, api_version: &str, at: Option<usize>) -> Result<Value, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = |what: &str, single: &str, why: String| match at {
        Some(at) => format!("returned invalid {what} at index {at}: {why}"),
        None => format!("returned invalid {single}: {why}"),
    };
    let typed = |why: String| of("converted object", "object at index 0", why);
    if !new.is_object() {
        let is = go_type(&new);
        return Err(typed(format!("json: cannot unmarshal {is} into Go value of type map[string]interface {{}}")));
    }
    if new["apiVersion"] != *api_version {
        let got = text(&new["apiVersion"]);
        return Err(typed(format!("invalid groupVersion (expected {api_version}, received {got})")));
    }
    if new["kind"] != old["kind"] {
        let (expected, got) = (text(&old["kind"]), text(&new["kind"]));
        return Err(typed(format!("invalid kind (expected {expected}, received {got})")));
    }
    let before = &old["metadata"];
    for (key, called) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let (old, new) = (text(&before[key]), text(&new["metadata"][key]));
        if old != new {
            return Err(of("converted object", "object", format!("must have the same {called}: {old} != {new}")));
        }
    }
    let mut metadata = before.as_object().cloned().unwrap_or_default();
    for key in ["labels", "annotations"] {
        let changed = texts(key, &new["metadata"][key], &before[key]);
        match changed.map_err(|why| of("metadata in object", "metadata", why))? {
            Some(map) => drop(metadata.insert(key.into(), map.into())),
            None => drop(metadata.remove(key)),
        }
    }
    new["metadata"] = metadata.into();
    Ok(new)
}

/// Validates the `labels` or `annotations` of a webhook.
fn texts(key: &str, new: &Value, old: &Value) -> Result<Option<Map<String, Value>>, String> {
    let map = match new {
        Value::Null => return Ok(None),
        Value::Object(map) => map,
        other => return Err(format!("invalid metadata.{key} of type {} in converted object", go_type(other))),
    };
    if let Some((name, value)) = map.iter().find(|(_, value)| !value.is_string()) {
        let is = go_type(value);
        return Err(format!("metadata.{key}[{name}] must be a string, but is {is} in converted object"));
    }
    match new == old {
        true => None,
        false => metadata::labels_or_annotations_error(key, new),
    }
    .map_or_else(|| Ok(Some(map.clone()).filter(|map| !map.is_empty())), Err)
}

/// Go's name of the value's type.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(version: &str) -> Value {
        json!({"apiVersion": version, "kind": "Thing", "metadata": {"name": "a", "uid": "u", "labels": {"k": "v"}, "generation": 3}})
    }

    #[test]
    fn a_conversion_webhook_may_change_labels_and_annotations_only() {
        let mut new = object("g/v2");
        new["metadata"] =
            json!({"name": "a", "uid": "u", "labels": {"other": "x"}, "generation": 9, "finalizers": ["f"]});
        new["spec"] = json!({"a": 1});
        let held_to = enforce_unchanged(new.clone(), &object("g/v1"), "g/v2", None).unwrap();
        assert_eq!(held_to["metadata"], json!({"name": "a", "uid": "u", "labels": {"other": "x"}, "generation": 3}));
        assert_eq!(held_to["spec"]["a"], 1);
        let wrong = |pointer: &str, value: Value, at| {
            let mut wrong = new.clone();
            *wrong.pointer_mut(pointer).unwrap() = value;
            enforce_unchanged(wrong, &object("g/v1"), "g/v2", at).unwrap_err()
        };
        let name = "must have the same name: a != b";
        let kind = "invalid kind (expected Thing, received Other)";
        let version = "invalid groupVersion (expected g/v2, received g/v1)";
        let number = "metadata.labels[n] must be a string, but is int64 in converted object";
        let list = "invalid metadata.labels of type []interface {} in converted object";
        for (pointer, value, single, of_many, why) in [
            ("/metadata/name", json!("b"), "object", "converted object", name),
            ("/metadata/uid", json!("x"), "object", "converted object", "must have the same UID: u != x"),
            ("/kind", json!("Other"), "object at index 0", "converted object", kind),
            ("/apiVersion", json!("g/v1"), "object at index 0", "converted object", version),
            ("/metadata/labels", json!({"n": 1}), "metadata", "metadata in object", number),
            ("/metadata/labels", json!([]), "metadata", "metadata in object", list),
        ] {
            assert_eq!(wrong(pointer, value.clone(), None), format!("returned invalid {single}: {why}"));
            assert_eq!(wrong(pointer, value, Some(4)), format!("returned invalid {of_many} at index 4: {why}"));
        }
        let why = wrong("", json!(1), None);
        assert!(why.starts_with("returned invalid object at index 0: json: cannot unmarshal int64 into Go"), "{why}");
        let why = wrong("/metadata/labels", json!({"a b": "c"}), None);
        assert!(
            why.starts_with("returned invalid metadata: metadata.labels: Invalid value: \"a b\": name part must"),
            "{why}"
        );
    }

    #[test]
    fn answers_are_read_with_care() {
        let response = |response: Value| json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response});
        let good = response(json!({"uid": "1", "result": {"status": "Success"}, "convertedObjects": [{}]}));
        assert_eq!(parse_response("v1", "1", good.clone()).unwrap().len(), 1);
        assert_eq!(parse_response("v1", "2", good.clone()).unwrap_err(), "expected response.uid=\"2\", got \"1\"");
        assert_eq!(parse_response("v1beta1", "2", good.clone()).unwrap().len(), 1, "which checked neither");
        let other = json!({"kind": "Pod", "apiVersion": "v1"});
        let why = "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got v1, Kind=Pod";
        assert_eq!(parse_response("v1", "1", other).unwrap_err(), why);
        let refused = response(json!({"uid": "1", "result": {"status": "Failure", "message": "no"}}));
        assert_eq!(parse_response("v1", "1", refused).unwrap_err(), "no");
        let silent = response(json!({"uid": "1", "result": {"status": "Failure"}}));
        assert_eq!(
            parse_response("v1", "1", silent).unwrap_err(),
            "response.result.status was 'Failure', not 'Success'"
        );
        assert_eq!(parse_response("v1", "1", response(Value::Null)).unwrap_err(), "no response provided");
    }

    #[test]
    fn hostile_answers() {
        bolero::check!().with_type::<(Vec<u8>, bool)>().for_each(|(bytes, is_listed)| {
            let Ok(response) = serde_json::from_slice::<Value>(bytes) else { return };
            let _ = enforce_unchanged(response.clone(), &object("g/v1"), "g/v2", is_listed.then_some(1));
            let _ = parse_response("v1", "1", response);
        });
    }
}
