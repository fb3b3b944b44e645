//! CertificateApproval, CertificateSigning, CertificateSubjectRestriction: who may approve and sign requests for certificates by which
//! signer, and that nobody gets a certificate of `system:masters` in this way.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use machinery_api::certificate_request::CertificateRequest;
use machinery_api::error::ApiResult;
use machinery_api::selector::go_quoted;
use serde_json::Value;

use super::{Context, Effects, Operation, Plugin, Step};
use crate::auth::{Attributes, MASTERS};

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub(super) struct CertificateApproval;
pub(super) struct CertificateSigning;
pub(super) struct CertificateSubjectRestriction;

impl Plugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, _: &'a mut Effects) -> Step<'a> {
        if !is_about(context, "approval", Operation::Update) {
            return Step::Done(Ok(()));
        }
        Step::Wait(Box::pin(permitted(context, object, "approve")))
    }
}

impl Plugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, _: &'a mut Effects) -> Step<'a> {
        let part = |of: &Value, key: &str| of["status"][key].clone();
        let changes = |old: &Value| ["certificate", "conditions"].iter().any(|key| part(object, key) != part(old, key));
        if !is_about(context, "status", Operation::Update) || !context.old.is_some_and(changes) {
            return Step::Done(Ok(()));
        }
        Step::Wait(Box::pin(permitted(context, object, "sign")))
    }
}

impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, _: &'a mut Effects) -> Step<'a> {
        Step::Done(match is_about(context, "", Operation::Create) {
            true => subject(context, object),
            false => Ok(()),
        })
    }
}

fn is_about(context: &Context<'_>, subresource: &str, operation: Operation) -> bool {
    let request = context.request;
    request.operation == operation
        && request.group == GROUP
        && request.resource == "certificatesigningrequests"
        && request.subresource == subresource
}

/// Whether the user may do this with the requests of a signer, or of all signers of its domain. The signer is the one that stands
/// in the request as it was.
async fn permitted(context: &Context<'_>, object: &Value, verb: &str) -> ApiResult<()> {
    let signer = context.old.unwrap_or(object)["spec"]["signerName"].as_str().unwrap_or_default();
    let domain = signer.find('/').map_or(signer, |end| &signer[..end]);
    for name in [signer, &format!("{domain}/*")] {
        let asked = Attributes {
            verb,
            group: GROUP,
            version: "*",
            resource: "signers",
            name,
            is_resource: true,
            ..Attributes::default()
        };
        if context.authorizer.authorize(context.objects, context.request.user, &asked).await.allowed {
            return Ok(());
        }
    }
    let why = format!("user not permitted to {verb} requests with signerName {}", go_quoted(signer));
    Err(context.request.refused(object, why))
}

fn subject(context: &Context<'_>, object: &Value) -> ApiResult<()> {
    let spec = &object["spec"];
    if spec["signerName"] != CLIENT_SIGNER {
        return Ok(());
    }
    let pem = STANDARD.decode(spec["request"].as_str().unwrap_or_default()).unwrap_or_default();
    let why = match CertificateRequest::parse(&pem) {
        Err(why) => format!("failed to parse CSR: {why}"),
        Ok(request) if request.organizations.iter().any(|group| group == MASTERS) => {
            format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed")
        }
        Ok(_) => return Ok(()),
    };
    Err(context.request.refused(object, why))
}
