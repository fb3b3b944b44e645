//! Conversion webhooks: a batch of objects is asked for in another version, and what comes back is held to what it may
//! change: the order stays, and so do kind, name, namespace, uid; of the metadata only labels and annotations are the
//! webhook's (upstream's `webhook_converter`).

use std::sync::Arc;
use std::time::Duration;

use apiserver_resources::apiextensions::custom::Definition;
use apiserver_resources::objects::ObjectReader;
use machinery_api::ApiError;
use serde_json::{Map, Value, json};

use crate::webhook::{Client, Target};

/// How long a webhook may take (upstream's default).
const TIMEOUT: Duration = Duration::from_secs(30);
/// What it may answer, beside what it was given.
const ANSWER_BYTES_MIN: usize = 4 << 20;
/// How much larger than what it was given that may be.
const ANSWER_TIMES: usize = 8;

/// Asks webhooks for objects in another version.
#[derive(Default)]
pub(crate) struct Converter {
    client: Client,
    objects: std::sync::OnceLock<Arc<dyn ObjectReader>>,
}

impl Converter {
    /// Where Services are looked up.
    pub(crate) fn look_up_in(&self, objects: Arc<dyn ObjectReader>) {
        let _ = self.objects.set(objects);
    }

    /// Objects in the version that is wanted; those that are in it already are not sent.
    pub(crate) async fn convert(
        &self,
        definition: &Definition,
        webhook: &Value,
        api_version: &str,
        objects: Vec<Value>,
    ) -> Result<Vec<Value>, ApiError> {
        let kind = &*definition.kind;
        let failed = |why: String| {
            ApiError::Internal(format!(
                "conversion webhook for {}/{kind} failed: {why}",
                definition.stored().api_version
            ))
        };
        let Some(services) = self.objects.get() else { return Err(failed("the server is starting".into())) };
        let sent: Vec<Value> = objects.iter().filter(|o| o["apiVersion"] != *api_version).cloned().collect();
        let uid = format!("{:032x}", fingerprint(&sent));
        let review = review_version(webhook)
            .ok_or_else(|| failed("does not support any of the ConversionReview versions v1, v1beta1".into()))?;
        let request = json!({
            "kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{review}"),
            "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": sent},
        });
        let body = request.to_string().into_bytes();
        let target = Target {
            config: &webhook["clientConfig"],
            timeout: TIMEOUT,
            answer_max: ANSWER_BYTES_MIN + body.len() * ANSWER_TIMES,
        };
        let answer = self.client.post(&**services, target, body).await.map_err(failed)?;
        let answer: Value = serde_json::from_slice(&answer).map_err(|e| failed(e.to_string()))?;
        let converted = read(review, &uid, &answer).map_err(failed)?;
        if converted.len() != sent.len() {
            let (got, wanted) = (converted.len(), sent.len());
            return Err(failed(format!("webhook returned {got} objects, expected {wanted}")));
        }
        let mut converted = converted.into_iter();
        let mut out = Vec::with_capacity(objects.len());
        for (at, object) in objects.into_iter().enumerate() {
            if object["apiVersion"] == *api_version {
                out.push(object);
                continue;
            }
            let new = converted.next().unwrap_or_default();
            out.push(held(new, &object, api_version, at).map_err(failed)?);
        }
        Ok(out)
    }
}

/// A request's id that is the same for the same objects: nothing depends on it but the answer that repeats it.
fn fingerprint(objects: &[Value]) -> u128 {
    let names = objects.iter().map(|object| object["metadata"]["uid"].as_str().unwrap_or_default());
    names.flat_map(str::bytes).fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash: u128, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

/// The first review version that both sides know.
fn review_version(webhook: &Value) -> Option<&'static str> {
    let known = webhook["conversionReviewVersions"].as_array().into_iter().flatten();
    known.into_iter().find_map(|version| match version.as_str() {
        Some("v1") => Some("v1"),
        Some("v1beta1") => Some("v1beta1"),
        _ => None,
    })
}

