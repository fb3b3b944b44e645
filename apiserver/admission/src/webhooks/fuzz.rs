//! Fuzz targets: responses of webhooks.

use serde_json::json;

use super::review;

#[test]
fn answers() {
    bolero::check!().with_type::<(Vec<u8>, bool)>().for_each(|(bytes, mutating)| {
        let _ = review::parse(bytes, "v1", "u", *mutating);
    });
}

#[test]
fn answers_that_are_nearly_right() {
    bolero::check!().with_type::<(String, String, Option<String>, bool)>().for_each(|(uid, patch, kind, mutating)| {
        let response = json!({"uid": uid, "patch": patch, "patchType": kind, "status": {"message": patch}});
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        if let Ok(answer) = review::parse(review.to_string().as_bytes(), "v1", uid, *mutating) {
            assert!(answer.patch.is_empty() || *mutating, "who only says yes or no changes nothing");
            assert!(review::rejection_error("x", answer.status).status().code >= 400);
        }
    });
}
