//! The keys and types behind the controllers: those of this process's API server, or of the files of a process without one.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use apiserver::server::Apiserver;
use apiserver_auth::jwt::SigningKey;
use apiserver_auth::pki::Pki;
use apiserver_auth::signing::{self, CertificateSigner};
use apiserver_resources::ResourceInfo;
use apiserver_resources::checking::{Warning, type_check};
use controllers::{Authority, CertificateTemplate, ExpressionWarning, ProcessOptions};
use machinery_api::features::Features;
use machinery_env::Env;
use serde_json::Value;

/// The keys of this control plane, and the types that its API server serves.
pub(super) struct ClusterAuthority {
    pub(super) pki: Arc<Pki>,
    pub(super) apiserver: Apiserver,
}

impl Authority for ClusterAuthority {
    fn signs_tokens(&self) -> bool {
        true
    }

    fn sign_token(&self, claims: &Value) -> Option<String> {
        self.pki.service_account().sign(claims).ok()
    }

    fn signs_certificates(&self) -> bool {
        true
    }

    fn sign_certificate(&self, template: &CertificateTemplate<'_>) -> Option<Result<String, String>> {
        let &CertificateTemplate { request, usages, not_before, not_after } = template;
        let template = signing::CertificateTemplate { request, usages, not_before, not_after };
        Some(self.pki.sign(&template).map_err(|error| error.to_string()))
    }

    fn check_policy(&self, policy: &Value) -> Option<Vec<ExpressionWarning>> {
        Some(self.apiserver.check_policy(policy).into_iter().map(warning).collect())
    }
}

/// A finding of the type check, as the controllers write it.
fn warning(found: Warning) -> ExpressionWarning {
    let Warning { field_ref, warning } = found;
    ExpressionWarning { field_ref, warning }
}

/// The keys of files. Policies are checked against the built-in kinds: custom ones are the API server's.
pub(super) struct FileAuthority {
    signer: Option<CertificateSigner>,
    tokens: Option<SigningKey>,
    features: Features,
    kinds: OnceLock<Vec<Arc<ResourceInfo>>>,
}

impl Authority for FileAuthority {
    fn signs_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    fn sign_token(&self, claims: &Value) -> Option<String> {
        self.tokens.as_ref()?.sign(claims).ok()
    }

    fn signs_certificates(&self) -> bool {
        self.signer.is_some()
    }

    fn sign_certificate(&self, template: &CertificateTemplate<'_>) -> Option<Result<String, String>> {
        let &CertificateTemplate { request, usages, not_before, not_after } = template;
        let template = signing::CertificateTemplate { request, usages, not_before, not_after };
        Some(self.signer.as_ref()?.sign(&template).map_err(|error| error.to_string()))
    }

    fn check_policy(&self, policy: &Value) -> Option<Vec<ExpressionWarning>> {
        let kinds =
            self.kinds.get_or_init(|| apiserver_resources::served(apiserver_resources::RESOURCES, &self.features));
        Some(type_check(policy, kinds).into_iter().map(warning).collect())
    }
}

impl FileAuthority {
    /// Reads the files of the options.
    ///
    /// # Errors
    /// If a file can't be read, or has no such key.
    pub(super) fn of(options: &ProcessOptions, env: &Env, features: Features) -> anyhow::Result<Self> {
        const FLAG: &str = "service-account-private-key-file";
        let tokens = options.tokens.service_account_private_key_file.as_ref().map(|file| {
            let pem = read(file, FLAG)?;
            SigningKey::from_pem(&pem).with_context(|| format!("--{FLAG} {}", file.display()))
        });
        let signer = options.signing.files().map(|files| signer(files, env));
        let (signer, tokens) = (signer.transpose()?, tokens.transpose()?);
        Ok(Self { signer, tokens, features, kinds: OnceLock::new() })
    }
}

fn signer((certificate, key): (&Path, &Path), env: &Env) -> anyhow::Result<CertificateSigner> {
    let (pem, key_pem) = (read(certificate, "cluster-signing-cert-file")?, read(key, "cluster-signing-key-file")?);
    CertificateSigner::from_pem(env, &pem, &key_pem).with_context(|| {
        let (certificate, key) = (certificate.display(), key.display());
        format!("--cluster-signing-cert-file {certificate} --cluster-signing-key-file {key}")
    })
}

/// The text of an option's file.
///
/// # Errors
/// If it can't be read.
pub(super) fn read(file: &Path, flag: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("--{flag} {}", file.display()))
}
