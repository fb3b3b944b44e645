//! Subjects, names and usages that each of Kubernetes' signers accepts, with upstream's error texts.

use std::collections::BTreeSet;

use machinery_rules::certificate_request::CertificateRequest;

use super::{CLIENT_SIGNER, KUBELET_CLIENT_SIGNER, KUBELET_SERVING_SIGNER, LEGACY_SIGNER, NODE_PREFIX, NODES};

const SIGNATURE: &str = "digital signature";
const ENCIPHERMENT: &str = "key encipherment";
const CLIENT: &str = "client auth";
const SERVER: &str = "server auth";

/// Whether a signer accepts a request; `None`: the signer isn't one of Kubernetes'; an error: why it doesn't.
pub(super) fn check(signer: &str, request: &CertificateRequest, usages: &[String]) -> Option<Result<(), String>> {
    match signer {
        KUBELET_SERVING_SIGNER => Some(kubelet_serving(request, usages)),
        KUBELET_CLIENT_SIGNER => Some(kubelet_client(request, usages)),
        CLIENT_SIGNER => Some(client(usages)),
        LEGACY_SIGNER => Some(Ok(())),
        _ => None,
    }
}

/// Exactly these usages; key encipherment may be missing, as only RSA keys have it.
fn exactly(usages: &[String], purpose: &str) -> Result<(), String> {
    let given: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let with_rsa = BTreeSet::from([SIGNATURE, ENCIPHERMENT, purpose]);
    if given == with_rsa || given == BTreeSet::from([SIGNATURE, purpose]) {
        return Ok(());
    }
    let list: Vec<&str> = with_rsa.into_iter().collect();
    Err(format!("usages did not match [{}]", list.join(" ")))
}

fn refuse_if(wrong: bool, why: &str) -> Result<(), String> {
    if wrong { Err(why.to_owned()) } else { Ok(()) }
}

fn of_nodes(request: &CertificateRequest) -> Result<(), String> {
    refuse_if(request.organizations != [NODES], "subject organization is not system:nodes")
}

fn of_a_node(request: &CertificateRequest) -> Result<(), String> {
    let named = request.common_name.starts_with(NODE_PREFIX);
    refuse_if(!named, "subject common name does not begin with system:node:")
}

/// Also used by the approver.
pub(super) fn kubelet_serving(request: &CertificateRequest, usages: &[String]) -> Result<(), String> {
    of_nodes(request)?;
    let nowhere = request.dns_names.is_empty() && request.ip_addresses.is_empty();
    refuse_if(nowhere, "DNS or IP subjectAltName is required")?;
    refuse_if(!request.emails.is_empty(), "Email subjectAltNames are not allowed")?;
    refuse_if(!request.uris.is_empty(), "URI subjectAltNames are not allowed")?;
    exactly(usages, SERVER)?;
    of_a_node(request)
}

/// Also used by the approver.
pub(super) fn kubelet_client(request: &CertificateRequest, usages: &[String]) -> Result<(), String> {
    of_nodes(request)?;
    refuse_if(!request.dns_names.is_empty(), "DNS subjectAltNames are not allowed")?;
    refuse_if(!request.emails.is_empty(), "Email subjectAltNames are not allowed")?;
    refuse_if(!request.ip_addresses.is_empty(), "IP subjectAltNames are not allowed")?;
    refuse_if(!request.uris.is_empty(), "URI subjectAltNames are not allowed")?;
    of_a_node(request)?;
    exactly(usages, CLIENT)
}

fn client(usages: &[String]) -> Result<(), String> {
    if let Some(other) = usages.iter().find(|usage| ![SIGNATURE, ENCIPHERMENT, CLIENT].contains(&usage.as_str())) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    let has = usages.iter().any(|usage| usage == CLIENT);
    refuse_if(!has, "missing required usage for client certificate: client auth")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> CertificateRequest {
        CertificateRequest {
            common_name: "system:node:n1".into(),
            organizations: vec![NODES.into()],
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            emails: Vec::new(),
            uris: Vec::new(),
            subject_der: Vec::new(),
            public_key_der: Vec::new(),
        }
    }

    fn verdict(signer: &str, request: &CertificateRequest, usages: &[&str]) -> String {
        let usages: Vec<String> = usages.iter().map(|usage| (*usage).to_owned()).collect();
        match check(signer, request, &usages) {
            None => "not ours".into(),
            Some(Ok(())) => "taken".into(),
            Some(Err(why)) => why,
        }
    }

    #[test]
    fn each_signer_accepts_upstreams_usages() {
        let client = [SIGNATURE, CLIENT];
        assert_eq!(verdict(KUBELET_CLIENT_SIGNER, &node(), &client), "taken");
        assert_eq!(verdict(KUBELET_CLIENT_SIGNER, &node(), &[ENCIPHERMENT, SIGNATURE, CLIENT]), "taken");
        let why = "usages did not match [client auth digital signature key encipherment]";
        assert_eq!(verdict(KUBELET_CLIENT_SIGNER, &node(), &[CLIENT]), why);
        let other = CertificateRequest { organizations: vec![NODES.into(), "x".into()], ..node() };
        assert_eq!(verdict(KUBELET_CLIENT_SIGNER, &other, &client), "subject organization is not system:nodes");
        let other = CertificateRequest { common_name: "n1".into(), ..node() };
        let why = "subject common name does not begin with system:node:";
        assert_eq!(verdict(KUBELET_CLIENT_SIGNER, &other, &client), why);
        let named = CertificateRequest { dns_names: vec!["n1".into()], ..node() };
        assert_eq!(verdict(KUBELET_CLIENT_SIGNER, &named, &client), "DNS subjectAltNames are not allowed");
        assert_eq!(verdict(KUBELET_SERVING_SIGNER, &named, &[SIGNATURE, SERVER]), "taken");
        let why = "DNS or IP subjectAltName is required";
        assert_eq!(verdict(KUBELET_SERVING_SIGNER, &node(), &[SIGNATURE, SERVER]), why);
        assert_eq!(verdict(CLIENT_SIGNER, &other, &client), "taken");
        let why = "invalid usage for client certificate: server auth";
        assert_eq!(verdict(CLIENT_SIGNER, &other, &[CLIENT, SERVER]), why);
        let why = "missing required usage for client certificate: client auth";
        assert_eq!(verdict(CLIENT_SIGNER, &other, &[SIGNATURE]), why);
        assert_eq!(verdict(LEGACY_SIGNER, &other, &["any"]), "taken");
        assert_eq!(verdict("example.com/s", &other, &client), "not ours");
    }
}
