//! Certificate controllers: approve kubelets' requests, sign approved ones, and delete old ones.

pub(crate) mod approving;
pub(crate) mod cleaner;
pub(crate) mod serving;
pub(crate) mod signing;
mod usages;

use std::time::Duration;

use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use machinery_client::BackOff;
use machinery_rules::certificate_request::CertificateRequest;

/// The account of upstream's certificate controllers.
const ACCOUNT: &str = "certificate-controller";
/// The back-off of a failed request (upstream's `certificate_controller.go`).
const BACK_OFF: BackOff = BackOff { first: Duration::from_millis(200), ..BackOff::DEFAULT };
const APPROVED: &str = "Approved";
const DENIED: &str = "Denied";
const FAILED: &str = "Failed";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
const NODE_PREFIX: &str = "system:node:";
const NODES: &str = "system:nodes";
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";

fn conditions(csr: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    csr.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

fn has(csr: &CertificateSigningRequest, kind: &str) -> bool {
    conditions(csr).iter().any(|condition| condition.type_ == kind)
}

fn issued(csr: &CertificateSigningRequest) -> Option<&[u8]> {
    let certificate = csr.status.as_ref()?.certificate.as_ref()?;
    Some(certificate.0.as_slice()).filter(|certificate| !certificate.is_empty())
}

fn requested(csr: &CertificateSigningRequest) -> Option<CertificateRequest> {
    CertificateRequest::parse(&csr.spec.request.0).ok()
}

fn wanted_usages(csr: &CertificateSigningRequest) -> &[String] {
    csr.spec.usages.as_deref().unwrap_or_default()
}
