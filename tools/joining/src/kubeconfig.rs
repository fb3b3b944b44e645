//! The client certificate in a kubeconfig's user.

use anyhow::Context as _;
use k8s_openapi::ByteString;
use kube::config::AuthInfo;
use serde_json::Value;

use crate::stored::NodeCertificate;

/// The certificate and its key; none: the user has another kind of credentials.
///
/// # Errors
/// If a file can't be read, or certificate and key don't belong together.
pub(crate) fn identity(user: &AuthInfo) -> anyhow::Result<Option<NodeCertificate>> {
    // The file's form: kube's type hides the key.
    let user = serde_json::to_value(user)?;
    let (Some(certificate), Some(key)) = (text(&user, "client-certificate")?, text(&user, "client-key")?) else {
        return Ok(None);
    };
    NodeCertificate::new(certificate, key).map(Some).context("the client certificate of the kubeconfig")
}

/// Inline data in base64, or a file.
fn text(user: &Value, field: &str) -> anyhow::Result<Option<String>> {
    let data = &user[format!("{field}-data")];
    if data.is_string() {
        let bytes = serde_json::from_value::<ByteString>(data.clone()).ok();
        let text = bytes.and_then(|bytes| String::from_utf8(bytes.0).ok());
        return text.map(Some).with_context(|| format!("{field}-data of the kubeconfig is not PEM in base64"));
    }
    let Some(file) = user[field].as_str() else { return Ok(None) };
    std::fs::read_to_string(file).map(Some).with_context(|| file.to_owned())
}

#[cfg(test)]
mod tests {
    use apiserver_auth::pki::{Pki, kubeconfig};
    use machinery_client::read_kubeconfig;
    use machinery_env::Env;

    use super::*;

    #[tokio::test]
    async fn a_certificate_is_inline_or_in_files() {
        let temp = tempfile::tempdir().unwrap();
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let pki = Pki::open_or_create(temp.path(), &env, &[]).unwrap();
        let path = temp.path().join("kubeconfig");
        std::fs::write(&path, kubeconfig("https://127.0.0.1:1", pki.ca_pem(), "a", pki.admin())).unwrap();
        let mut user = read_kubeconfig(&path).await.unwrap().auth_info;
        assert_eq!(identity(&user).unwrap().unwrap().content.user, "kubernetes-admin");
        let file = |name: &str| Some(temp.path().join(name).display().to_string());
        let files =
            AuthInfo { client_certificate: file("admin.crt"), client_key: file("admin.key"), ..AuthInfo::default() };
        assert_eq!(identity(&files).unwrap().unwrap().identity.key_pem, pki.admin().key_pem);
        assert!(identity(&AuthInfo { client_key: file("ca.key"), ..files.clone() }).is_err(), "another key");
        assert!(identity(&AuthInfo { client_key: file("absent"), ..files }).is_err());
        assert!(identity(&AuthInfo { token: Some("t".to_owned().into()), ..AuthInfo::default() }).unwrap().is_none());
        user.client_certificate_data = Some("%".to_owned());
        assert!(identity(&user).is_err());
    }
}
