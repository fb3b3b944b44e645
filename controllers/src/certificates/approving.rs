//! `certificatesigningrequest-approving-controller`: approves a kubelet's client certificate if the requester has the
//! right to create such requests: for its own node (`selfnodeclient`) or for any node (`nodeclient`). Serving
//! certificates are approved in `serving.rs`.

use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use machinery_api::ObjectKey;
use machinery_client::driver::own_key;
use machinery_client::{Action, Context, Controller, Input, ObjectCache, Plan};
use machinery_rules::certificate_request::CertificateRequest;
use serde_json::{Value, json};

use super::{
    ACCOUNT, APPROVED, BACK_OFF, DENIED, KUBELET_CLIENT_SIGNER, has, issued, requested, usages, wanted_usages,
};
use crate::Settings;

/// The key is a request's.
pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "certificatesigningrequest-approving-controller",
    account: ACCOUNT,
    workers: 5,
    back_off: BACK_OFF,
    inputs: &[Input::of::<CertificateSigningRequest>(own_key)],
    reconcile,
};

fn reconcile(view: &ObjectCache, key: &ObjectKey, _: &Context<'_, Settings>) -> Plan {
    let Some(csr) = view.get::<CertificateSigningRequest>(key) else { return Plan::nothing() };
    let going = csr.metadata.deletion_timestamp.is_some();
    if going || issued(csr).is_some() || has(csr, APPROVED) || has(csr, DENIED) {
        return Plan::nothing();
    }
    let Some(request) = requested(csr).filter(|request| of_kubelet(csr, request)) else { return Plan::nothing() };
    let mut attempts = Vec::new();
    if csr.spec.username.as_deref() == Some(&request.common_name) {
        let message = "Auto approving self kubelet client certificate after SubjectAccessReview.";
        attempts.push((access_review(csr, "selfnodeclient"), approve(csr, message)));
    }
    let message = "Auto approving kubelet client certificate after SubjectAccessReview.";
    attempts.push((access_review(csr, "nodeclient"), approve(csr, message)));
    vec![Action::FirstAllowed(attempts)].into()
}

fn of_kubelet(csr: &CertificateSigningRequest, request: &CertificateRequest) -> bool {
    csr.spec.signer_name == KUBELET_CLIENT_SIGNER && usages::kubelet_client(request, wanted_usages(csr)).is_ok()
}

/// The SubjectAccessReview of the requester for a subresource.
fn access_review(csr: &CertificateSigningRequest, subresource: &str) -> Value {
    let spec = &csr.spec;
    json!({
        "user": spec.username.as_deref().unwrap_or_default(),
        "uid": spec.uid.as_deref().unwrap_or_default(),
        "groups": spec.groups.as_deref().unwrap_or_default(),
        "extra": spec.extra.clone().unwrap_or_default(),
        "resourceAttributes": {
            "group": "certificates.k8s.io", "version": "*", "resource": "certificatesigningrequests",
            "subresource": subresource, "verb": "create",
        },
    })
}

pub(super) fn approve(csr: &CertificateSigningRequest, message: &str) -> Action {
    let mut approved = csr.clone();
    approved.status.get_or_insert_default().conditions.get_or_insert_default().push(
        CertificateSigningRequestCondition {
            type_: APPROVED.into(),
            status: "True".into(),
            reason: Some("AutoApproved".into()),
            message: Some(message.into()),
            ..CertificateSigningRequestCondition::default()
        },
    );
    Action::update(&approved).on("approval")
}
