//! Builds AdmissionReview requests and parses the responses, as pure functions.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use machinery_api::GroupVersionKind;
use machinery_api::error::{ApiError, Cause, Details};
use machinery_api::selector::go_quoted;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Request;
use crate::review_input::{options, user};

/// The first supported review version in the webhook's order of preference; `None` if none is supported.
pub(super) fn version(hook: &Value) -> Option<&'static str> {
    let versions = hook["admissionReviewVersions"].as_array()?;
    versions.iter().find_map(|version| match version.as_str() {
        Some("v1") => Some("v1"),
        Some("v1beta1") => Some("v1beta1"),
        _ => None,
    })
}

/// Kind and resource of the object, in the version that the webhook matched.
pub(super) struct ReviewTarget<'a> {
    pub(super) kind: GroupVersionKind<'a>,
    /// Group, version, resource.
    pub(super) resource: (&'a str, &'a str, &'a str),
}

/// Builds the review to send.
pub(super) fn request(
    version: &str,
    uid: &str,
    request: &Request<'_>,
    target: &ReviewTarget<'_>,
    object: &Value,
    old: Option<&Value>,
) -> Value {
    let kind = |kind: GroupVersionKind<'_>| json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    let resource = |(group, version, resource): (&str, &str, &str)| json!({"group": group, "version": version, "resource": resource});
    let mut sent = json!({
        "uid": uid,
        "kind": kind(target.kind),
        "resource": resource(target.resource),
        "requestKind": kind(request.kind),
        "requestResource": resource((request.group, request.version, request.resource)),
        "operation": request.operation.as_str(),
        "userInfo": user(request),
        "object": object,
        "oldObject": old,
        "dryRun": request.options.dry_run(),
        "options": options(request),
    });
    for (field, text) in [("name", request.name), ("namespace", request.shown_namespace(request.name))] {
        if !text.is_empty() {
            sent[field] = json!(text);
        }
    }
    if !request.subresource.is_empty() {
        sent["subResource"] = json!(request.subresource);
        sent["requestSubResource"] = json!(request.subresource);
    }
    json!({"kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": sent})
}

/// A parsed response.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ReviewResponse {
    pub(super) allowed: bool,
    /// A JSON patch.
    pub(super) patch: Vec<u8>,
    pub(super) status: Option<RejectionStatus>,
    pub(super) warnings: Vec<String>,
    /// Annotations for the request's audit event.
    pub(super) annotations: BTreeMap<String, String>,
}

/// The fields of a Status that are passed to the client.
#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub(super) struct RejectionStatus {
    code: Option<i64>,
    message: Option<String>,
    reason: Option<String>,
    details: Option<RejectionDetails>,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase")]
struct RejectionDetails {
    name: Option<String>,
    group: Option<String>,
    kind: Option<String>,
    uid: Option<String>,
    causes: Option<Vec<Cause>>,
    retry_after_seconds: Option<u32>,
}