/// What a review answers.
fn read(version: &str, uid: &str, answer: &Value) -> Result<Vec<Value>, String> {
    let expected = format!("apiextensions.k8s.io/{version}");
    if answer["kind"] != "ConversionReview" || answer["apiVersion"] != *expected {
        return Err(format!(
            "invalid response type: expected {expected}, Kind=ConversionReview, got {}, Kind={}",
            answer["apiVersion"].as_str().unwrap_or_default(),
            answer["kind"].as_str().unwrap_or_default()
        ));
    }
    let Some(response) = answer.get("response").filter(|response| response.is_object()) else {
        return Err("no response provided".into());
    };
    if version == "v1" && response["uid"] != *uid {
        let got = response["uid"].as_str().unwrap_or_default();
        return Err(format!("expected response.uid={uid:?}, got {got:?}"));
    }
    let result = &response["result"];
    match result["status"].as_str() {
        Some("Success") => {}
        Some("Failure") => {
            let message = result["message"].as_str().filter(|message| !message.is_empty());
            return Err(message.unwrap_or("response status Failure").to_owned());
        }
        _ => {
            let got = result["status"].as_str().unwrap_or_default();
            return Err(format!("response.result.status was '{got}', not 'Success'"));
        }
    }
    Ok(response["convertedObjects"].as_array().cloned().unwrap_or_default())
}

/// A converted object with what a webhook may not change as it was.
fn held(mut new: Value, old: &Value, api_version: &str, at: usize) -> Result<Value, String> {
    let wrong = |why: String| Err(format!("invalid converted object at index {at}: {why}"));
    if new["apiVersion"] != *api_version {
        let got = new["apiVersion"].as_str().unwrap_or_default();
        return wrong(format!("invalid groupVersion (expected {api_version}, received {got})"));
    }
    if new["kind"] != old["kind"] {
        let got = new["kind"].as_str().unwrap_or_default();
        return wrong(format!("invalid kind (expected {}, received {got})", old["kind"].as_str().unwrap_or_default()));
    }
    let before = &old["metadata"];
    if !new["metadata"].is_object() {
        return wrong("missing metadata".into());
    }
    for key in ["name", "namespace", "uid"] {
        if new["metadata"][key] != before[key] {
            let shown = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            return wrong(format!(
                "invalid metadata.{key} (expected {}, received {})",
                shown(&before[key]),
                shown(&new["metadata"][key])
            ));
        }
    }
    let mut metadata = before.as_object().cloned().unwrap_or_default();
    for key in ["labels", "annotations"] {
        match texts(&new["metadata"][key]) {
            Ok(Some(map)) => drop(metadata.insert(key.into(), map.into())),
            Ok(None) => drop(metadata.remove(key)),
            Err(()) => return wrong(format!("metadata.{key} must be texts")),
        }
    }
    new["metadata"] = metadata.into();
    Ok(new)
}

fn texts(value: &Value) -> Result<Option<Map<String, Value>>, ()> {
    match value {
        Value::Null => Ok(None),
        Value::Object(map) if map.values().all(Value::is_string) => Ok(Some(map.clone()).filter(|map| !map.is_empty())),
        _ => Err(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(version: &str) -> Value {
        json!({"apiVersion": version, "kind": "Thing", "metadata": {"name": "a", "uid": "u", "labels": {"k": "v"}, "generation": 3}})
    }

    #[test]
    fn what_a_webhook_may_change() {
        let mut new = object("g/v2");
        new["metadata"] =
            json!({"name": "a", "uid": "u", "labels": {"other": "x"}, "generation": 9, "finalizers": ["f"]});
        new["spec"] = json!({"a": 1});
        let held_to = held(new.clone(), &object("g/v1"), "g/v2", 0).unwrap();
        assert_eq!(held_to["metadata"], json!({"name": "a", "uid": "u", "labels": {"other": "x"}, "generation": 3}));
        assert_eq!(held_to["spec"]["a"], 1);
        for (key, value, why) in [("name", json!("b"), "metadata.name"), ("uid", json!("x"), "metadata.uid")] {
            let mut wrong = new.clone();
            wrong["metadata"][key] = value;
            assert!(held(wrong, &object("g/v1"), "g/v2", 0).unwrap_err().contains(why));
        }
        assert!(
            held(object("g/v1"), &object("g/v1"), "g/v2", 1).unwrap_err().contains("at index 1: invalid groupVersion")
        );
        new["metadata"]["labels"] = json!({"n": 1});
        assert!(held(new, &object("g/v1"), "g/v2", 0).is_err());
    }

    #[test]
    fn answers_are_read_with_care() {
        let answer = |response: Value| json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response});
        let good = answer(json!({"uid": "1", "result": {"status": "Success"}, "convertedObjects": [{}]}));
        assert_eq!(read("v1", "1", &good).unwrap().len(), 1);
        assert!(read("v1", "2", &good).unwrap_err().contains("response.uid"));
        assert!(read("v1beta1", "1", &good).unwrap_err().contains("invalid response type"));
        let refused = answer(json!({"uid": "1", "result": {"status": "Failure", "message": "no"}}));
        assert_eq!(read("v1", "1", &refused).unwrap_err(), "no");
        assert!(read("v1", "1", &answer(Value::Null)).unwrap_err().contains("no response"));
    }
}
