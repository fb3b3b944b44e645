//! What controllers need of the control plane beside the API: its keys, and the types that its API server serves.

use jiff::Timestamp;
use machinery_rules::certificate_request::CertificateRequest;
use serde_json::Value;

/// The content of a certificate to issue.
#[derive(Debug)]
pub struct CertificateTemplate<'a> {
    /// The subject and the public key.
    pub request: &'a CertificateRequest,
    /// The usages, with the API's names.
    pub usages: &'a [String],
    pub not_before: Timestamp,
    /// The latest end; no certificate outlives its authority.
    pub not_after: Timestamp,
}

/// A type error of an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpressionWarning {
    /// The field of the expression.
    pub field_ref: String,
    pub warning: String,
}

/// The control plane's keys and types. Decisions call it, so it answers from memory. Without an answer (`None`), the
/// objects stay as they are.
pub trait Authority: Send + Sync {
    /// Whether [`Authority::sign_token`] has a key.
    fn signs_tokens(&self) -> bool {
        false
    }

    /// Signs the claims of a legacy service account token as a JWT.
    fn sign_token(&self, claims: &Value) -> Option<String> {
        let _ = claims;
        None
    }

    /// Whether [`Authority::sign_certificate`] has an authority's key.
    fn signs_certificates(&self) -> bool {
        false
    }

    /// Issues an approved certificate as PEM; the error becomes the message of the condition `Failed`.
    fn sign_certificate(&self, template: &CertificateTemplate<'_>) -> Option<Result<String, String>> {
        let _ = template;
        None
    }

    /// Type-checks the expressions of a ValidatingAdmissionPolicy against the served types.
    fn check_policy(&self, policy: &Value) -> Option<Vec<ExpressionWarning>> {
        let _ = policy;
        None
    }
}

/// Has no keys and no types.
#[derive(Debug, Clone, Copy)]
pub struct NoAuthority;

impl Authority for NoAuthority {}