#[derive(Deserialize)]
struct Review {
    #[serde(default, rename = "apiVersion")]
    api_version: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    response: Option<Response>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Response {
    uid: Option<String>,
    allowed: Option<bool>,
    status: Option<RejectionStatus>,
    patch: Option<String>,
    patch_type: Option<String>,
    warnings: Option<Vec<String>>,
    audit_annotations: Option<BTreeMap<String, String>>,
}

/// Parses the response to the review with this version and uid.
///
/// # Errors
/// Returns upstream's message about the invalid response.
pub(super) fn parse(bytes: &[u8], version: &str, uid: &str, mutating: bool) -> Result<ReviewResponse, String> {
    let invalid = |why: String| format!("received invalid webhook response: {why}");
    let review: Review = serde_json::from_slice(bytes)
        .map_err(|error| format!("failed to call webhook: couldn't get version/kind; json parse error: {error}"))?;
    let Some(response) = review.response else { return Err(invalid("webhook response was absent".into())) };
    let (api_version, kind) = (review.api_version.unwrap_or_default(), review.kind.unwrap_or_default());
    let wanted = format!("admission.k8s.io/{version}");
    if version == "v1" && response.uid.as_deref().unwrap_or_default() != uid {
        let got = response.uid.unwrap_or_default();
        return Err(invalid(format!("expected response.uid={}, got {}", go_quoted(uid), go_quoted(&got))));
    }
    if version == "v1" && (api_version != wanted || kind != "AdmissionReview") {
        let api_version = if api_version.contains('/') { api_version } else { format!("/{api_version}") };
        let got = format!("{api_version}, Kind={kind}");
        return Err(invalid(format!("expected webhook response of {wanted}, Kind=AdmissionReview, got {got}")));
    }
    let patch = STANDARD
        .decode(response.patch.unwrap_or_default())
        .map_err(|error| format!("failed to call webhook: response.patch: {error}"))?;
    check_patch(version, &patch, response.patch_type.as_deref(), mutating).map_err(invalid)?;
    Ok(ReviewResponse {
        allowed: response.allowed.unwrap_or_default(),
        patch: if mutating { patch } else { Vec::new() },
        status: response.status,
        warnings: response.warnings.unwrap_or_default(),
        annotations: response.audit_annotations.unwrap_or_default(),
    })
}

fn check_patch(version: &str, patch: &[u8], kind: Option<&str>, mutating: bool) -> Result<(), String> {
    if version != "v1" {
        return Ok(());
    }
    let why = match (mutating, patch.is_empty(), kind) {
        (true, false, None) => "webhook returned response.patch but not response.patchType",
        (true, true, Some(_)) => "webhook returned response.patchType but not response.patch",
        (true, _, Some("")) => "webhook returned invalid response.patchType of \"\"",
        (false, false, _) => "validating webhook may not return response.patch",
        (false, _, Some(_)) => "validating webhook may not return response.patchType",
        (true, _, Some(kind)) if kind != "JSONPatch" => {
            return Err(format!("unsupported patch type {}", go_quoted(kind)));
        }
        _ => return Ok(()),
    };
    Err(why.to_owned())
}

/// Builds the client's error for a rejection by a webhook.
pub(super) fn rejection_error(hook: &str, rejection: Option<RejectionStatus>) -> ApiError {
    let rejection = rejection.unwrap_or_default();
    let non_empty = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let by = format!("admission webhook {} denied the request", go_quoted(hook));
    let message = match non_empty(&rejection.message).or_else(|| non_empty(&rejection.reason)) {
        Some(why) => format!("{by}: {why}"),
        None => format!("{by} without explanation"),
    };
    let code = rejection.code.filter(|code| (400..600).contains(code)).unwrap_or(400);
    let mut status = ApiError::Unprocessable.status();
    status.code = u16::try_from(code).unwrap_or(400);
    status.message = message;
    status.reason = rejection.reason.unwrap_or_default();
    status.details = rejection.details.map(|details| Details {
        name: details.name.unwrap_or_default(),
        group: details.group.unwrap_or_default(),
        kind: details.kind.unwrap_or_default(),
        uid: details.uid.unwrap_or_default(),
        causes: details.causes.unwrap_or_default(),
        retry_after_seconds: details.retry_after_seconds.unwrap_or_default(),
    });
    ApiError::ForwardedStatus(Box::new(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(response: Value) -> Vec<u8> {
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}).to_string().into()
    }

    fn wrong(bytes: &[u8], mutating: bool) -> String {
        parse(bytes, "v1", "u", mutating).unwrap_err()
    }

    #[test]
    fn answers_are_checked() {
        let allowed = answer(json!({"uid": "u", "allowed": true, "warnings": ["w"]}));
        let read = |bytes: &[u8], version| parse(bytes, version, "u", true);
        assert_eq!(read(&allowed, "v1").unwrap().warnings, ["w"]);
        let invalid = |why: &str| format!("received invalid webhook response: {why}");
        assert_eq!(wrong(b"{}", true), invalid("webhook response was absent"));
        let other = answer(json!({"uid": "v", "allowed": true}));
        assert_eq!(wrong(&other, true), invalid("expected response.uid=\"u\", got \"v\""));
        assert!(read(&other, "v1beta1").unwrap().allowed, "which has none");
        let old =
            json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "response": {"uid": "u"}});
        assert_eq!(
            wrong(old.to_string().as_bytes(), true),
            invalid(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got admission.k8s.io/v1beta1, \
                     Kind=AdmissionReview"
            )
        );
        for (response, mutating, why) in [
            (json!({"uid": "u", "patch": "W10="}), true, "webhook returned response.patch but not response.patchType"),
            (
                json!({"uid": "u", "patchType": "JSONPatch"}),
                true,
                "webhook returned response.patchType but not response.patch",
            ),
            (json!({"uid": "u", "patch": "W10="}), false, "validating webhook may not return response.patch"),
            (
                json!({"uid": "u", "patchType": "JSONPatch"}),
                false,
                "validating webhook may not return response.patchType",
            ),
            (json!({"uid": "u", "patch": "W10=", "patchType": "x"}), true, "unsupported patch type \"x\""),
        ] {
            assert_eq!(wrong(&answer(response), mutating), invalid(why));
        }
        assert!(
            wrong(b"<html>", true).starts_with("failed to call webhook: couldn't get version/kind; json parse error")
        );
        assert!(wrong(&vec![b'['; 100_000], true).contains("json parse error"), "not too deep for anybody");
    }

    #[test]
    fn rejections_name_their_webhook() {
        let reported = |rejection: Value| {
            let status = rejection_error("x", serde_json::from_value(rejection).unwrap()).status();
            (status.code, status.message)
        };
        let head = "admission webhook \"x\" denied the request";
        assert_eq!(reported(Value::Null), (400, format!("{head} without explanation")));
        assert_eq!(reported(json!({"message": "no", "code": 403})), (403, format!("{head}: no")));
        assert_eq!(reported(json!({"reason": "Forbidden", "code": 200})), (400, format!("{head}: Forbidden")));
        assert_eq!(reported(json!({"code": 99999})).0, 400);
    }
}
