//! CertificateApproval and CertificateSigning authorize approvals and signatures per signer.
//! CertificateSubjectRestriction rejects requests for client certificates of `system:masters`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use machinery_api::error::ApiResult;
use machinery_api::selector::go_quoted;
use machinery_rules::certificate_request::CertificateRequest;
use serde_json::Value;

use super::{Context, Effects, MaybeReady, Operation, Plugin};
use apiserver_auth::{Attributes, MASTERS};

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub(super) struct CertificateApproval;
pub(super) struct CertificateSigning;
pub(super) struct CertificateSubjectRestriction;

impl Plugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, _: &'a mut Effects) -> MaybeReady<'a> {
        if !is_request_for(context, "approval", Operation::Update) {
            return MaybeReady::Ready(Ok(()));
        }
        MaybeReady::Pending(Box::pin(authorize_signer(context, object, "approve")))
    }
}

impl Plugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, _: &'a mut Effects) -> MaybeReady<'a> {
        let part = |of: &Value, key: &str| of["status"][key].clone();
        let changes = |old: &Value| ["certificate", "conditions"].iter().any(|key| part(object, key) != part(old, key));
        if !is_request_for(context, "status", Operation::Update) || !context.old.is_some_and(changes) {
            return MaybeReady::Ready(Ok(()));
        }
        MaybeReady::Pending(Box::pin(authorize_signer(context, object, "sign")))
    }
}

impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, _: &'a mut Effects) -> MaybeReady<'a> {
        MaybeReady::Ready(match is_request_for(context, "", Operation::Create) {
            true => check_subject(context, object),
            false => Ok(()),
        })
    }
}

fn is_request_for(context: &Context<'_>, subresource: &str, operation: Operation) -> bool {
    let request = context.request;
    request.operation == operation
        && request.group == GROUP
        && request.resource == "certificatesigningrequests"
        && request.subresource == subresource
}

/// Authorizes the verb on the signer, or on all signers of its domain. The signer's name is read from the stored
/// object.
async fn authorize_signer(context: &Context<'_>, object: &Value, verb: &str) -> ApiResult<()> {
    let signer = context.old.unwrap_or(object)["spec"]["signerName"].as_str().unwrap_or_default();
    let domain = signer.find('/').map_or(signer, |end| &signer[..end]);
    for name in [signer, &format!("{domain}/*")] {
        let attributes = Attributes {
            verb,
            group: GROUP,
            version: "*",
            resource: "signers",
            name,
            is_resource: true,
            ..Attributes::default()
        };
        if context.authorizer.authorize(context.objects, context.request.user, &attributes).await.allowed {
            return Ok(());
        }
    }
    let why = format!("user not permitted to {verb} requests with signerName {}", go_quoted(signer));
    Err(context.request.forbidden(object, why))
}

fn check_subject(context: &Context<'_>, object: &Value) -> ApiResult<()> {
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
    Err(context.request.forbidden(object, why))
}
