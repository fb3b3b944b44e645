//! Requests a certificate by a CertificateSigningRequest, and waits for it. As upstream's kubelet
//! (`pkg/kubelet/certificate`).

use std::time::Duration;

use anyhow::{Context as _, bail};
use apiserver_auth::own_certificates::CertificateOrder;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::Client;
use machinery_client::Api;
use machinery_env::Env;
use serde_json::{Value, json};

use crate::stored::NodeCertificate;

/// How long a request waits for its certificate (upstream's `certificateWaitTimeout`).
pub(crate) const WAIT_MAX: Duration = Duration::from_mins(15);
/// After this time without an approval a warning says how to approve.
const NOTICE_AFTER: Duration = Duration::from_secs(10);
const NODES: &str = "system:nodes";

/// The certificate to request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WantedCertificate {
    signer: &'static str,
    /// Those of an ECDSA key (upstream's `DefaultKubeletClientGetUsages` and `DefaultKubeletServingGetUsages`).
    usages: [&'static str; 2],
    user: String,
    /// DNS names and IP addresses.
    names: Vec<String>,
}

impl WantedCertificate {
    pub(crate) fn client(user: &str) -> Self {
        Self {
            signer: "kubernetes.io/kube-apiserver-client-kubelet",
            usages: ["digital signature", "client auth"],
            user: user.to_owned(),
            names: Vec::new(),
        }
    }

    pub(crate) fn serving(user: &str, names: Vec<String>) -> Self {
        Self {
            signer: "kubernetes.io/kubelet-serving",
            usages: ["digital signature", "server auth"],
            user: user.to_owned(),
            names,
        }
    }

    fn object(&self, order: &CertificateOrder) -> Value {
        json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"generateName": "node-csr-"},
            "spec": {
                "request": ByteString(order.request_pem.clone().into_bytes()),
                "signerName": self.signer, "usages": self.usages,
            },
        })
    }
}

/// Requests a certificate and waits for [`WAIT_MAX`] at most.
///
/// # Errors
/// If the API server refuses the request, it was denied or failed, or no one approved or signed it in time. An error of the
/// API server is a [`kube::Error`].
pub(crate) async fn obtain(env: &Env, client: &Client, wanted: &WantedCertificate) -> anyhow::Result<NodeCertificate> {
    let order = CertificateOrder::new(&wanted.user, NODES, &wanted.names)?;
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let created = requests.create(&wanted.object(&order)).await?;
    let (name, uid) = (created.metadata.name.unwrap_or_default(), created.metadata.uid);
    tracing::info!(request = name, signer = wanted.signer, "a certificate is requested");
    let is_answered = |csr: Option<&CertificateSigningRequest>| {
        csr.is_some_and(|csr| csr.metadata.uid == uid && answer(csr).is_some())
    };
    let waiting = requests.wait_until(env, &name, is_answered);
    tokio::pin!(waiting);
    let noticed = async {
        env.sleep(NOTICE_AFTER).await;
        tracing::warn!("the node waits for a certificate: kubectl certificate approve {name}");
        std::future::pending::<()>().await;
    };
    let answered = async {
        tokio::select! {
            found = &mut waiting => found,
            () = noticed => None,
        }
    };
    let answered = env.timeout(WAIT_MAX, answered).await.with_context(|| {
        format!(
            "no certificate within {} minutes: kubectl certificate approve {name}, or let a controller approve and sign it",
            WAIT_MAX.as_secs() / 60
        )
    })?;
    let cert_pem = match answered.as_deref().and_then(answer) {
        Some(Ok(certificate)) => certificate,
        Some(Err(why)) => bail!("the certificate request {name} {why}"),
        None => bail!("the certificate request {name} is gone"),
    };
    let held = NodeCertificate::new(cert_pem, order.key_pem).with_context(|| format!("the certificate of {name}"))?;
    anyhow::ensure!(
        held.is_valid(&wanted.user, env.now()),
        "the certificate of {name} is another user's or has expired"
    );
    Ok(held)
}

/// The outcome of a request: the certificate in PEM, or why there is none; none: it is under way.
fn answer(csr: &CertificateSigningRequest) -> Option<Result<String, String>> {
    let status = csr.status.as_ref()?;
    for condition in status.conditions.iter().flatten() {
        let what = match condition.type_.as_str() {
            "Denied" => "was denied",
            "Failed" => "failed",
            _ => continue,
        };
        let message = tools_command::output::plain(condition.message.as_deref().unwrap_or_default());
        return Some(Err(format!("{what}: {message}")));
    }
    let certificate = status.certificate.as_ref().filter(|certificate| !certificate.0.is_empty())?;
    Some(String::from_utf8(certificate.0.clone()).map_err(|_| "has a certificate that is not PEM".to_owned()))
}

#[cfg(test)]
mod tests {
    use machinery_rules::certificate_request::CertificateRequest;

    use super::*;

    fn status(conditions: &Value, certificate: &str) -> CertificateSigningRequest {
        let certificate = ByteString(certificate.as_bytes().to_vec());
        let csr = json!({
            "metadata": {}, "spec": {"request": "", "signerName": "s"},
            "status": {"conditions": conditions, "certificate": certificate},
        });
        serde_json::from_value(csr).unwrap()
    }

    #[test]
    fn a_request_ends_with_a_certificate_or_a_reason() {
        let condition = |kind: &str| json!([{"type": kind, "status": "True", "message": "no\u{1b}"}]);
        assert_eq!(answer(&status(&json!([]), "")), None);
        assert_eq!(answer(&status(&condition("Approved"), "")), None);
        assert_eq!(answer(&status(&condition("Approved"), "pem")), Some(Ok("pem".into())));
        assert_eq!(answer(&status(&condition("Denied"), "pem")), Some(Err("was denied: no?".into())));
        assert_eq!(answer(&status(&condition("Failed"), "")), Some(Err("failed: no?".into())));
    }

    #[test]
    fn the_objects_are_upstreams() {
        let wanted = WantedCertificate::serving("system:node:n1", vec!["n1".into(), "192.0.2.1".into()]);
        let order = CertificateOrder::new(&wanted.user, NODES, &wanted.names).unwrap();
        let csr: CertificateSigningRequest = serde_json::from_value(wanted.object(&order)).unwrap();
        let request = CertificateRequest::verified(&csr.spec.request.0).unwrap();
        assert_eq!((request.common_name.as_str(), request.organizations), ("system:node:n1", vec![NODES.to_owned()]));
        assert_eq!((request.dns_names.len(), request.ip_addresses.len()), (1, 1));
        assert_eq!(csr.spec.usages.unwrap(), ["digital signature", "server auth"]);
        let wanted = WantedCertificate::client("system:node:n1");
        let order = CertificateOrder::new(&wanted.user, NODES, &wanted.names).unwrap();
        let csr: CertificateSigningRequest = serde_json::from_value(wanted.object(&order)).unwrap();
        assert_eq!(csr.spec.signer_name, "kubernetes.io/kube-apiserver-client-kubelet");
        assert!(CertificateRequest::verified(&csr.spec.request.0).unwrap().dns_names.is_empty());
    }
}
